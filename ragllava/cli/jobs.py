"""`ragllava jobs …`: show jobs, stop, pause, retry, refresh and remove them."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Any

import click

from ragllava.cli.options import (
    JOB_ID,
    Commands,
    EnumChoice,
    NumberRange,
    as_time,
    connected,
    dry_run_option,
    job_argument,
    job_number,
    json_option,
    print_result,
    print_rows,
    wait_option,
    yes_option,
)
from ragllava.cli.terminal import echo, make_console
from ragllava.jobs.states import JobState
from ragllava.records import JobKind

if TYPE_CHECKING:
    from ragllava.client import Client


@click.group(cls=Commands)
def jobs() -> None:
    """List, show, await, stop, pause, retry, refresh and remove jobs; `latest` stands for a number."""


@jobs.command("list")
@click.option("--limit", default=20, show_default=True, type=click.IntRange(1), help="How many jobs at most.")
@click.option("--open", "only_open", is_flag=True, help="Only jobs that have not ended.")
@click.option("--archive", metavar="NAME", help="Only jobs of this archive.")
@click.option("--kind", type=EnumChoice(JobKind), help="Only jobs of this kind.")
@click.option("--state", type=EnumChoice(JobState), help="Only jobs in this state.")
@json_option
def list_jobs(limit: int, only_open: bool, as_json: bool, **only: Any) -> None:
    """The newest jobs first."""
    from ragllava.cli.progress import outcomes

    is_filtered = only_open or any(only.values())
    none = "no such job" if is_filtered else "no job yet; `ragllava ingest` and `ragllava submit` make jobs"
    with connected() as client:
        newest = client.jobs.list(limit=limit, only_open=only_open, **only)
    columns = ("job", "name", "kind", "archive", "state", "done", "of", "outcomes", "owner", "created")
    rows = (
        (
            job.job_id,
            job.title,
            job.kind,
            job.archive,
            job.state_text,
            job.progress.done,
            job.progress.total,
            outcomes(job),
            job.owner,
            as_time(job.created_at),
        )
        for job in newest
    )
    print_rows(newest, columns, rows, as_json, none=none)
    if len(newest) == limit and not as_json:
        echo(f"these are the newest {limit} jobs; --limit shows more", err=True)


@jobs.command("show")
@job_argument
@json_option
def show_job(job_id: int, as_json: bool) -> None:
    """One job, with its shards that run, failed or are dead."""
    from ragllava.cli.progress import detail_lines, outcome_line
    from ragllava.client.reporting import estimate_line

    with connected() as client:
        job = client.jobs.get(job_id)
        troubles = client.jobs.troubled_shards(job_id)
    times = [f"{name:<12} {as_time(getattr(job, name))}" for name in ("created_at", "started_at", "finished_at")]
    shards = [
        f"shard {shard.shard_id} {shard.state.value}, inputs {shard.lo} to {shard.hi - 1}, "
        f"attempt {shard.attempts}, worker {shard.worker or '-'}" + (f": {shard.error}" if shard.error else "")
        for shard in troubles
    ]
    facts = ("name", "file", "archive", "owner")
    named = [f"{name:<12} {getattr(job, name)}" for name in facts if getattr(job, name) is not None]
    estimate = estimate_line(job)
    lines = [outcome_line(job), *detail_lines(job), *([estimate] if estimate else []), *named, *times, *shards]
    print_result(job.as_json() | {"shards": troubles}, lines, as_json)


@jobs.command("wait")
@click.argument("job_ids", metavar="JOB_ID...", nargs=-1, required=True, type=JOB_ID)
@click.option(
    "--timeout",
    "timeout_s",
    type=NumberRange(min=0, min_open=True),
    help="Seconds to wait for all of them together.  [default: no limit]",
)
@json_option
def wait_for_jobs(job_ids: tuple[int | str, ...], timeout_s: float | None, as_json: bool) -> None:
    """Wait until jobs have ended.

    Exit code 0 when an input of each of them succeeded, 1 when a job failed or was cancelled, 3 when the time is over.
    """
    from ragllava.cli.progress import outcome_line, wait_or_leave
    from ragllava.client import is_success

    began = time.monotonic()
    with connected() as client:
        ended = [client.jobs.get(job_number(job_id)) for job_id in job_ids]  # an unknown one is an error at once
        for number, job in enumerate(ended):
            left = None if timeout_s is None else max(0.0, timeout_s - (time.monotonic() - began))
            title = f"{job.kind} job {job.job_id}"
            ended[number] = wait_or_leave(client, job.job_id, title, make_console(stderr=True), timeout_s=left)
    print_result(ended, map(outcome_line, ended), as_json)
    if not all(job.is_final for job in ended):
        sys.exit(3)
    sys.exit(0 if all(is_success(job.state) for job in ended) else 1)


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
    """Try the failed, dead, expired and cancelled inputs of an ended job again."""
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
