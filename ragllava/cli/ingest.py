"""`ragllava ingest`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ragllava.cli.options import (
    archive_option,
    as_columns,
    captions_option,
    column_options,
    connected,
    exclude_option,
    json_option,
    name_option,
    no_wait_option,
)
from ragllava.cli.terminal import echo
from ragllava.errors import UsageError
from ragllava.metadata import MAX_CAPTION

if TYPE_CHECKING:
    from ragllava.client import IngestJob


_SHOWN_CAPTIONS = 5  # of those without a file


@click.command()
@click.argument("paths", nargs=-1, required=True, type=click.Path(path_type=Path))
@archive_option
@captions_option
@exclude_option
@column_options
@click.option(
    "--upload/--no-upload",
    default=None,
    help="Upload the files, for workers that do not see these paths. Default: RAGLLAVA_UPLOAD_FILES.",
)
@name_option
@no_wait_option
@json_option
def ingest(
    *,
    paths: tuple[Path, ...],
    archive: str,
    captions: Path | None,
    image_column: str | None,
    caption_column: str | None,
    exclude: tuple[str, ...],
    upload: bool | None,
    name: str | None,
    no_wait: bool,
    as_json: bool,
) -> None:
    """Add pictures to an archive: files, folders, zip and tar files, or what lies below s3://bucket/prefix/.

    Captions come from --captions, from a file captions.csv or metadata.csv beside the pictures, from a file beside each
    picture (dog.txt, dog.caption, dog.xmp, dog.png.json), or from the picture itself. Pictures that the archive
    contains already are recognised by their bytes; a changed caption replaces the old one.

    Exit code 1 when no file can be used, or most captions fit no file.
    """
    from ragllava.cli.progress import bar, follow

    with connected() as client:
        columns = as_columns(captions, image_column, caption_column)
        if (address := _bucket_address(paths)) is not None:
            if captions is not None or exclude or upload is not None:
                raise UsageError("--captions, --exclude and --upload are for files, not for a prefix of a bucket")
            queued = client.archives.ingest_prefix(address, archive, name=name)
        else:
            with bar("reading the files") as update:
                queued = client.archives.ingest(
                    paths,
                    archive,
                    captions,
                    columns,
                    exclude=exclude,
                    upload=upload,
                    name=name,
                    on_upload=lambda done, total: update(completed=done, total=total),
                )
        for line in _caption_lines(queued):
            echo(line, err=True)
        follow(
            client,
            queued.job_id,
            f"ingest into {archive}",
            wait=not no_wait,
            as_json=as_json,
            has_failed=queued.most_captions_are_lost,
            captions=_caption_facts(queued),
            passed_over=dict(queued.beside.passed_over),
        )


def _bucket_address(paths: tuple[Path, ...]) -> str | None:
    """`s3://bucket/prefix/` if that is the only path; a Path has lost a slash of it."""
    if paths[0].parts[:1] != ("s3:",):
        return None
    if len(paths) > 1:
        raise UsageError("give one prefix of a bucket at a time, and no files beside it")
    return f"s3://{'/'.join(paths[0].parts[1:])}"


def _caption_lines(queued: IngestJob) -> Iterator[str]:
    """What a person should know about captions and files that are not used."""
    yield from queued.beside.notes
    if queued.beside.passed_over:
        yield f"passed over: {queued.beside.passed_kinds()}"
    if queued.beside.cut:
        yield f"{queued.beside.cut:,} captions were cut to {MAX_CAPTION:,} characters"
    ambiguous = set(queued.ambiguous_captions)
    for name in queued.unused_captions[:_SHOWN_CAPTIONS]:
        yield f"caption {'that fits several files' if name in ambiguous else 'without a file'}: {name}"
    if len(queued.unused_captions) > _SHOWN_CAPTIONS:
        yield f"… and {len(queued.unused_captions) - _SHOWN_CAPTIONS:,} more captions without a file"
    if queued.lost_captions:
        number = queued.captions + queued.beside.listed_captions
        yield f"{queued.lost_captions:,} of {number:,} captions fit no file"


def _caption_facts(queued: IngestJob) -> dict[str, int]:
    total = queued.captions + queued.beside.listed_captions
    return {"listed": total, "without_file": queued.lost_captions, "cut": queued.beside.cut}
