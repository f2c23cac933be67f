"""`ragllava jobs …`: look at jobs and steer them."""

from __future__ import annotations

import sys
from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from ragllava.cli.options import JOB_ID, as_time, connected, json_option, print_json, print_table

if TYPE_CHECKING:
    from ragllava.client import Client


@click.group()
def jobs() -> None:
    """List, show and steer jobs."""


@jobs.command("list")
@click.option("--limit", default=20, show_default=True, type=click.IntRange(1), help="At most so many.")
@click.option("--open", "only_open", is_flag=True, help="Only jobs that have not ended.")
@json_option
def list_jobs(limit: int, only_open: bool, as_json: bool) -> None:
    """The newest jobs first."""
    from rich.table import Table

    from ragllava.cli.progress import outcomes

    with connected() as client:
        found = client.jobs.list(limit=limit, only_open=only_open)
    if as_json:
        print_json([job.as_json() for job in found])
        return
    if not found:
        click.echo("no open job" if only_open else "no job yet; `ragllava ingest` and `ragllava submit` make them")
        return
    table = Table("job", "kind", "archive", "state", "done", "of", "outcomes", box=None)
    for job in found:
        done, total = str(job.progress.done), str(job.progress.total)
        table.add_row(str(job.job_id), job.kind.value, job.archive, job.state.value, done, total, outcomes(job))
    print_table(table)
    if len(found) == limit:
        click.echo(f"the newest {limit}; --limit shows more", err=True)


@jobs.command("show")
@click.argument("job_id", type=JOB_ID)
@json_option
def show_job(job_id: int, as_json: bool) -> None:
    """One job, with the shards that run or went wrong."""
    from ragllava.cli.progress import (
        outbox_line,
        outcome_line,
        pace_line,
        reindexing_line,
        task_lines,
        training_line,
    )
    from ragllava.client.reporting import refresh_line

    with connected() as client:
        job = client.jobs.get(job_id)
        troubles = client.jobs.troubled_shards(job_id)
    if as_json:
        print_json(job.as_json() | {"shards": [asdict(shard) for shard in troubles]})
        return
    click.echo(outcome_line(job))
    for line in (training_line(job), reindexing_line(job), refresh_line(job), pace_line(job), outbox_line(job)):
        if line is not None:
            click.echo(line)
    for line in task_lines(job):
        click.echo(line)
    for name in ("created_at", "started_at", "finished_at"):
        click.echo(f"{name:<12} {as_time(getattr(job, name))}")
    for shard in troubles:
        click.echo(
            f"shard {shard.shard_id} {shard.state.value}, inputs {shard.lo} to {shard.hi - 1}, "
            f"attempt {shard.attempts}, worker {shard.worker or '-'}" + (f": {shard.error}" if shard.error else "")
        )


@jobs.command()
@click.argument("job_id", type=JOB_ID)
def cancel(job_id: int) -> None:
    """Stop a job; its answers so far stay."""
    with connected() as client:
        client.jobs.cancel(job_id)
        click.echo(f"job {job_id} is {client.jobs.get(job_id).state.value}")


@jobs.command()
@click.argument("job_id", type=JOB_ID)
def pause(job_id: int) -> None:
    """Let nothing new of a job begin."""
    with connected() as client:
        client.jobs.pause(job_id)
    click.echo(f"job {job_id} is paused; `ragllava jobs resume {job_id}` lets it go on")


@jobs.command()
@click.argument("job_id", type=JOB_ID)
def resume(job_id: int) -> None:
    """Let a paused job go on."""
    with connected() as client:
        client.jobs.resume(job_id)
    click.echo(f"job {job_id} goes on")


@jobs.command()
@click.argument("job_id", type=JOB_ID)
def retry(job_id: int) -> None:
    """Try the failed, dead and cancelled inputs of an ended job again."""
    with connected() as client:
        number = client.jobs.retry(job_id)
    click.echo(f"job {job_id}: {number} inputs are tried again" if number else f"job {job_id}: nothing to retry")


@jobs.command()
@click.argument("job_id", type=JOB_ID)
@click.option("--dry-run", is_flag=True, help="Only tell how many questions would be asked again, and why.")
@click.option("--wait", is_flag=True, help="Wait for the new job, with a progress bar.")
@json_option
def refresh(job_id: int, dry_run: bool, wait: bool, as_json: bool) -> None:
    """Ask the questions of an ended job again for which something has changed since, in a new job.

    The other answers are taken over. --dry-run retrieves on this machine, which needs the retriever for it.
    """
    from rich.console import Console

    from ragllava.cli.progress import inputs, outcome_line, wait_or_leave, warn_without_worker
    from ragllava.client import is_success
    from ragllava.client.reporting import refresh_line

    with connected() as client:
        if dry_run:
            _plan(client, job_id, as_json)
            return
        refreshing = client.questions.refresh(job_id)
        new_id, is_new = refreshing.job_id, refreshing.is_new
        warn_without_worker(client, "query")
        if wait:
            job = wait_or_leave(client, new_id, f"refreshing job {job_id}", Console(stderr=as_json))
        else:
            job = client.jobs.get(new_id)
    if as_json:
        print_json(job.as_json() | {"is_new": is_new})
    elif wait:
        click.echo(outcome_line(job))
        click.echo(refresh_line(job))
        click.echo(f"answers: ragllava results {new_id} -o answers.jsonl")
    else:
        what = "queued" if is_new else "does that already"
        click.echo(f"job {new_id} {what}: {inputs(job)}; `ragllava jobs show {new_id}` tells how far it is")
    sys.exit(0 if not wait or is_success(job.state) else 1)


def _plan(client: Client, job_id: int, as_json: bool) -> None:
    from rich.console import Console

    from ragllava.cli.progress import bars
    from ragllava.client.reporting import reasons
    from ragllava.errors import JobRefused, ModelUnavailable

    with bars(Console(stderr=True)) as progress:
        task = progress.add_task(f"comparing job {job_id}", total=None, note="")
        try:
            plan = client.questions.plan_refresh(
                job_id, lambda done, total: progress.update(task, completed=done, total=total)
            )
        except (JobRefused, ModelUnavailable) as error:
            error.add_note("--dry-run needs the archive's retriever on this machine; without it the workers compare")
            raise
    if as_json:
        print_json(plan.as_json())
        return
    click.echo(f"job {job_id}: {plan.asked_again} questions would be asked again{reasons(plan.because)}")
    click.echo(f"{plan.unchanged} answers would be taken over")
    if plan.without_answer:
        click.echo(f"{plan.without_answer} lines have none: `ragllava jobs retry {job_id}` is for those")
