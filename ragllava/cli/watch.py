"""`ragllava watch`: an archive follows a folder while the command runs."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ragllava.cli.options import (
    allow_removals_option,
    archive_option,
    as_columns,
    captions_option,
    column_options,
    connected,
    exclude_option,
    print_problem,
)
from ragllava.cli.terminal import echo

if TYPE_CHECKING:
    from ragllava.client import Client, WatchedFolder

_COLLECT_MS = 1_600  # changes within this time are handled together
_CHECK_MS = 2_000  # between checks whether our own jobs have ended


@click.command()
@click.argument("folder", type=click.Path(path_type=Path))
@archive_option
@captions_option
@exclude_option
@column_options
@allow_removals_option
def watch(
    folder: Path,
    archive: str,
    captions: Path | None,
    image_column: str | None,
    caption_column: str | None,
    exclude: tuple[str, ...],
    allow_removals: bool,
) -> None:
    """Keep an archive equal to FOLDER: compare once, then follow every change until Ctrl-C.

    New and changed pictures are ingested, those of deleted files leave the archive. When many are gone at once, as if a
    disk is not mounted, they stay; --allow-removals lets them go in the first comparison. The ingest workers must see
    the folder under the same path. Zip and tar files are ignored; `ragllava ingest` reads those.
    """
    from watchfiles import watch as changes_of

    from ragllava.cli.progress import warn_about_workers
    from ragllava.cli.services import on_stop_signals
    from ragllava.client import WatchedFolder
    from ragllava.errors import UsageError
    from ragllava.settings import load_settings

    if not folder.is_dir():
        raise UsageError(f"cannot watch {folder}: it is not a folder that can be read here")
    if load_settings().upload_files == "always":
        raise UsageError(
            "RAGLLAVA_UPLOAD_FILES=always says that the ingest workers do not see this folder, and `ragllava watch` "
            "does not upload; mount the folder in the workers under the same path, or use `ragllava ingest`"
        )
    columns = as_columns(captions, image_column, caption_column)
    watched = WatchedFolder(folder.absolute(), archive, captions, allow_removals, columns=columns, exclude=exclude)
    stop = threading.Event()
    with on_stop_signals(stop.set), connected() as client:
        warn_about_workers(client, "ingest")
        _compare(client, watched, always=True)
        first = True  # changes between that comparison and the start of watching are not reported
        for batch in changes_of(
            watched.folder,
            stop_event=stop,
            debounce=_COLLECT_MS,
            rust_timeout=_CHECK_MS,
            yield_on_timeout=True,
            raise_interrupt=False,
        ):
            if batch or first or client.archives.has_settled(watched):
                first = False
                _compare(client, watched)
    echo("stopped")


def _compare(client: Client, watched: WatchedFolder, *, always: bool = False) -> None:
    """Compare, and print one line about the changes; with `always` also when there are none."""
    from ragllava.errors import RagllavaError

    try:
        changes = client.archives.follow(watched)
    except RagllavaError as error:  # a partially written caption file, a restarting database: the next call may succeed
        if always:
            raise
        echo(f"ragllava: {error}", err=True)
        return
    if changes.held:
        print_problem(
            f"{changes.held} pictures are gone from {watched.folder} at once, so they stay in the archive "
            f"{watched.archive_name}: is it mounted? To let them go, start again with --allow-removals"
        )
    if not changes.found_differences and not always:
        return
    parts = [
        f"{len(names)} {title} ({_first_names(names)})"
        for title, names in (("new", changes.new), ("gone", changes.gone), ("with another caption", changes.captions))
        if names
    ]
    job = f"; job {changes.job_id} ingests them" if changes.job_id else ""
    echo(f"{watched.folder}: {changes.files} files, {', '.join(parts) or 'nothing new'}{job}")


def _first_names(names: Sequence[str], most: int = 3) -> str:
    """`a.png, b.png, c.png and 7 more`."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
