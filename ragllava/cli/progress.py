"""Waiting for a job with a progress bar."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from ragllava.client import Client
from ragllava.jobs.control import JobView


@contextmanager
def bars(console: Console) -> Iterator[Progress]:
    """Progress bars on a terminal; on anything else nothing until the caller prints."""
    columns = (
        TextColumn("{task.description:<24}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        yield progress


def wait_with_bar(client: Client, job_id: int, title: str, console: Console) -> JobView:
    """Wait until the job has ended, drawing its progress; Ctrl-C leaves the job running."""
    with bars(console) as progress:
        task = progress.add_task(title, total=None, note="")

        def show(job: JobView) -> None:
            note = ", ".join(f"{number} {status}" for status, number in sorted(job.progress.by_status.items()))
            progress.update(task, total=job.progress.total, completed=job.progress.done, note=note)

        return client.wait(job_id, on_progress=show)


def outcome_line(job: JobView) -> str:
    """`job 3 completed: 1000 files: 990 stored, 10 duplicate`."""
    noun = {"ingest": "files", "answer": "questions"}[job.kind.value]
    counts = ", ".join(f"{number} {status}" for status, number in sorted(job.progress.by_status.items()))
    error = f" ({job.error})" if job.error else ""
    return f"job {job.job_id} {job.state.value}: {job.progress.total} {noun}: {counts or 'none'}{error}"
