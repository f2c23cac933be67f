"""`ragllava ingest` and `ragllava archive`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ragllava.cli import bindings
from ragllava.cli.options import (
    archive_option,
    as_time,
    captions_option,
    connected,
    json_option,
    no_wait_option,
    print_result,
    print_rows,
)

if TYPE_CHECKING:
    from ragllava.client import ArchiveSummary

_SHOWN_CAPTIONS = 5  # of those without a file


@click.command()
@click.argument("paths", nargs=-1, required=True, type=click.Path(path_type=Path))
@archive_option
@captions_option
@no_wait_option
@json_option
def ingest(paths: tuple[Path, ...], archive: str, captions: Path | None, no_wait: bool, as_json: bool) -> None:
    """Add pictures to an archive: files, folders, zip and tar files.

    Captions come from --captions, or from the first line of a text file beside a picture (dog.png, dog.txt). Pictures
    that the archive contains already are recognised by their bytes; a changed caption replaces the old one.
    """
    from ragllava.cli.following import follow

    with connected() as client:
        queued = client.archives.ingest(paths, archive, captions)
        for name in queued.unused_captions[:_SHOWN_CAPTIONS]:
            click.echo(f"caption without a file: {name}", err=True)
        if len(queued.unused_captions) > _SHOWN_CAPTIONS:
            number = len(queued.unused_captions) - _SHOWN_CAPTIONS
            click.echo(f"… and {number} more captions without a file", err=True)
        follow(client, queued.job_id, f"ingest into {archive}", wait=not no_wait, as_json=as_json)


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
    lines = [f"{summary.archive.name}: {summary.images} images" for summary in summaries]
    print_result(summaries, lines or ["no archive yet; `ragllava ingest FOLDER --archive NAME` creates one"], as_json)


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
    body = asdict(summary) | {"bindings": bound} | ({"rejected": refused} if rejected else {})
    lines = [*_summary_lines(summary), *map(bindings.binding_line, bound)]
    lines += [f"{file.source}: {file.reason}" for file in refused]
    print_result(body, lines if refused or not rejected else [*lines, "no file was refused"], as_json)


@archive.command("gaps")
@click.argument("name")
@json_option
def list_gaps(name: str, as_json: bool) -> None:
    """Every image without a vector in the active index, and why."""
    with connected() as client:
        gaps = client.archives.gaps(name)
    columns = ("image", "source", "reason", "explanation")
    rows = ((gap.image_id, gap.source, gap.reason, gap.explanation) for gap in gaps)
    print_rows(gaps, columns, rows, as_json, none=f"{name}: every image has its vector")


def _summary_lines(summary: ArchiveSummary) -> Iterator[str]:
    yield (
        f"{summary.archive.name}: {summary.images} images, {summary.size_bytes / 2**20:.1f} MiB, "
        f"{summary.without_caption} without caption, last ingest {as_time(summary.last_ingest_at)}"
    )
    for size in summary.indexes:
        search = "HNSW" if size.index.has_hnsw else "exact"
        yield (
            f"index {size.index.index_id}: {size.index.retriever}, {size.images} images, "
            f"{size.index.dim} dimensions, {size.index.state}, {search} search"
        )
