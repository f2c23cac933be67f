"""Jobs for people: wait for them with a progress bar, print their state, end a command that has queued one."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import partial
from typing import Any, NoReturn

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from ragllava.cli.options import print_json
from ragllava.cli.progress_lines import Bars, duration, progress_lines
from ragllava.cli.terminal import echo, make_console
from ragllava.client import Client, RefreshView, ReindexingView, TaskView, TrainingView, is_success
from ragllava.client.reporting import limit_lines, refresh_line
from ragllava.jobs.kinds import KINDS, kind_of
from ragllava.jobs.views import JobView
from ragllava.records import JobKind, ReindexStatus


@contextmanager
def bars(console: Console) -> Iterator[Bars]:
    """Progress bars on a terminal; lines on standard error if the console is not a terminal."""
    if not console.is_terminal:
        with progress_lines() as lines:
            yield lines
        return
    columns = (
        TextColumn("{task.description:<24}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, console=console) as progress:
        yield progress


@contextmanager
def bar(title: str, console: Console | None = None) -> Iterator[Callable[..., None]]:
    """One progress bar, on standard error by default; yields a function that sets `completed`, `total` and `note`."""
    with bars(console or make_console(stderr=True, highlight=False)) as progress:
        yield partial(progress.update, progress.add_task(title, total=None, note=""))


def wait_with_bar(
    client: Client, job_id: int, title: str, console: Console, *, timeout_s: float | None = None
) -> JobView:
    """Wait until the job has ended, and draw its progress; that of a training counts steps."""
    with bar(title, console) as update:

        def show(job: JobView) -> None:
            total, done, note = job.progress.total, job.progress.done, outcomes(job)
            if job.training is not None:
                total, done, note = job.training.steps_total, job.training.steps_done, note or job.training.phase
            update(total=total or None, completed=done, note=note)

        return client.jobs.wait(job_id, on_progress=show, timeout_s=timeout_s)


def wait_or_leave(
    client: Client, job_id: int, title: str, console: Console, *, timeout_s: float | None = None
) -> JobView:
    """As `wait_with_bar`; Ctrl-C ends the wait and leaves the job running."""
    with _leaving(job_id):
        return wait_with_bar(client, job_id, title, console, timeout_s=timeout_s)


@contextmanager
def _leaving(job_id: int) -> Iterator[None]:
    """Ctrl-C in the block ends the command, names the job and leaves it running."""
    try:
        yield
    except KeyboardInterrupt:
        echo(
            f"job {job_id} keeps running in the background; `ragllava jobs show {job_id}` shows its progress", err=True
        )
        sys.exit(130)


def warn_about_workers(client: Client, queue: str) -> None:
    """Print that a job will wait, if no worker of its queue is ready, and that workers run another profile."""
    if not any(queue in worker.queues and worker.is_ready for worker in client.system.workers()):
        echo("no worker is ready for this job: it waits until `ragllava up` has started one", err=True)
    problem = client.system.profile_problem()
    if problem is not None:
        echo(f"warning: {problem}", err=True)


def warn_about_archive(client: Client, archive: str) -> None:
    """Print what to know before trusting answers from an archive."""
    for caution in client.archives.cautions(archive):
        echo(f"warning: {caution}", err=True)


def wait_for_ingest(client: Client, archive: str) -> None:
    """Wait until no job adds pictures to an archive; Ctrl-C stops the command before it has queued anything."""
    for job_id in client.archives.open_ingests(archive):
        wait_with_bar(client, job_id, f"ingest into {archive}", make_console(stderr=True))


def follow(
    client: Client,
    job_id: int,
    title: str,
    *,
    wait: bool,
    as_json: bool,
    state: str = "queued",
    has_failed: bool = False,
    **facts: Any,
) -> NoReturn:
    """Print a queued job, after its end if the command waits, and exit; its JSON includes `facts`.

    Exits with 1 when the command waited for a job of which no input succeeded, or whose gate refused the result, and
    when the command itself `has_failed` in a part.
    """
    with _leaving(job_id):
        job = client.jobs.get(job_id)
        warn_about_workers(client, kind_of(job.kind).queue)
        if wait:
            job = wait_with_bar(client, job_id, title, make_console(stderr=as_json))
    if wait and job.kind == JobKind.INGEST and is_success(job.state):
        warn_about_archive(client, job.archive)
    if as_json:
        print_json(job.as_json() | facts)
    elif wait:
        echo("\n".join([outcome_line(job), *detail_lines(job), *_next_steps(job)]))
    else:
        echo(f"job {job_id} {state}: {inputs(job)}; `ragllava jobs show {job_id}` shows its progress")
    refused = job.reindexing is not None and job.reindexing.gate_status is ReindexStatus.REFUSED
    sys.exit(1 if has_failed or (wait and (not is_success(job.state) or refused)) else 0)


def _next_steps(job: JobView) -> Iterator[str]:
    if job.kind == JobKind.ANSWER:
        yield f"answers: ragllava results {job.job_id} -o answers.jsonl"
    if job.kind == JobKind.INGEST and job.progress.by_status.get("rejected"):
        yield f"reasons: ragllava archive show {job.archive} --rejected"


def outcomes(job: JobView) -> str:
    """`10 duplicate, 990 stored`; empty before the first outcome."""
    return ", ".join(f"{number} {status}" for status, number in sorted(job.progress.by_status.items()))


def outcome_line(job: JobView) -> str:
    """`job 3 completed: 1000 files: 990 stored, 10 duplicate`."""
    error = f" ({job.error})" if job.error else ""
    return f"job {job.job_id} {job.state_text}: {inputs(job)}: {outcomes(job) or 'none done yet'}{error}"


def training_line(training: TrainingView) -> str:
    """`reranker: training, 40 of 200 steps`, in the end its reason and version."""
    steps = f", {training.steps_done} of {training.steps_total} steps" if training.steps_total else ""
    if training.status is None:
        return f"{training.role.value}: {training.phase}{steps}"
    version = f": version {training.version}" if training.version else ""
    return f"{training.role.value} {training.status.value}{steps}{version}; {training.reason}"


def outbox_line(job: JobView) -> str | None:
    """Where the results of a file from an inbox are, or why they are not there; None for other jobs."""
    outbox = (job.result or {}).get("outbox")
    if outbox is None:
        return None
    return f"results in {outbox['folder']}" if "folder" in outbox else f"no results in the outbox: {outbox['error']}"


def detail_lines(job: JobView) -> Iterator[str]:
    """What is printed about a job beside its outcome; what only its kind has comes first."""
    match job.detail:
        case TrainingView() as training:
            yield training_line(training)
        case ReindexingView() as reindexing:
            yield from _reindexing_lines(job, reindexing)
        case RefreshView() as refresh:
            yield refresh_line(refresh)
        case TaskView() as task:
            yield f"{task.action.value}: {task.reason or 'not done yet'}"
            yield from (f"  {line}" for line in _as_lines(task.report or {}))
        case detail if detail is not None:
            yield from _as_lines(detail.as_json())
    yield from filter(None, (pace_line(job), *limit_lines(job), outbox_line(job)))


def _as_lines(value: dict[str, Any]) -> Iterator[str]:
    """JSON for people: `name: value`, a line for each item of a list, empty lists left out."""
    for name, inner in value.items():
        if isinstance(inner, dict) and any(isinstance(deeper, dict | list) for deeper in inner.values()):
            yield f"{name}: {_in_line({key: deeper for key, deeper in inner.items() if not isinstance(deeper, list)})}"
            yield from (f"  {line}" for line in _as_lines({k: v for k, v in inner.items() if isinstance(v, list)}))
        elif isinstance(inner, list):
            yield from ([f"{name}:"] if inner else [])
            yield from (f"  {_in_line(item)}" for item in inner)
        else:
            yield f"{name}: {_in_line(inner)}"


def _in_line(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {inner}" for name, inner in value.items())
    return str(value)


def inputs(job: JobView) -> str:
    """`1 file`, `200 questions`, `60 images and the gate`."""
    kind, total = KINDS.get(job.kind), job.progress.total
    if kind is None:
        return f"{_counted(total, 'input')} of a kind that this version does not have"
    return f"{_counted(total - 1, kind.noun)} and {kind.last_noun}" if kind.last_noun else _counted(total, kind.noun)


def _reindexing_lines(job: JobView, reindexing: ReindexingView) -> Iterator[str]:
    """`index 2 switched: 60 of 60 images have their vector …`; nothing before the gate, and where the job's error
    gives the same reason."""
    index = f"index {reindexing.index_id or '-'}"
    if job.error is not None and reindexing.reason == job.error:
        return
    if reindexing.gate_status is not None:
        yield f"{index} {reindexing.gate_status.value}: {reindexing.reason}"
    elif _at_last_input(job):
        yield f"{index}: its gate is next, or measures it now"


def pace_line(job: JobView) -> str | None:
    """`12.5 images a second, about 4 min left`; None before the first outcome, at a gate, and after the end."""
    if job.is_final or job.started_at is None or not job.progress.done or _at_last_input(job):
        return None
    took_s = max((datetime.now(UTC) - job.started_at).total_seconds(), 0.001)
    rate = job.progress.done / took_s
    left_s = (job.progress.total - job.progress.done) / rate
    return f"{rate:.3g} {kind_of(job.kind).noun}s a second, about {duration(left_s)} left"


def _at_last_input(job: JobView) -> bool:
    """Whether only the last input is open and it is not like the others: the pace of these says nothing about it."""
    kind = KINDS.get(job.kind)
    is_other = kind is not None and kind.last_noun is not None
    return is_other and not job.is_final and job.progress.done == job.progress.total - 1


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}" + ("" if number == 1 else "s")
