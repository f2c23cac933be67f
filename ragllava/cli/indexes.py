"""`ragllava reindex` and `ragllava index …`: another retriever, or the same anew, beside running questions."""

from __future__ import annotations

import sys
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from ragllava.cli.options import archive_option, as_time, connected, json_option, print_json, print_table

if TYPE_CHECKING:
    from ragllava.client import Client
    from ragllava.stores.archives.indexes import IndexDetails

INDEX_ID = click.IntRange(1, 2**63 - 1)  # what the database can hold

_WAIT = click.option("--no-wait", is_flag=True, help="Return when the job is queued.")


@click.command()
@archive_option
@click.option(
    "--retriever",
    metavar="MODEL/TAG|FOLDER",
    help="Embed by this open_clip model.  [default: the one of the active index]",
)
@click.option(
    "--only",
    type=click.Choice(["missing", "failed", "stale", "all"]),
    help="Which images.  [default: all with --retriever, else missing]",
)
@click.option("--no-switch", is_flag=True, help="Leave a new index that passes its gate for `ragllava index switch`.")
@_WAIT
@json_option
def reindex(
    archive: str, retriever: str | None, only: str | None, no_switch: bool, no_wait: bool, as_json: bool
) -> None:
    """Embed the images of an archive: what is missing, or all of them into a new index beside the active one.

    missing, failed: images without a vector in the active index, or those of them that the latest try could not embed;
    the index is repaired in place. stale: a new index, if the active one was made by another version of its retriever
    than there is now. all: a new index in any case. Questions go on from the old index until the new one has passed
    its gate.
    """
    from ragllava.models.profiles import parse_retriever
    from ragllava.records import Selection
    from ragllava.stages.reindex.stage import ReindexRequest

    selection = Selection(only or ("all" if retriever else "missing"))
    source = parse_retriever(retriever) if retriever else None
    with connected() as client:
        job_id = client.reindex(ReindexRequest(archive, selection, source, switch=not no_switch))
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
        found = client.indexes(archive)
    if as_json:
        print_json([asdict(one) for one in found])
        return
    if not found:
        click.echo("no index yet; the first `ragllava ingest` makes one")
        return
    columns = ("index", "archive", "retriever", "state", "images", "search", "gate", "active since", "retired")
    table = Table(*columns, box=None)
    for one in found:
        search = "HNSW" if one.index.has_hnsw else "exact"
        times = as_time(one.activated_at), as_time(one.retired_at)
        names = str(one.index.index_id), one.archive, one.index.retriever, one.index.state
        table.add_row(*names, str(one.images), search, _gate(one), *times)
    print_table(table)


@index.command("show")
@click.argument("index_id", type=INDEX_ID)
@json_option
def show_index(index_id: int, as_json: bool) -> None:
    """One index, with what its gate measured and the old questions that end otherwise."""
    with connected() as client:
        found = client.index(index_id)
    if as_json:
        print_json(asdict(found))
        return
    search = "HNSW" if found.index.has_hnsw else "exact"
    click.echo(
        f"index {index_id} of {found.archive}: {found.index.retriever}, {found.index.state}, {found.images} images, "
        f"{found.index.dim} dimensions, {search} search"
    )
    if found.job_id is not None:
        click.echo(f"job {found.job_id} fills it")
    for name in ("created_at", "activated_at", "retired_at"):
        click.echo(f"{name:<12} {as_time(getattr(found, name))}")
    if found.gate is not None:
        _print_gate(found.gate)


@index.command("switch")
@click.argument("index_id", type=INDEX_ID)
@_WAIT
@json_option
def switch_index(index_id: int, no_wait: bool, as_json: bool) -> None:
    """Answer questions from another index of the archive: a retired one, or one that waits for it.

    First a job embeds what came to the archive since; new pictures go to both from now on. Then it counts and
    switches. The index of before is retired and can be switched back to until it is dropped.
    """
    with connected() as client:
        before = client.index(index_id)
        job_id = client.switch_index(index_id)
        lacks = client.job(job_id).progress.total - 1
        if not as_json:
            said = f"lacks {lacks} images: job {job_id} embeds them" if lacks else f"lacks nothing: job {job_id} counts"
            click.echo(f"index {index_id} of {before.archive} {said} and switches")
        _follow(client, job_id, f"switch to index {index_id}", no_wait, as_json)


@index.command("drop")
@click.argument("index_id", type=INDEX_ID)
def drop_index(index_id: int) -> None:
    """Remove an index that is not the active one, with its vectors; there is no way back but to embed again."""
    with connected() as client:
        found = client.index(index_id)
        client.drop_index(index_id)
    click.echo(f"index {index_id} of {found.archive} is gone, {found.images} vectors with it")


def _follow(client: Client, job_id: int, title: str, no_wait: bool, as_json: bool) -> None:
    from rich.console import Console

    from ragllava.cli.progress import inputs, outcome_line, reindexing_line, wait_or_leave, warn_without_worker
    from ragllava.client import is_success
    from ragllava.records import ReindexStatus

    warn_without_worker(client, "ingest")
    job = client.job(job_id) if no_wait else wait_or_leave(client, job_id, title, Console(stderr=as_json))
    if as_json:
        print_json(job.as_json())
    elif no_wait:
        click.echo(f"job {job_id} queued: {inputs(job)}; `ragllava jobs show {job_id}` tells how far it is")
    else:
        click.echo(outcome_line(job))
        line = reindexing_line(job)
        if line is not None:
            click.echo(line)
    refused = job.reindexing is not None and job.reindexing.gate_status is ReindexStatus.REFUSED
    sys.exit(0 if no_wait or (is_success(job.state) and not refused) else 1)


def _gate(found: IndexDetails) -> str:
    if found.gate is None:
        return "-"
    return "passed" if found.gate["passed"] else "refused"


def _print_gate(gate: dict[str, Any]) -> None:
    from rich.table import Table

    click.echo(f"gate {'passed' if gate['passed'] else 'refused'} in job {gate['job']}: {gate['reason']}")
    for picture in gate["unreadable_images"]:
        click.echo(f"unreadable: {picture['image']}: {picture['reason']}")
    differences = gate.get("answers", {}).get("differences", [])
    if not differences:
        return
    table = Table("question", "old answer", "new answer", "old evidence", "new evidence", box=None)
    for one in differences:
        answers = [one[which]["answer"] or "-" for which in ("old", "new")]
        table.add_row(one["question"], *answers, *(_evidence(one[which]) for which in ("old", "new")))
    print_table(table)


def _evidence(found: dict[str, Any]) -> str:
    return f"{', '.join(found['evidence']) or 'none'} ({found['relevance']:.2f})"
