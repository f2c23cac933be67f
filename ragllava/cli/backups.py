"""`ragllava backup` and `ragllava restore`."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING

import click

from ragllava.cli.options import Problem, connected, json_option, print_result

if TYPE_CHECKING:
    from ragllava.client import MadeBackup, RestoredBackup, VerifiedBackup
    from ragllava.settings import Settings

_SHOWN = 20
_MIB = 2**20


@click.command()
@click.argument("vault", required=False, metavar="[DIR|s3://BUCKET/PREFIX]")
@click.option(
    "--verify", is_flag=True, help="Read a backup that is there, compare every hash, and set damaged files aside."
)
@click.option("--list", "list_only", is_flag=True, help="Only list the backups that are there.")
@click.option("--at", metavar="NAME", help="With --verify: this backup.  [default: the newest]")
@click.option("--keep", type=click.IntRange(0), help="Remove older backups; 0: none.  [default: the setting]")
@json_option
def backup(
    vault: str | None, *, verify: bool, list_only: bool, at: str | None, keep: int | None, as_json: bool
) -> None:
    """Save the database and all objects, beside running work; copies only what an earlier backup there has not.

    Passwords and keys of services and webhooks are not saved. A backup holds what is erased later, until it is removed.
    """
    if at is not None and not verify:
        raise click.UsageError("--at belongs to --verify; a backup is always of now")
    with connected() as client:
        if list_only:
            names = client.backups.list(vault)
            print_result(names, names or ["there is no complete backup"], as_json)
            return
        if verify:
            with _bar("verify") as show:
                verified = client.backups.verify(vault, at, on_progress=show)
            print_result(verified, _verified_lines(verified), as_json)
            sys.exit(1 if verified.problems else 0)
        with _bar("backup") as show:
            made = client.backups.make(vault, keep=keep, on_progress=show)
    print_result(made, _made_lines(made), as_json)
    sys.exit(1 if made.absent else 0)


@click.command()
@click.argument("vault", required=False, metavar="[DIR|s3://BUCKET/PREFIX]")
@click.option("--at", metavar="NAME", help="This backup.  [default: the newest]")
@json_option
def restore(vault: str | None, *, at: str | None, as_json: bool) -> None:
    """Restore a backup into an empty system, while no worker runs. An interrupted restore continues.

    Starts the embedded services for itself unless they run. What later backups of the same vault show as erased is
    erased again.
    """
    from ragllava.client import Client
    from ragllava.local.services import running_services
    from ragllava.settings import load_settings

    settings = load_settings()
    has_services = settings.database_url is not None and settings.s3_endpoint is not None
    services: AbstractContextManager[Settings] = nullcontext(settings) if has_services else running_services(settings)
    with (
        services as settings,
        Client(settings, name="ragllava restore") as client,
        _bar("restore") as show,
    ):
        restored = client.backups.restore(vault, at, on_progress=show)
    print_result(restored, _restored_lines(restored), as_json)


@contextmanager
def _bar(title: str) -> Iterator[Callable[[str, int, int], None]]:
    """A progress bar on a terminal; yields a function that shows what is being done, how much, and of how much."""
    from ragllava.cli.progress import bar

    with bar(title) as update:

        def show(what: str, done: int, total: int) -> None:
            update(completed=done, total=total or None, note=what)

        yield show


def _made_lines(made: MadeBackup) -> Iterator[str]:
    yield (
        f"backup {made.name} in {made.vault}: {made.rows:,} rows, {made.pictures:,} pictures, "
        f"{made.files:,} other files; {made.copied:,} files of {made.copied_bytes / _MIB:,.1f} MiB "
        f"were new, {made.seconds:,.1f} s"
    )
    yield from (f"removed the older backup {name}" for name in made.removed)
    yield from (Problem(note) for note in made.notes)
    if made.absent:
        yield Problem(
            f"{len(made.absent):,} objects that rows name are missing or damaged in the object store, as "
            f"{made.absent[0]}; the backup has everything else, and `ragllava doctor --deep` says what to do"
        )


def _verified_lines(verified: VerifiedBackup) -> Iterator[str]:
    yield (
        f"backup {verified.name} of version {verified.version}, revision {verified.revision}: {verified.rows:,} rows, "
        f"{verified.pictures:,} pictures, {verified.files:,} other files, {verified.size_bytes / _MIB:,.1f} MiB"
    )
    yield from (Problem(problem) for problem in verified.problems[:_SHOWN])
    if len(verified.problems) > _SHOWN:
        yield Problem(f"and {len(verified.problems) - _SHOWN:,} more")
    if not verified.problems:
        yield "every file is there and has its hash"
    if verified.absent:
        yield f"{len(verified.absent):,} objects were missing in the object store already"


def _restored_lines(restored: RestoredBackup) -> Iterator[str]:
    yield (
        f"restored the backup {restored.name}: {restored.rows:,} rows, {restored.pictures:,} pictures, "
        f"{restored.files:,} other files, {restored.size_bytes / _MIB:,.1f} MiB, {restored.seconds:,.1f} s"
    )
    for name, number in restored.erased.items():
        done = "revoked again what was revoked" if name == "keys" else "erased again what was erased"
        yield f"{done} after it: {number:,} {name}"
    yield from (Problem(note) for note in restored.notes)
    yield "start the workers, then run `ragllava doctor --deep`"
