"""Jobs of the bench: a sample archive of real pictures, question files, and how long a job takes."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from ragllava.errors import JobRefused
from ragllava.jobs.states import JobState
from ragllava.json_records import write_json_lines
from ragllava.lab.bench.workload import System, Workload
from ragllava.postcards.archive import KnownQuestion, draw_archive, write_archive

SAMPLE = "bench-postcards"
POLL_S = 0.1  # a job's end is seen this late at most


def sample_archive(workload: Workload) -> tuple[KnownQuestion, ...]:
    """The `job_questions` questions on the archive `SAMPLE`, which the workers ingest when it is not there yet."""
    system = workload.require_system()
    drawn = draw_archive(workload.seed, workload.images, workload.job_questions, two_image_share=0.2)
    folder = system.settings.home / "bench" / SAMPLE
    if not folder.exists():
        workload.progress(f"ingesting {workload.images} postcards")
        written = write_archive(folder, drawn)
        job_id = system.client.archives.ingest([written.pictures], SAMPLE, written.captions).job_id
        wait(system, job_id)
    return drawn.questions


def write_questions(system: System, name: str, texts: Sequence[str]) -> Path:
    """A question file with these questions."""
    path = system.settings.home / "bench" / f"{name}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = ({"custom_id": f"q-{number}", "question": text} for number, text in enumerate(texts))
    write_json_lines(lines, path)
    return path


def run_job(system: System, path: Path, archive_name: str) -> tuple[float, int]:
    """Seconds from the submit of a question file to the end of its job, and the job."""
    began = time.perf_counter()
    job_id = system.client.questions.submit(path, archive_name).job_id
    wait(system, job_id)
    return time.perf_counter() - began, job_id


def wait(system: System, job_id: int) -> None:
    """Wait for a job. Raises JobRefused when it does not complete: its time would mean nothing."""
    job = system.client.jobs.wait(job_id, poll_s=POLL_S)
    if job.state is not JobState.COMPLETED:
        raise JobRefused(f"a job of the bench ended as {job.state}: {job.error or job.progress.by_status}")
