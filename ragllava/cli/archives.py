"""`ragllava ingest` and `ragllava archive`."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path

import click

from ragllava.cli import bindings
from ragllava.cli.options import archive_option, as_time, connected, json_option, print_json, print_table


@click.command()
@click.argument("paths", nargs=-1, required=True, type=click.Path(path_type=Path))
@archive_option
@click.option("--captions", type=click.Path(path_type=Path), help="CSV, JSONL or Parquet with file and caption.")
@click.option("--no-wait", is_flag=True, help="Return when the job is queued.")
@json_option
def ingest(paths: tuple[Path, ...], archive: str, captions: Path | None, no_wait: bool, as_json: bool) -> None:
    """Add pictures to an archive: files, folders, zip and tar files.

    Captions come from --captions, or from a text file beside a picture (dog.png, dog.txt; its first line). Pictures
    that the archive holds already are recognised by their bytes; a changed caption is taken over.
    """
    from rich.console import Console

    from ragllava.cli.progress import inputs, outcome_line, wait_or_leave, warn_without_worker
    from ragllava.client import is_success

    console = Console(stderr=as_json)
    with connected() as client:
        queued = client.ingest(paths, archive, captions)
        for unused in queued.unused_captions[:5]:
            click.echo(f"caption without a file: {unused}", err=True)
        if len(queued.unused_captions) > 5:
            click.echo(f"… and {len(queued.unused_captions) - 5} more captions without a file", err=True)
        warn_without_worker(client, "ingest")
        if no_wait:
            job = client.job(queued.job_id)
        else:
            job = wait_or_leave(client, queued.job_id, f"ingest into {archive}", console)
    if as_json:
        print_json(job.as_json())
    elif no_wait:
        click.echo(f"job {job.job_id} queued: {inputs(job)}; `ragllava jobs show {job.job_id}` tells how far it is")
    else:
        click.echo(outcome_line(job))
        if job.progress.by_status.get("rejected"):
            click.echo(f"reasons: ragllava archive show {archive} --rejected")
    sys.exit(0 if no_wait or is_success(job.state) else 1)


@click.group()
def archive() -> None:
    """List and show archives, bind them to buckets, and name the images that no question can find."""


for command in (bindings.bind, bindings.unbind, bindings.scan):
    archive.add_command(command)


@archive.command("list")
@json_option
def list_archives(as_json: bool) -> None:
    """All archives."""
    with connected() as client:
        found = client.archives()
    if as_json:
        print_json([asdict(summary) for summary in found])
        return
    for summary in found:
        click.echo(f"{summary.archive.name}: {summary.images} images")
    if not found:
        click.echo("no archive yet; `ragllava ingest FOLDER --archive NAME` makes one")


@archive.command("show")
@click.argument("name")
@click.option("--rejected", is_flag=True, help="List the files that were refused, with the reason.")
@json_option
def show_archive(name: str, rejected: bool, as_json: bool) -> None:
    """What an archive holds, and what it refused."""
    with connected() as client:
        summary = client.archive(name)
        refused = client.rejected(name) if rejected else []
        bound = client.bindings(name)
    if as_json:
        found = asdict(summary) | {"bindings": [view.as_json() for view in bound]}
        print_json(found | ({"rejected": [asdict(file) for file in refused]} if rejected else {}))
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


@archive.command()
@click.argument("name")
@json_option
def gaps(name: str, as_json: bool) -> None:
    """Every image without a vector in the active index, and why."""
    from rich.table import Table

    with connected() as client:
        found = client.gaps(name)
    if as_json:
        print_json([asdict(gap) for gap in found])
        return
    if not found:
        click.echo(f"{name}: every image has its vector")
        return
    table = Table("image", "source", "reason", "explanation", box=None)
    for gap in found:
        table.add_row(str(gap.image_id), gap.source, gap.reason.value, gap.explanation)
    print_table(table)
