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
from ragllava.stores.database import read_at_once
from ragllava.stores.jobs import workers
from ragllava.stores.jobs.workers import WorkerView

# Between two looks at a job: in proportion to what was waited already, so that short jobs are not kept and long ones
# not asked for all the time. Each look is one row by its key. Who listens is told, and looks only to be sure.
_PAUSE_SHARE = 0.03
_SHORTEST_PAUSE_S = 0.008
_LISTENING_PAUSE_S = 0.05


class JobClient(BaseClient):
    """What concerns jobs of every kind, and those who work on them."""

    def job(self, job_id: int) -> JobView:
        """One job. Raises UsageError for an unknown id."""
        return self._do(control.view, job_id)

    def jobs(self, *, limit: int = 50, only_open: bool = False) -> list[JobView]:
        """The newest jobs first."""
        return self._do(control.list_jobs, limit=limit, only_open=only_open)

    def troubles(self, job_id: int) -> list[ShardView]:
        """The shards of a job that run or went wrong, with the reason."""
        return self._do(control.troubled_shards, job_id)

    def cancel(self, job_id: int) -> None:
        """Stop a job; answers that are there stay."""
        self._do(control.cancel, job_id)

    def pause(self, job_id: int) -> None:
        """Let nothing new of a job begin."""
        self._do(control.pause, job_id)

    def resume(self, job_id: int) -> None:
        """Let a paused job go on."""
        self._do(control.resume, job_id)
        self._dispatch()

    def retry(self, job_id: int) -> int:
        """Try the failed, dead and cancelled inputs of an ended job again; returns how many."""
        per_shard = {
            JobKind.ANSWER: self.settings.questions_per_shard,
            JobKind.INGEST: self.settings.files_per_shard,
            JobKind.TRAIN: 1,
            JobKind.REINDEX: self.settings.files_per_shard,
            JobKind.MAINTENANCE: 1,
        }[self.job(job_id).kind]
        number = self._do(control.retry, job_id, per_shard)
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
        """Wait until a job has ended, or until `timeout_s`; the view returned says which.

        `on_progress` is given a view every `poll_s`, and the last one. A job that took a short time is seen to end
        within milliseconds, a long one within `poll_s`. Raises UsageError for an unknown id.
        """
        began = next_view = time.monotonic()
        with self._job_ends.listening(job_id) as listen:
            shortest = _SHORTEST_PAUSE_S if listen is None else _LISTENING_PAUSE_S
            while not self._has_ended(job_id):
                now = time.monotonic()
                if timeout_s is not None and now - began > timeout_s:
                    break
                if on_progress is not None and now >= next_view:
                    on_progress(self.job(job_id))
                    next_view = now + poll_s
                (listen or time.sleep)(min(poll_s, max(shortest, (now - began) * _PAUSE_SHARE)))
        job = self.job(job_id)
        if on_progress is not None:
            on_progress(job)
        return job

    def _has_ended(self, job_id: int) -> bool:
        return read_at_once(self.engine, control.has_ended, job_id)

    def workers(self) -> list[WorkerView]:
        """All known workers."""
        return self._do(workers.list_workers)

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
