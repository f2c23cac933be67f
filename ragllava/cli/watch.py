"""`ragllava watch`: an archive follows a folder for as long as the command runs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from ragllava.cli.options import archive_option, connected

if TYPE_CHECKING:
    from ragllava.client import Client
    from ragllava.stages.buckets.watched_folder import WatchedFolder

_QUIET_MS = 1_600  # changes are collected for so long
_LOOK_MS = 2_000  # between looks at whether our own jobs have ended


@click.command()
@click.argument("folder", type=click.Path(path_type=Path))
@archive_option
@click.option("--captions", type=click.Path(path_type=Path), help="CSV, JSONL or Parquet with file and caption.")
def watch(folder: Path, archive: str, captions: Path | None) -> None:
    """Keep an archive as FOLDER is: compare once, then follow every change until Ctrl-C.

    New and changed pictures are ingested, those of deleted files leave the archive. The ingest workers must see the
    folder under the same name. Zip and tar files are passed over; `ragllava ingest` takes those.
    """
    from watchfiles import watch as changes_of

    from ragllava.cli.progress import warn_without_worker
    from ragllava.cli.services import stop_signals
    from ragllava.errors import UsageError
    from ragllava.stages.buckets.watched_folder import WatchedFolder

    if not folder.is_dir():
        raise UsageError(f"cannot watch {folder}: it is no folder that can be read here")
    watched = WatchedFolder(folder.absolute(), archive, captions)
    with stop_signals() as stop, connected() as client:
        warn_without_worker(client, "ingest")
        _compare(client, watched, always=True)
        unsure = True  # of what changed between that look and the begin of watching
        for batch in changes_of(
            watched.folder,
            stop_event=stop,
            debounce=_QUIET_MS,
            rust_timeout=_LOOK_MS,
            yield_on_timeout=True,
            raise_interrupt=False,
        ):
            if batch or unsure or watched.jobs_ended(client.engine):
                unsure = False
                _compare(client, watched)
    click.echo("stopped")


def _compare(client: Client, watched: WatchedFolder, *, always: bool = False) -> None:
    """Compare, and print one line if there is anything to say."""
    from ragllava.errors import RagllavaError
    from ragllava.stages.buckets.watched_folder import first_names

    try:
        found = client.follow(watched)
    except RagllavaError as error:  # a caption file half written, a database that restarts: the next look may do
        if always:
            raise
        click.echo(f"ragllava: {error}", err=True)
        return
    if not found.found_differences and not always:
        return
    parts = [
        f"{len(names)} {title} ({first_names(names)})"
        for title, names in (("new", found.new), ("gone", found.gone), ("with another caption", found.captions))
        if names
    ]
    job = f"; job {found.job_id} ingests them" if found.job_id else ""
    click.echo(f"{watched.folder}: {found.files} files, {', '.join(parts) or 'nothing new'}{job}")
