"""Jobs: how far they are, and what one can do about them."""

from __future__ import annotations

import time
from collections.abc import Callable

from ragllava.client.base import BaseClient
from ragllava.errors import UsageError
from ragllava.jobs import control
from ragllava.jobs.control import JobView, ShardView
from ragllava.jobs.states import JobState
from ragllava.records import JobKind
from ragllava.stores import presence
from ragllava.stores.presence import WorkerView


class JobClient(BaseClient):
    """What concerns jobs of every kind, and those who work on them."""

    def job(self, job_id: int) -> JobView:
        """One job. Raises UsageError for an unknown id."""
        return self._do(lambda c: control.view(c, job_id))

    def jobs(self, *, limit: int = 50, only_open: bool = False) -> list[JobView]:
        """The newest jobs first."""
        return self._do(lambda c: control.list_jobs(c, limit=limit, only_open=only_open))

    def troubles(self, job_id: int) -> list[ShardView]:
        """The shards of a job that run or went wrong, with the reason."""
        return self._do(lambda c: control.troubled_shards(c, job_id))

    def cancel(self, job_id: int) -> None:
        """Stop a job; answers that are there stay."""
        self._do(lambda c: control.cancel(c, job_id))

    def pause(self, job_id: int) -> None:
        """Let nothing new of a job begin."""
        self._do(lambda c: control.pause(c, job_id))

    def resume(self, job_id: int) -> None:
        """Let a paused job go on."""
        self._do(lambda c: control.resume(c, job_id))
        self._dispatch()

    def retry(self, job_id: int) -> int:
        """Try the failed, dead and cancelled inputs of an ended job again; returns how many."""
        per_shard = {
            JobKind.ANSWER: self.settings.questions_per_shard,
            JobKind.INGEST: self.settings.files_per_shard,
            JobKind.TRAIN: 1,
            JobKind.REINDEX: self.settings.files_per_shard,
            JobKind.CHORE: 1,
        }[self.job(job_id).kind]
        number = self._do(lambda c: control.retry(c, job_id, per_shard))
        self._dispatch()
        return number

    def wait(
        self,
        job_id: int,
        *,
        on_progress: Callable[[JobView], None] | None = None,
        timeout_s: float | None = None,
        poll_s: float = 0.5,
    ) -> JobView:
        """Wait until a job has ended, or until `timeout_s`; the view returned says which."""
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        while True:
            job = self.job(job_id)
            if on_progress is not None:
                on_progress(job)
            if job.is_final or (deadline is not None and time.monotonic() > deadline):
                return job
            time.sleep(poll_s)

    def workers(self) -> list[WorkerView]:
        """All known workers."""
        return self._do(presence.list_workers)

    def _require_answers(self, job_id: int) -> JobView:
        job = self.job(job_id)
        if job.kind != JobKind.ANSWER:
            article = "an" if job.kind is JobKind.INGEST else "a"
            raise UsageError(
                f"job {job_id} is {article} {job.kind} job and has no answers; see `ragllava jobs show {job_id}`"
            )
        return job


def is_success(state: JobState) -> bool:
    """Whether a command that waited for a job should exit with 0: at least one input succeeded."""
    return state in (JobState.COMPLETED, JobState.COMPLETED_WITH_ERRORS)
