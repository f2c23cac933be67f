"""`ragllava reindex` and `ragllava index …`: embed an archive again while questions are answered."""

from __future__ import annotations

import sys
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from ragllava.cli.options import (
    JOB_ID,
    EnumChoice,
    archive_option,
    as_time,
    connected,
    json_option,
    print_json,
    print_table,
)
from ragllava.records import ReindexStatus, Selection

if TYPE_CHECKING:
    from ragllava.client import Client, IndexDetails

INDEX_ID = JOB_ID  # the same range
_no_wait_option = click.option("--no-wait", is_flag=True, help="Return when the job is queued.")


@click.command()
@archive_option
@click.option(
    "--retriever",
    metavar="MODEL/TAG|FOLDER",
    help="Embed by this open_clip model.  [default: the one of the active index]",
)
@click.option("--only", type=EnumChoice(Selection), help="Which images.  [default: all with --retriever, else missing]")
@click.option("--no-switch", is_flag=True, help="Leave a new index that passes its gate for `ragllava index switch`.")
@_no_wait_option
@json_option
def reindex(
    archive: str, retriever: str | None, only: Selection | None, no_switch: bool, no_wait: bool, as_json: bool
) -> None:
    """Embed the images of an archive: what is missing, or all of them into a new index beside the active one.

    missing: images without a vector in the active index; failed: those of them that the latest job could not embed;
    both repair the index in place. stale: a new index, if the retriever's version has changed since the active one was
    made. all: a new index in any case. Questions are answered from the old index until the new one has passed its
    gate.
    """
    from ragllava.client import ReindexRequest
    from ragllava.models.profiles import parse_retriever

    selection = only or (Selection.ALL if retriever else Selection.MISSING)
    source = parse_retriever(retriever) if retriever else None
    with connected() as client:
        job_id = client.archives.reindex(ReindexRequest(archive, selection, source, switch=not no_switch))
        _follow(client, job_id, f"reindex {archive}", no_wait, as_json)


@click.group()
def index() -> None:
    """Indexes of archives: list, show, switch, drop."""


@index.command("list")
@click.option("--archive", metavar="NAME", help="Only those of this archive.")
@json_option
def list_indexes(archive: str | None, as_json: bool) -> None:
    """All indexes by archive and age."""
    from rich.table import Table

    with connected() as client:
        indexes = client.archives.indexes.list(archive)
    if as_json:
        print_json([asdict(details) for details in indexes])
        return
    if not indexes:
        click.echo("no index yet; the first `ragllava ingest` creates one")
        return
    columns = ("index", "archive", "retriever", "state", "images", "search", "gate", "active since", "retired")
    table = Table(*columns, box=None)
    for details in indexes:
        times = as_time(details.activated_at), as_time(details.retired_at)
        names = str(details.index.index_id), details.archive, details.index.retriever, details.index.state
        gate = "-" if details.gate is None else _gate_state(details.gate)
        table.add_row(*names, str(details.images), _search(details), gate, *times)
    print_table(table)


@index.command("show")
@click.argument("index_id", type=INDEX_ID)
@json_option
def show_index(index_id: int, as_json: bool) -> None:
    """One index, with its gate's figures and the old questions that it answers differently."""
    with connected() as client:
        details = client.archives.indexes.get(index_id)
    if as_json:
        print_json(asdict(details))
        return
    click.echo(
        f"index {index_id} of {details.archive}: {details.index.retriever}, {details.index.state}, "
        f"{details.images} images, {details.index.dim} dimensions, {_search(details)} search"
    )
    if details.job_id is not None:
        click.echo(f"job {details.job_id} fills it")
    for name in ("created_at", "activated_at", "retired_at"):
        click.echo(f"{name:<12} {as_time(getattr(details, name))}")
    if details.gate is not None:
        _print_gate(details.gate)


@index.command("switch")
@click.argument("index_id", type=INDEX_ID)
@_no_wait_option
@json_option
def switch_index(index_id: int, no_wait: bool, as_json: bool) -> None:
    """Answer questions from another index of the archive: a retired one, or one that passed its gate.

    First a job embeds the pictures that the index lacks; new pictures go to both indexes meanwhile. Then it counts the
    vectors and switches. The previous index is retired and can be switched back to until it is dropped.
    """
    with connected() as client:
        archive = client.archives.indexes.get(index_id).archive
        job_id = client.archives.indexes.switch(index_id)
        lacks = client.jobs.get(job_id).progress.total - 1
        if not as_json:
            task = f"lacks {lacks} images: job {job_id} embeds them" if lacks else f"lacks nothing: job {job_id} counts"
            click.echo(f"index {index_id} of {archive} {task} and switches")
        _follow(client, job_id, f"switch to index {index_id}", no_wait, as_json)


@index.command("drop")
@click.argument("index_id", type=INDEX_ID)
def drop_index(index_id: int) -> None:
    """Delete an index that is not the active one, with its vectors; only embedding again brings it back."""
    with connected() as client:
        details = client.archives.indexes.get(index_id)
        client.archives.indexes.drop(index_id)
    click.echo(f"index {index_id} of {details.archive} is deleted, with its {details.images} vectors")


def _follow(client: Client, job_id: int, title: str, no_wait: bool, as_json: bool) -> None:
    from ragllava.cli.following import exit_after, follow, print_followed
    from ragllava.cli.progress import outcome_line, reindexing_line

    job = follow(client, job_id, title, "ingest", wait=not no_wait, as_json=as_json)
    print_followed(job, [outcome_line(job), reindexing_line(job)], wait=not no_wait, as_json=as_json)
    if not no_wait and job.reindexing is not None and job.reindexing.gate_status is ReindexStatus.REFUSED:
        sys.exit(1)
    exit_after(job, wait=not no_wait)


def _search(details: IndexDetails) -> str:
    return "HNSW" if details.index.has_hnsw else "exact"


def _gate_state(gate: dict[str, Any]) -> str:
    return "passed" if gate["passed"] else "refused"


def _print_gate(gate: dict[str, Any]) -> None:
    from rich.table import Table

    click.echo(f"gate {_gate_state(gate)} in job {gate['job']}: {gate['reason']}")
    for picture in gate["unreadable_images"]:
        click.echo(f"unreadable: {picture['image']}: {picture['reason']}")
    differences = gate.get("answers", {}).get("differences", [])
    if not differences:
        return
    table = Table("question", "old answer", "new answer", "old evidence", "new evidence", box=None)
    for difference in differences:
        sides = difference["old"], difference["new"]
        answers = [side["answer"] or "-" for side in sides]
        evidence = [f"{', '.join(side['evidence']) or 'none'} ({side['relevance']:.2f})" for side in sides]
        table.add_row(difference["question"], *answers, *evidence)
    print_table(table)
