"""Removing archives, pictures and jobs: what would go and what stays, the question, the result."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import click

from ragllava.cli.options import (
    Commands,
    archive_option,
    as_time,
    confirm,
    connected,
    dry_run_option,
    json_option,
    print_result,
    print_rows,
    yes_option,
)
from ragllava.cli.terminal import echo

if TYPE_CHECKING:
    from collections.abc import Callable

    from ragllava.client import Removal

_ELSEWHERE = (
    "not searched: files that `ragllava results`, `report` and `noisy export` wrote, backups, and what the database "
    "and the bucket keep of removed rows and objects"
)
_NOUNS = {
    "images": "pictures",
    "picture_bytes": "bytes of picture files",
    "noisy_cases": "noisy cases",
    "files": "files of ingest jobs that lose their name",
    "labels": "labels",
    "answers": "answers",
    "lines": "question lines whose further columns or notes lose its name",
    "results_written_again": "jobs whose result files are written again",
    "files_of_jobs": "result files",
    "objects": "objects in the bucket",
    "archives": "archives",
}


def remove(removal: Callable[[bool], Removal], *, dry_run: bool, yes: bool, as_json: bool) -> None:
    """Show what would be removed, ask, and remove it; `removal` is called with whether it is a dry run."""
    planned = removal(True)
    if dry_run:
        print_result(planned, [f"{planned.subject} would be removed:", *_lines(planned)], as_json)
        return
    if not yes:
        echo("\n".join([f"{planned.subject}:", *_lines(planned)]), err=True)
    confirm(f"remove {planned.subject} for ever?", yes)
    done = removal(False)
    print_result(done, [f"{done.subject} is removed:", *_lines(done)], as_json)


def _lines(removal: Removal) -> Iterator[str]:
    for name, number in removal.counts.items():
        if number:
            yield f"  {number:,} {_NOUNS.get(name, name)}"
    for job_id in removal.waits_for:
        yield f"  job {job_id} still runs: what it writes about them goes when it has ended"
    if removal.kept:
        yield "what stays:"
    yield from (f"  {sentence}" for sentence in removal.kept)
    yield _ELSEWHERE


@click.group(cls=Commands)
def picture() -> None:
    """Remove pictures from archives."""


@picture.command("remove")
@click.argument("pictures", nargs=-1, required=True)
@archive_option
@dry_run_option
@yes_option
@json_option
def remove_pictures(pictures: tuple[str, ...], archive: str, dry_run: bool, yes: bool, as_json: bool) -> None:
    """Erase PICTURES, by id or source, from an archive and from every place where they are stored.

    Their bytes, captions, metadata, words and vectors go, and result files that name them are written again without
    them. The texts of answers that rest on them stay. --dry-run shows what would go, and what else keeps a copy.
    """
    with connected() as client:
        remove(
            lambda planned: client.archives.remove_pictures(archive, list(pictures), dry_run=planned),
            dry_run=dry_run,
            yes=yes,
            as_json=as_json,
        )


@picture.command("removals")
@click.option("--limit", default=20, show_default=True, type=click.IntRange(1), help="At most so many.")
@json_option
def list_removals(limit: int, as_json: bool) -> None:
    """What was removed, when and by whom, the newest first: archives, pictures and jobs, without their names."""
    with connected() as client:
        erasures = client.system.erasures(limit)
    columns = ("removal", "kind", "archive", "target", "by", "begun", "finished", "counts")
    rows = (
        (
            line.erasure_id,
            line.kind,
            line.archive_id,
            line.target_id,
            line.account,
            as_time(line.created_at),
            as_time(line.finished_at),
            ", ".join(f"{name} {number:,}" for name, number in line.counts.items()),
        )
        for line in erasures
    )
    print_rows(erasures, columns, rows, as_json, none="nothing was removed yet")
