"""`ragllava jobs …`: show jobs, stop, pause, retry and refresh them."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from ragllava.cli.options import JOB_ID, as_time, connected, json_option, print_json, print_table

if TYPE_CHECKING:
    from ragllava.client import Client


@click.group()
def jobs() -> None:
    """List, show, stop, pause, retry and refresh jobs."""


@jobs.command("list")
@click.option("--limit", default=20, show_default=True, type=click.IntRange(1), help="How many jobs at most.")
@click.option("--open", "only_open", is_flag=True, help="Only jobs that have not ended.")
@json_option
def list_jobs(limit: int, only_open: bool, as_json: bool) -> None:
    """The newest jobs first."""
    from rich.table import Table

    from ragllava.cli.progress import outcomes

    with connected() as client:
        newest = client.jobs.list(limit=limit, only_open=only_open)
    if as_json:
        print_json([job.as_json() for job in newest])
        return
    if not newest:
        click.echo("no open job" if only_open else "no job yet; `ragllava ingest` and `ragllava submit` make jobs")
        return
    table = Table("job", "kind", "archive", "state", "done", "of", "outcomes", box=None)
    for job in newest:
        done, total = str(job.progress.done), str(job.progress.total)
        table.add_row(str(job.job_id), job.kind, job.archive, job.state.value, done, total, outcomes(job))
    print_table(table)
    if len(newest) == limit:
        click.echo(f"these are the newest {limit} jobs; --limit shows more", err=True)


@jobs.command("show")
@click.argument("job_id", type=JOB_ID)
@json_option
def show_job(job_id: int, as_json: bool) -> None:
    """One job, with its shards that run, failed or are dead."""
    from ragllava.cli.progress import detail_lines, outcome_line

    with connected() as client:
        job = client.jobs.get(job_id)
        troubles = client.jobs.troubled_shards(job_id)
    if as_json:
        print_json(job.as_json() | {"shards": [asdict(shard) for shard in troubles]})
        return
    for line in (outcome_line(job), *detail_lines(job)):
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
    """Stop dispatching shards of a job."""
    with connected() as client:
        client.jobs.pause(job_id)
    click.echo(f"job {job_id} is paused; `ragllava jobs resume {job_id}` continues it")


@jobs.command()
@click.argument("job_id", type=JOB_ID)
def resume(job_id: int) -> None:
    """Continue a paused job."""
    with connected() as client:
        client.jobs.resume(job_id)
    click.echo(f"job {job_id} is running again")


@jobs.command()
@click.argument("job_id", type=JOB_ID)
def retry(job_id: int) -> None:
    """Try the failed, dead and cancelled inputs of an ended job again."""
    with connected() as client:
        number = client.jobs.retry(job_id)
    click.echo(f"job {job_id}: {number} inputs are tried again" if number else f"job {job_id}: nothing to retry")


@jobs.command()
@click.argument("job_id", type=JOB_ID)
@click.option("--dry-run", is_flag=True, help="Only show how many questions would be asked again, and why.")
@click.option("--wait", is_flag=True, help="Wait for the new job, with a progress bar.")
@json_option
def refresh(job_id: int, dry_run: bool, wait: bool, as_json: bool) -> None:
    """Ask those questions of an ended job again for which something has changed since, in a new job.

    The other answers are taken over. --dry-run retrieves on this machine, so the retriever must be here.
    """
    from ragllava.cli.following import exit_after, follow, queued_line
    from ragllava.cli.progress import outcome_line
    from ragllava.client.reporting import refresh_line

    with connected() as client:
        if dry_run:
            _plan(client, job_id, as_json)
            return
        queued = client.questions.refresh(job_id)
        job = follow(client, queued.job_id, f"refreshing job {job_id}", "query", wait=wait, as_json=as_json)
    if as_json:
        print_json(job.as_json() | {"is_new": queued.is_new})
    elif wait:
        click.echo(outcome_line(job))
        click.echo(refresh_line(job))
        click.echo(f"answers: ragllava results {job.job_id} -o answers.jsonl")
    else:
        click.echo(queued_line(job, "queued" if queued.is_new else "refreshes it already"))
    exit_after(job, wait=wait)


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
            error.add_note("--dry-run needs the archive's retriever here; without --dry-run the workers compare")
            raise
    if as_json:
        print_json(plan.as_json())
        return
    click.echo(f"job {job_id}: {plan.asked_again} questions would be asked again{reasons(plan.because)}")
    click.echo(f"{plan.unchanged} answers would be taken over")
    if plan.without_answer:
        click.echo(f"{plan.without_answer} lines have no answer: `ragllava jobs retry {job_id}` tries them again")
