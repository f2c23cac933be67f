"""`ragllava jobs …`: look at jobs and steer them."""

from __future__ import annotations

from dataclasses import asdict

import click

from ragllava.cli.options import JOB_ID, as_time, connected, json_option, print_json, print_table


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
        found = client.jobs(limit=limit, only_open=only_open)
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


@jobs.command("show")
@click.argument("job_id", type=JOB_ID)
@json_option
def show_job(job_id: int, as_json: bool) -> None:
    """One job, with the shards that run or went wrong."""
    from ragllava.cli.progress import chore_lines, outcome_line, training_line

    with connected() as client:
        job = client.job(job_id)
        troubles = client.troubles(job_id)
    if as_json:
        print_json(job.as_json() | {"shards": [asdict(shard) for shard in troubles]})
        return
    click.echo(outcome_line(job))
    training = training_line(job)
    if training is not None:
        click.echo(training)
    for line in chore_lines(job):
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
        client.cancel(job_id)
        click.echo(f"job {job_id} is {client.job(job_id).state.value}")


@jobs.command()
@click.argument("job_id", type=JOB_ID)
def pause(job_id: int) -> None:
    """Let nothing new of a job begin."""
    with connected() as client:
        client.pause(job_id)
    click.echo(f"job {job_id} is paused; `ragllava jobs resume {job_id}` lets it go on")


@jobs.command()
@click.argument("job_id", type=JOB_ID)
def resume(job_id: int) -> None:
    """Let a paused job go on."""
    with connected() as client:
        client.resume(job_id)
    click.echo(f"job {job_id} goes on")


@jobs.command()
@click.argument("job_id", type=JOB_ID)
def retry(job_id: int) -> None:
    """Try the failed, dead and cancelled inputs of an ended job again."""
    with connected() as client:
        number = client.retry(job_id)
    click.echo(f"job {job_id}: {number} inputs are tried again" if number else f"job {job_id}: nothing to retry")
