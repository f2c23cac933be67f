"""The end of a command that has queued a job: wait for it or leave it, print it, exit."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import NoReturn

import click
from rich.console import Console

from ragllava.cli.options import print_json
from ragllava.cli.progress import detail_lines, inputs, outcome_line, wait_or_leave, warn_without_worker
from ragllava.client import Client, JobView, is_success
from ragllava.jobs.kinds import kind_of
from ragllava.records import JobKind, ReindexStatus


def follow(
    client: Client, job_id: int, title: str, *, wait: bool, as_json: bool, state: str = "queued", **facts: bool
) -> NoReturn:
    """Print a queued job, after its end if the command waits, and exit; its JSON includes `facts`.

    Exits with 1 when the command waited for a job of which no input succeeded, or whose gate refused the result.
    """
    job = client.jobs.get(job_id)
    warn_without_worker(client, kind_of(job.kind).queue)
    if wait:
        job = wait_or_leave(client, job_id, title, Console(stderr=as_json))
    if as_json:
        print_json(job.as_json() | facts)
    elif wait:
        click.echo("\n".join([outcome_line(job), *detail_lines(job), *_next_steps(job)]))
    else:
        click.echo(f"job {job_id} {state}: {inputs(job)}; `ragllava jobs show {job_id}` shows its progress")
    refused = job.reindexing is not None and job.reindexing.gate_status is ReindexStatus.REFUSED
    sys.exit(0 if not wait or (is_success(job.state) and not refused) else 1)


def _next_steps(job: JobView) -> Iterator[str]:
    if job.kind == JobKind.ANSWER:
        yield f"answers: ragllava results {job.job_id} -o answers.jsonl"
    if job.kind == JobKind.INGEST and job.progress.by_status.get("rejected"):
        yield f"reasons: ragllava archive show {job.archive} --rejected"
