"""`ragllava jobs …`: show jobs, stop, pause, retry, refresh and remove them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from ragllava.cli.options import (
    as_time,
    connected,
    dry_run_option,
    job_argument,
    json_option,
    print_result,
    print_rows,
    wait_option,
    yes_option,
)
from ragllava.cli.terminal import echo

if TYPE_CHECKING:
    from ragllava.client import Client


@click.group()
def jobs() -> None:
    """List, show, stop, pause, retry, refresh and remove jobs."""


@jobs.command("list")
@click.option("--limit", default=20, show_default=True, type=click.IntRange(1), help="How many jobs at most.")
@click.option("--open", "only_open", is_flag=True, help="Only jobs that have not ended.")
@json_option
def list_jobs(limit: int, only_open: bool, as_json: bool) -> None:
    """The newest jobs first."""
    from ragllava.cli.progress import outcomes

    none = "no open job" if only_open else "no job yet; `ragllava ingest` and `ragllava submit` make jobs"
    with connected() as client:
        newest = client.jobs.list(limit=limit, only_open=only_open)
    rows = (
        (job.job_id, job.kind, job.archive, job.state_text, job.progress.done, job.progress.total, outcomes(job))
        for job in newest
    )
    print_rows(newest, ("job", "kind", "archive", "state", "done", "of", "outcomes"), rows, as_json, none=none)
    if len(newest) == limit and not as_json:
        echo(f"these are the newest {limit} jobs; --limit shows more", err=True)


@jobs.command("show")
@job_argument
@json_option
def show_job(job_id: int, as_json: bool) -> None:
    """One job, with its shards that run, failed or are dead."""
    from ragllava.cli.progress import detail_lines, outcome_line

    with connected() as client:
        job = client.jobs.get(job_id)
        troubles = client.jobs.troubled_shards(job_id)
    times = [f"{name:<12} {as_time(getattr(job, name))}" for name in ("created_at", "started_at", "finished_at")]
    shards = [
        f"shard {shard.shard_id} {shard.state.value}, inputs {shard.lo} to {shard.hi - 1}, "
        f"attempt {shard.attempts}, worker {shard.worker or '-'}" + (f": {shard.error}" if shard.error else "")
        for shard in troubles
    ]
    lines = [outcome_line(job), *detail_lines(job), *times, *shards]
    print_result(job.as_json() | {"shards": troubles}, lines, as_json)


@jobs.command()
@job_argument
def cancel(job_id: int) -> None:
    """Stop a job; its answers so far stay."""
    with connected() as client:
        client.jobs.cancel(job_id)
        echo(f"job {job_id} is {client.jobs.get(job_id).state.value}")


@jobs.command()
@job_argument
def pause(job_id: int) -> None:
    """Stop dispatching shards of a job."""
    with connected() as client:
        client.jobs.pause(job_id)
    echo(f"job {job_id} is paused; `ragllava jobs resume {job_id}` continues it")


@jobs.command()
@job_argument
def resume(job_id: int) -> None:
    """Continue a paused job."""
    with connected() as client:
        client.jobs.resume(job_id)
    echo(f"job {job_id} is running again")


@jobs.command()
@job_argument
def retry(job_id: int) -> None:
    """Try the failed, dead and cancelled inputs of an ended job again."""
    with connected() as client:
        number = client.jobs.retry(job_id)
    echo(f"job {job_id}: {number} inputs are tried again" if number else f"job {job_id}: nothing to retry")


@jobs.command("remove")
@job_argument
@dry_run_option
@yes_option
@json_option
def remove_job(job_id: int, dry_run: bool, yes: bool, as_json: bool) -> None:
    """Erase a job that has ended, with its inputs, answers, labels, noisy cases and result files.

    Pictures that an ingest job brought stay in their archive. --dry-run shows what would go, and what stays.
    """
    from ragllava.cli.removals import remove

    with connected() as client:
        remove(lambda planned: client.jobs.remove(job_id, dry_run=planned), dry_run=dry_run, yes=yes, as_json=as_json)


@jobs.command()
@job_argument
@click.option("--dry-run", is_flag=True, help="Only show how many questions would be asked again, and why.")
@wait_option
@json_option
def refresh(job_id: int, dry_run: bool, wait: bool, as_json: bool) -> None:
    """Ask those questions of an ended job again for which something has changed since, in a new job.

    The other answers are taken over. --dry-run retrieves on this machine, so the retriever must be here.
    """
    from ragllava.cli.progress import follow

    with connected() as client:
        if dry_run:
            _plan(client, job_id, as_json)
            return
        new_id, is_new = client.questions.refresh(job_id)
        state = "queued" if is_new else "refreshes it already"
        title = f"refreshing job {job_id}"
        follow(client, new_id, title, wait=wait, as_json=as_json, state=state, is_new=is_new)


def _plan(client: Client, job_id: int, as_json: bool) -> None:
    from ragllava.cli.progress import bar
    from ragllava.client.reporting import reasons
    from ragllava.errors import JobRefused, ModelUnavailable

    with bar(f"comparing job {job_id}") as update:
        try:
            plan = client.questions.plan_refresh(job_id, lambda done, total: update(completed=done, total=total))
        except (JobRefused, ModelUnavailable) as error:
            error.add_note("--dry-run needs the archive's retriever here; without --dry-run the workers compare")
            raise
    lines = [
        f"job {job_id}: {plan.asked_again} questions would be asked again{reasons(plan.because)}",
        f"{plan.unchanged} answers would be taken over",
    ]
    if plan.without_answer:
        lines.append(f"{plan.without_answer} lines have no answer: `ragllava jobs retry {job_id}` tries them again")
    print_result(plan, lines, as_json)
