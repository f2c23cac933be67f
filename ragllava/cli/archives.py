"""`ragllava archive`."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Unpack

import click

from ragllava.cli.options import (
    AnswerFlags,
    Commands,
    Problem,
    allow_removals_option,
    answer_options,
    as_answer_options,
    as_filter,
    as_time,
    connected,
    dry_run_option,
    json_option,
    print_result,
    print_rows,
    priority_option,
    retrieval_option,
    where_option,
    yes_option,
)
from ragllava.cli.terminal import echo
from ragllava.errors import UsageError

if TYPE_CHECKING:
    from ragllava.client import ArchiveSummary, BindingView, FoundImage, PictureView, ScanReport


@click.group(cls=Commands)
def archive() -> None:
    """List, show, rename and remove archives, bind them to buckets, list the images that no question can find."""


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
@click.option("--rejected", is_flag=True, help="List the rejected files, with the reason.")
@click.option("--notes", is_flag=True, help="List the files that were stored in part, and documents with their pages.")
@json_option
def show_archive(name: str, rejected: bool, notes: bool, as_json: bool) -> None:
    """The contents of an archive, and its rejected files."""
    with connected() as client:
        summary = client.archives.get(name)
        refused = client.archives.rejected(name) if rejected else []
        noted = client.archives.notes(name) if notes else []
        bound = client.archives.bindings(name)
    body = asdict(summary) | {"bindings": bound} | ({"rejected": refused} if rejected else {})
    body |= {"notes": noted} if notes else {}
    lines = [*_summary_lines(summary), *map(_binding_line, bound)]
    lines += [f"{file.source}: {file.reason}" for file in [*refused, *noted]]
    print_result(body, lines if refused or not rejected else [*lines, "no file was rejected"], as_json)


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


@archive.command("search")
@click.argument("name")
@click.argument("text")
@click.option("--limit", default=20, show_default=True, type=click.IntRange(1, 1000), help="At most so many pictures.")
@retrieval_option
@where_option
@json_option
def search_archive(
    name: str, text: str, limit: int, retrieval: str | None, where: tuple[str, ...], as_json: bool
) -> None:
    """Find the pictures of archive NAME that fit TEXT best, by picture and by caption; nothing is answered."""
    from ragllava.records import Retrieval

    with connected() as client:
        by = Retrieval(retrieval or client.settings.retrieval)
        found = client.archives.search(name, text, limit=limit, retrieval=by, filter=as_filter(where))
    rows = [_found_json(image) for image in found]
    columns = ("id", "found by", "similarity", "words", "picture", "caption")
    cells = (
        (
            image.image.image_id,
            "picture and caption" if image.origin == "both" else image.origin,
            f"{image.retrieval_score:.3f}",
            "" if image.caption_score is None else f"{image.caption_score:.1f}",
            image.image.source,
            image.image.caption or "",
        )
        for image in found
    )
    print_rows(rows, columns, cells, as_json, none=f"{name}: no picture fits")


@archive.command("picture")
@click.argument("name")
@click.argument("picture")
@json_option
def show_picture(name: str, picture: str, as_json: bool) -> None:
    """One picture of archive NAME, by its id or source: caption, metadata, indexes, answers that rest on it."""
    with connected() as client:
        view = client.archives.picture(name, picture)
    print_result(view, _picture_lines(view), as_json)


@archive.command()
@click.argument("name")
@click.argument("address", metavar="s3://BUCKET/PREFIX/")
@click.option("--inbox", is_flag=True, help="Answer question files that are put there, from the archive.")
@click.option("--outbox", metavar="s3://BUCKET/PREFIX/", help="Write the results of an inbox there.")
@click.option("--strict", is_flag=True, help="Refuse a file of an inbox if any of its lines is invalid.")
@priority_option
@answer_options
@json_option
def bind(
    name: str,
    address: str,
    inbox: bool,
    outbox: str | None,
    strict: bool,
    priority: str,
    as_json: bool,
    **flags: Unpack[AnswerFlags],
) -> None:
    """Keep archive NAME equal to a part of a bucket, and ingest what is there already.

    A bucket that is missing in the embedded store is created. Later changes arrive as events of the bucket;
    `ragllava archive scan` finds them without events.
    """
    from ragllava.client import BindingRole
    from ragllava.json_records import to_json

    source_of = click.get_current_context().get_parameter_source
    answering = any(source_of(option) is click.core.ParameterSource.COMMANDLINE for option in flags)
    if not inbox and (outbox or strict or answering or priority != "normal"):
        raise UsageError("--outbox, --strict, --priority and the options of answers are for an inbox: add --inbox")
    with connected() as client:
        options: dict[str, Any] = {}
        if inbox:
            options = {"outbox": outbox, "skip_invalid": not strict, "priority": priority}
        if answering:
            options["answer"] = to_json(as_answer_options(client, **flags))
        role = BindingRole.INBOX if inbox else BindingRole.PICTURES
        for given in filter(None, (address, outbox)):
            if client.archives.ensure_bucket(given):
                echo(f"the bucket of {given} was missing and has been created in the embedded store", err=True)
        binding = client.archives.bind(name, address, role, options)
        reports = [report for report in client.archives.scan(name) if report.address == binding.address]
    effect = "question files are answered from" if inbox else "pictures go to"
    line = f"{binding.address} is bound: its {effect} the archive {binding.archive}"
    body = {"address": binding.address, "role": role, "scan": reports}
    print_result(body, [line, *_report_lines(reports)], as_json)


@archive.command()
@click.argument("name")
@click.argument("address", metavar="s3://BUCKET/PREFIX/")
def unbind(name: str, address: str) -> None:
    """Stop following a part of a bucket in archive NAME; its images stay."""
    with connected() as client:
        binding = client.archives.unbind(name, address)
    echo(f"{binding.address} is no longer bound; its images stay in the archive {binding.archive}")


@archive.command()
@click.argument("name")
@allow_removals_option
@click.option("--retry-refused", is_flag=True, help="Try objects again that were refused and have not changed.")
@json_option
def scan(name: str, allow_removals: bool, retry_refused: bool, as_json: bool) -> None:
    """Compare the buckets bound to archive NAME with what is stored of them, and repair the differences.

    Exit code 1 when objects could not be read, or when so many are gone at once that their pictures stay.
    """
    with connected() as client:
        reports = client.archives.scan(name, allow_removals=allow_removals, retry_refused=retry_refused)
    print_result(reports, _report_lines(reports), as_json)
    sys.exit(1 if any(report.failed or report.held for report in reports) else 0)


@archive.command()
@click.argument("name")
@click.argument("new")
def rename(name: str, new: str) -> None:
    """Give archive NAME the name NEW; its pictures, jobs, buckets and schedules stay with it.

    A running `ragllava watch` keeps to the old name, and would create it again: stop it first.
    """
    with connected() as client:
        client.archives.rename(name, new)
    echo(f"the archive {name} is called {new} now")


@archive.command("remove")
@click.argument("name")
@dry_run_option
@yes_option
@json_option
def remove_archive(name: str, dry_run: bool, yes: bool, as_json: bool) -> None:
    """Erase archive NAME with its pictures, indexes, jobs, results, labels, bindings and schedules.

    Trainings stay, with the model versions that learned from it. --dry-run shows what would go, and what stays.
    """
    from ragllava.cli.removals import remove

    with connected() as client:
        remove(lambda planned: client.archives.remove(name, dry_run=planned), dry_run=dry_run, yes=yes, as_json=as_json)


def _found_json(found: FoundImage) -> dict[str, Any]:
    ranks = {name: None if (rank := getattr(found, name)) is None else rank + 1 for name in _RANKS}
    scores = {"retrieval_score": found.retrieval_score, "caption_score": found.caption_score}
    return asdict(found.image) | {"origin": found.origin} | ranks | scores | {"metadata": found.metadata}


_RANKS = ("picture_rank", "caption_rank")


def _picture_lines(view: PictureView) -> Iterator[str]:
    yield f"{view.source}: image {view.image_id} of {view.archive}" + (", no longer part of it" if view.retired else "")
    yield f"caption: {view.caption or 'none'}"
    yield f"{view.width} x {view.height} pixels, {view.media_type}, {view.size_bytes:,} bytes, read from {view.uri}"
    yield f"added {as_time(view.created_at)}, changed {as_time(view.updated_at)}"
    for key, value in (view.metadata or {}).items():
        yield f"{key}: {', '.join(map(str, value)) if isinstance(value, list) else value}"
    yield "indexes: " + (", ".join(f"{number} ({state})" for number, state in view.indexes) or "none")
    number = len(view.questions)
    yield "1 answer rests on it" if number == 1 else f"{number or 'no'} answers rest on it"
    for question in view.questions:
        yield f"  job {question.job_id}, {question.custom_id}: {question.question} - {question.answer}"


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


def _binding_line(view: BindingView) -> str:
    binding = view.binding
    role = f"inbox, outbox {binding.options['outbox']}" if "outbox" in binding.options else "pictures"
    return (
        f"bound to {binding.address} ({role}): {view.objects} objects, {view.pictures} pictures, "
        f"{view.waiting} waiting, {view.refused} refused, last scan {as_time(view.scanned_at)}"
    )


_TITLES = {
    "added": "new",
    "replaced": "changed",
    "restored": "without their image, ingested again",
    "gone": "gone",
    "captions": "with another caption",
    "waiting": "to be read again in a moment",
    "refused": "refused before, tried again when they change or with --retry-refused",
    "failed": "that could not be read",
}
_WITH_REASONS = ("refused", "failed")


def _report_lines(reports: Sequence[ScanReport]) -> Iterator[str]:
    for report in reports:
        changes = report.as_json()
        jobs = f"; job {', '.join(map(str, report.changes.job_ids))} ingests them" if report.changes.job_ids else ""
        state = "differences" if report.found_differences else "nothing new"
        yield f"{report.address}: {report.listed} objects, {state}{jobs}"
        if report.held:
            yield Problem(
                f"{report.held} objects are gone at once, so their pictures stay; --allow-removals lets them go"
            )
        for name, title in _TITLES.items():
            if changes[name]["number"]:
                yield f"  {changes[name]['number']} {title}"
                yield from _name_lines(changes[name], changes[name]["first"] if name in _WITH_REASONS else {})


def _name_lines(names: Mapping[str, Any], reasons: Mapping[str, str]) -> Iterator[str]:
    for name in names["first"]:
        yield f"    {name}" + (f": {reasons[name]}" if name in reasons else "")
    if names["number"] > len(names["first"]):
        yield f"    … and {names['number'] - len(names['first'])} more"
