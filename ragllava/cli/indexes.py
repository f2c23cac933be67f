"""`ragllava reindex` and `ragllava index …`: embed an archive again while questions are answered."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import click

from ragllava.cli.options import (
    ROW_ID,
    Commands,
    EnumChoice,
    archive_option,
    as_time,
    connected,
    json_option,
    make_table,
    name_option,
    no_wait_option,
    print_result,
    print_rows,
)
from ragllava.cli.terminal import echo
from ragllava.records import Selection

if TYPE_CHECKING:
    from rich.table import Table

    from ragllava.client import IndexDetails

index_argument = click.argument("index_id", type=ROW_ID)


@click.command()
@archive_option
@click.option(
    "--retriever",
    metavar="MODEL/TAG|FOLDER",
    help="Embed by this open_clip model.  [default: the one of the active index]",
)
@click.option("--only", type=EnumChoice(Selection), help="Which images.  [default: all with --retriever, else missing]")
@click.option("--no-switch", is_flag=True, help="Leave a new index that passes its gate for `ragllava index switch`.")
@name_option
@no_wait_option
@json_option
def reindex(
    *,
    archive: str,
    retriever: str | None,
    only: Selection | None,
    no_switch: bool,
    name: str | None,
    no_wait: bool,
    as_json: bool,
) -> None:
    """Embed the images of an archive: what is missing, or all of them into a new index beside the active one.

    missing: images without a vector in the active index; failed: those of them that the latest job could not embed;
    both repair the index in place. stale: a new index, if the retriever's version has changed since the active one was
    made. all: a new index in any case. Questions are answered from the old index until the new one has passed its
    gate.
    """
    from ragllava.cli.progress import follow
    from ragllava.client import ReindexRequest
    from ragllava.models.profiles import parse_retriever

    selection = only or (Selection.ALL if retriever else Selection.MISSING)
    source = parse_retriever(retriever) if retriever else None
    with connected() as client:
        request = ReindexRequest(archive, selection, source, switch=not no_switch, name=name)
        job_id = client.archives.reindex(request)
        follow(client, job_id, f"reindex {archive}", wait=not no_wait, as_json=as_json)


@click.group(cls=Commands)
def index() -> None:
    """Indexes of archives: list, show, switch, drop."""


@index.command("list")
@click.option("--archive", metavar="NAME", help="Only those of this archive.")
@json_option
def list_indexes(archive: str | None, as_json: bool) -> None:
    """All indexes by archive and age."""
    columns = ("index", "archive", "retriever", "state", "images", "search", "gate", "active since", "retired")

    def cells(details: IndexDetails) -> tuple[object, ...]:
        index, gate = details.index, details.gate and _gate_state(details.gate)
        times = as_time(details.activated_at), as_time(details.retired_at)
        return (
            index.index_id,
            details.archive,
            index.retriever,
            index.state,
            details.images,
            _search(details),
            gate,
            *times,
        )

    with connected() as client:
        indexes = client.archives.indexes.list(archive)
    print_rows(
        indexes, columns, map(cells, indexes), as_json, none="no index yet; the first `ragllava ingest` creates one"
    )


@index.command("show")
@index_argument
@json_option
def show_index(index_id: int, as_json: bool) -> None:
    """One index, with its gate's figures and the old questions that it answers differently."""
    with connected() as client:
        details = client.archives.indexes.get(index_id)
    print_result(details, _index_lines(details), as_json)


@index.command("switch")
@index_argument
@no_wait_option
@json_option
def switch_index(index_id: int, no_wait: bool, as_json: bool) -> None:
    """Answer questions from another index of the archive: a retired one, or one that passed its gate.

    First a job embeds the pictures that the index lacks; new pictures go to both indexes meanwhile. Then it counts the
    vectors and switches. The previous index is retired and can be switched back to until it is dropped.
    """
    from ragllava.cli.progress import follow

    with connected() as client:
        archive = client.archives.indexes.get(index_id).archive
        job_id = client.archives.indexes.switch(index_id)
        lacks = client.jobs.get(job_id).progress.total - 1
        if not as_json:
            task = f"lacks {lacks} images: job {job_id} embeds them" if lacks else f"lacks nothing: job {job_id} counts"
            echo(f"index {index_id} of {archive} {task} and switches")
        follow(client, job_id, f"switch to index {index_id}", wait=not no_wait, as_json=as_json)


@index.command("drop")
@index_argument
def drop_index(index_id: int) -> None:
    """Delete an index that is not the active one, with its vectors; only embedding again brings it back."""
    with connected() as client:
        details = client.archives.indexes.get(index_id)
        client.archives.indexes.drop(index_id)
    echo(f"index {index_id} of {details.archive} is deleted, with its {details.images} vectors")


def _search(details: IndexDetails) -> str:
    return "HNSW" if details.index.has_hnsw else "exact"


def _gate_state(gate: dict[str, Any]) -> str:
    return "passed" if gate["passed"] else "refused"


def _index_lines(details: IndexDetails) -> Iterator[str | Table]:
    index = details.index
    yield (
        f"index {index.index_id} of {details.archive}: {index.retriever}, {index.state}, "
        f"{details.images} images, {index.dim} dimensions, {_search(details)} search"
    )
    if details.job_id is not None:
        yield f"job {details.job_id} fills it"
    for name in ("created_at", "activated_at", "retired_at"):
        yield f"{name:<12} {as_time(getattr(details, name))}"
    gate = details.gate
    if gate is None:
        return
    yield f"gate {_gate_state(gate)} in job {gate['job']}: {gate['reason']}"
    yield from (f"unreadable: {picture['image']}: {picture['reason']}" for picture in gate["unreadable_images"])
    differences = gate.get("answers", {}).get("differences", [])
    if differences:
        columns = ("question", "old answer", "new answer", "old evidence", "new evidence")
        yield make_table(columns, map(_difference_cells, differences), box=None)


def _difference_cells(difference: dict[str, Any]) -> list[str]:
    sides = difference["old"], difference["new"]
    answers = [side["answer"] or "-" for side in sides]
    evidence = [f"{', '.join(side['evidence']) or 'none'} ({side['relevance']:.2f})" for side in sides]
    return [difference["question"], *answers, *evidence]
