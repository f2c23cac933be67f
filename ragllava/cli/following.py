"""The end of a command that has queued a job: wait for it or leave it, print it, exit."""

from __future__ import annotations

import sys
from typing import NoReturn

import click
from rich.console import Console

from ragllava.cli.options import print_json
from ragllava.cli.progress import inputs, wait_or_leave, warn_without_worker
from ragllava.client import Client, JobView, is_success


def follow(client: Client, job_id: int, title: str, queue: str, *, wait: bool, as_json: bool) -> JobView:
    """The queued job; after its end, if the command waits. Warns when no worker of its queue is ready."""
    warn_without_worker(client, queue)
    if wait:
        return wait_or_leave(client, job_id, title, Console(stderr=as_json))
    return client.jobs.get(job_id)


def print_followed(job: JobView, lines: list[str | None], *, wait: bool, as_json: bool) -> None:
    """The job as JSON, or `lines` (None is left out) after its end, or where its progress can be seen."""
    if as_json:
        print_json(job.as_json())
    elif wait:
        click.echo("\n".join(line for line in lines if line is not None))
    else:
        click.echo(queued_line(job))


def queued_line(job: JobView, state: str = "queued") -> str:
    """``job 3 queued: 12 files; `ragllava jobs show 3` shows its progress``."""
    return f"job {job.job_id} {state}: {inputs(job)}; `ragllava jobs show {job.job_id}` shows its progress"


def exit_after(job: JobView, *, wait: bool) -> NoReturn:
    """Exit with 0, or with 1 when the command waited for a job of which no input succeeded."""
    sys.exit(0 if not wait or is_success(job.state) else 1)
