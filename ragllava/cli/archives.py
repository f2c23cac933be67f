"""`ragllava ingest` and `ragllava archive`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import click

from ragllava.cli import bindings
from ragllava.cli.options import archive_option, as_time, connected, json_option, print_json, print_table

_SHOWN_CAPTIONS = 5  # of those without a file


@click.command()
@click.argument("paths", nargs=-1, required=True, type=click.Path(path_type=Path))
@archive_option
@click.option("--captions", type=click.Path(path_type=Path), help="CSV, JSONL or Parquet with file and caption.")
@click.option("--no-wait", is_flag=True, help="Return when the job is queued.")
@json_option
def ingest(paths: tuple[Path, ...], archive: str, captions: Path | None, no_wait: bool, as_json: bool) -> None:
    """Add pictures to an archive: files, folders, zip and tar files.

    Captions come from --captions, or from the first line of a text file beside a picture (dog.png, dog.txt). Pictures
    that the archive contains already are recognised by their bytes; a changed caption replaces the old one.
    """
    from ragllava.cli.following import exit_after, follow, print_followed
    from ragllava.cli.progress import outcome_line

    with connected() as client:
        queued = client.archives.ingest(paths, archive, captions)
        for name in queued.unused_captions[:_SHOWN_CAPTIONS]:
            click.echo(f"caption without a file: {name}", err=True)
        if len(queued.unused_captions) > _SHOWN_CAPTIONS:
            number = len(queued.unused_captions) - _SHOWN_CAPTIONS
            click.echo(f"… and {number} more captions without a file", err=True)
        job = follow(client, queued.job_id, f"ingest into {archive}", "ingest", wait=not no_wait, as_json=as_json)
    reasons = f"reasons: ragllava archive show {archive} --rejected" if job.progress.by_status.get("rejected") else None
    print_followed(job, [outcome_line(job), reasons], wait=not no_wait, as_json=as_json)
    exit_after(job, wait=not no_wait)


@click.group()
def archive() -> None:
    """List and show archives, bind them to buckets, and list the images that no question can find."""


for command in (bindings.bind, bindings.unbind, bindings.scan):
    archive.add_command(command)


@archive.command("list")
@json_option
def list_archives(as_json: bool) -> None:
    """All archives."""
    with connected() as client:
        summaries = client.archives.list()
    if as_json:
        print_json([asdict(summary) for summary in summaries])
        return
    for summary in summaries:
        click.echo(f"{summary.archive.name}: {summary.images} images")
    if not summaries:
        click.echo("no archive yet; `ragllava ingest FOLDER --archive NAME` creates one")


@archive.command("show")
@click.argument("name")
@click.option("--rejected", is_flag=True, help="List the files that were refused, with the reason.")
@json_option
def show_archive(name: str, rejected: bool, as_json: bool) -> None:
    """The contents of an archive, and the files that it refused."""
    with connected() as client:
        summary = client.archives.get(name)
        refused = client.archives.rejected(name) if rejected else []
        bound = client.archives.bindings(name)
    if as_json:
        body = asdict(summary) | {"bindings": [view.as_json() for view in bound]}
        print_json(body | ({"rejected": [asdict(file) for file in refused]} if rejected else {}))
        return
    click.echo(
        f"{summary.archive.name}: {summary.images} images, {summary.size_bytes / 2**20:.1f} MiB, "
        f"{summary.without_caption} without caption, last ingest {as_time(summary.last_ingest_at)}"
    )
    for size in summary.indexes:
        search = "HNSW" if size.index.has_hnsw else "exact"
        click.echo(
            f"index {size.index.index_id}: {size.index.retriever}, {size.images} images, "
            f"{size.index.dim} dimensions, {size.index.state}, {search} search"
        )
    bindings.print_bindings(bound)
    for file in refused:
        click.echo(f"{file.source}: {file.reason}")
    if rejected and not refused:
        click.echo("no file was refused")


@archive.command("gaps")
@click.argument("name")
@json_option
def list_gaps(name: str, as_json: bool) -> None:
    """Every image without a vector in the active index, and why."""
    from rich.table import Table

    with connected() as client:
        gaps = client.archives.gaps(name)
    if as_json:
        print_json([asdict(gap) for gap in gaps])
        return
    if not gaps:
        click.echo(f"{name}: every image has its vector")
        return
    table = Table("image", "source", "reason", "explanation", box=None)
    for gap in gaps:
        table.add_row(str(gap.image_id), gap.source, gap.reason.value, gap.explanation)
    print_table(table)
