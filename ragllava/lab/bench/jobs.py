"""Jobs of the benchmark: a sample archive of real pictures, question files, and how long a job takes."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ragllava.errors import JobRefused
from ragllava.jobs.states import JobState
from ragllava.json_records import write_json_lines
from ragllava.lab.bench.workload import Workload
from ragllava.postcards.archive import draw_archive, write_archive
from ragllava.records import AnswerOptions, Depth, Retrieval

if TYPE_CHECKING:
    from ragllava.client import Client

SAMPLE = "bench-postcards"
# Every candidate is reranked, so that the work of a question is the same on all archives.
OPTIONS = AnswerOptions(retrieval=Retrieval.PICTURE, depth=Depth.FIXED)
_POLL_S = 0.1  # the largest delay until the end of a job is noticed


def sample_questions(workload: Workload) -> list[str]:
    """`job_questions` questions about the archive `SAMPLE`, which the workers ingest unless it exists."""
    client = workload.require_client()
    drawn = draw_archive(workload.seed, workload.images, workload.job_questions, two_image_share=0.2)
    folder = client.settings.home / "bench" / SAMPLE
    if not folder.exists():
        workload.progress(f"ingesting {workload.images} postcards")
        written = write_archive(folder, drawn)
        wait(client, client.archives.ingest([written.pictures], SAMPLE, written.captions).job_id)
    return [question.text for question in drawn.questions]


def write_questions(client: Client, name: str, texts: Sequence[str]) -> Path:
    """Write a question file with these questions; returns its path."""
    path = client.settings.home / "bench" / f"{name}.jsonl"
    write_json_lines(({"custom_id": f"q-{number}", "question": text} for number, text in enumerate(texts)), path)
    return path


def run_job(client: Client, path: Path, archive_name: str) -> tuple[float, int]:
    """Seconds from the submit of a question file to the end of its job, and the job's id."""
    began = time.perf_counter()
    job_id = client.questions.submit(path, archive_name, OPTIONS).job_id
    wait(client, job_id)
    return time.perf_counter() - began, job_id


def wait(client: Client, job_id: int) -> None:
    """Wait for a job. Raises JobRefused if it does not complete: its time would have no meaning."""
    job = client.jobs.wait(job_id, poll_s=_POLL_S)
    if job.state is not JobState.COMPLETED:
        raise JobRefused(f"a job of the benchmark ended as {job.state}: {job.error or job.progress.by_status}")
