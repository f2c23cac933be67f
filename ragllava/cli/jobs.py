"""`ragllava jobs …`: look at jobs and steer them."""

from __future__ import annotations

from dataclasses import asdict

import click

from ragllava.cli.options import connected, json_option, print_json


@click.group()
def jobs() -> None:
    """List, show and steer jobs."""


@jobs.command("list")
@click.option("--limit", default=20, show_default=True, type=click.IntRange(1))
@click.option("--open", "only_open", is_flag=True, help="Only jobs that have not ended.")
@json_option
def list_jobs(limit: int, only_open: bool, as_json: bool) -> None:
    """The newest jobs first."""
    from rich.console import Console
    from rich.table import Table

    with connected() as client:
        found = client.jobs(limit=limit, only_open=only_open)
    if as_json:
        print_json([job.as_json() for job in found])
        return
    table = Table("job", "kind", "archive", "state", "done", "of", "outcomes", box=None)
    for job in found:
        counts = ", ".join(f"{number} {status}" for status, number in sorted(job.progress.by_status.items()))
        done, total = str(job.progress.done), str(job.progress.total)
        table.add_row(str(job.job_id), job.kind.value, job.archive, job.state.value, done, total, counts)
    Console().print(table)


@jobs.command("show")
@click.argument("job_id", type=int)
@json_option
def show_job(job_id: int, as_json: bool) -> None:
    """One job, with the shards that run or went wrong."""
    from ragllava.cli.progress import outcome_line

    with connected() as client:
        job = client.job(job_id)
        troubles = client.troubles(job_id)
    if as_json:
        print_json(job.as_json() | {"shards": [asdict(shard) for shard in troubles]})
        return
    click.echo(outcome_line(job))
    for name in ("created_at", "started_at", "finished_at"):
        click.echo(f"{name:<12} {getattr(job, name) or '-'}")
    for shard in troubles:
        click.echo(
            f"shard {shard.shard_id} {shard.state.value}, inputs {shard.lo} to {shard.hi - 1}, "
            f"attempt {shard.attempts}, worker {shard.worker or '-'}: {shard.error or 'no error'}"
        )


@jobs.command()
@click.argument("job_id", type=int)
def cancel(job_id: int) -> None:
    """Stop a job; its answers so far stay."""
    with connected() as client:
        client.cancel(job_id)
        click.echo(f"job {job_id} is {client.job(job_id).state.value}")


@jobs.command()
@click.argument("job_id", type=int)
def pause(job_id: int) -> None:
    """Let nothing new of a job begin."""
    with connected() as client:
        client.pause(job_id)
    click.echo(f"job {job_id} is paused; `ragllava jobs resume {job_id}` lets it go on")


@jobs.command()
@click.argument("job_id", type=int)
def resume(job_id: int) -> None:
    """Let a paused job go on."""
    with connected() as client:
        client.resume(job_id)
    click.echo(f"job {job_id} goes on")


@jobs.command()
@click.argument("job_id", type=int)
def retry(job_id: int) -> None:
    """Try the failed, dead and cancelled inputs of an ended job again."""
    with connected() as client:
        number = client.retry(job_id)
    click.echo(f"job {job_id}: {number} inputs are tried again" if number else f"job {job_id}: nothing to retry")
