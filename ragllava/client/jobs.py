"""Jobs: their progress, and what a user can do with them."""

from __future__ import annotations

import time
from collections.abc import Callable

from ragllava.client.base import BaseClient
from ragllava.errors import UsageError
from ragllava.jobs import control
from ragllava.jobs.control import JobView, ShardView
from ragllava.jobs.kinds import kind_of
from ragllava.jobs.states import JobState
from ragllava.records import JobKind
from ragllava.stores.database import read_at_once
from ragllava.stores.jobs import workers
from ragllava.stores.jobs.workers import WorkerView

# Pauses between two looks at a job grow with the time waited: the end of a short job is seen at once, and a long job
# is not asked for all the time. Each look reads one row by its key. A listener is notified, and looks only to be sure.
_PAUSE_SHARE = 0.03
_SHORTEST_PAUSE_S = 0.008
_LISTENING_PAUSE_S = 0.05


class JobClient(BaseClient):
    """What concerns jobs of every kind, and the workers."""

    def job(self, job_id: int) -> JobView:
        """One job. Raises UsageError for an unknown id."""
        return self._do(control.view, job_id)

    def jobs(self, *, limit: int = 50, only_open: bool = False) -> list[JobView]:
        """The newest jobs first."""
        return self._do(control.list_jobs, limit=limit, only_open=only_open)

    def troubles(self, job_id: int) -> list[ShardView]:
        """The shards of a job that run, failed or are dead, with the reason."""
        return self._do(control.troubled_shards, job_id)

    def cancel(self, job_id: int) -> None:
        """Stop a job; its outcomes so far stay."""
        self._do(control.cancel, job_id)

    def pause(self, job_id: int) -> None:
        """Stop dispatching shards of a job."""
        self._do(control.pause, job_id)

    def resume(self, job_id: int) -> None:
        """Continue a paused job."""
        self._do(control.resume, job_id)
        self._dispatch()

    def retry(self, job_id: int) -> int:
        """Try the failed, dead and cancelled inputs of an ended job again; returns how many."""
        kind = kind_of(self.job(job_id).kind)
        number = self._do(control.retry, job_id, kind.per_shard(self.settings))
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
        """Wait until a job has ended, or for `timeout_s`; the view returned says which.

        `on_progress` is given a view every `poll_s`, and the last one. The end of a short job is seen within
        milliseconds, that of a long one within `poll_s`. Raises UsageError for an unknown id.
        """
        began = next_view = time.monotonic()
        with self._job_ends.listening(job_id) as listen:
            shortest = _SHORTEST_PAUSE_S if listen is None else _LISTENING_PAUSE_S
            while not read_at_once(self.engine, control.has_ended, job_id):
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

    def workers(self) -> list[WorkerView]:
        """All registered workers."""
        return self._do(workers.list_workers)

    def _require_answers(self, job_id: int) -> JobView:
        job = self.job(job_id)
        if job.kind != JobKind.ANSWER:
            article = "an" if job.kind[0] in "aeiou" else "a"
            raise UsageError(
                f"job {job_id} is {article} {job.kind} job and has no answers; see `ragllava jobs show {job_id}`"
            )
        return job


def is_success(state: JobState) -> bool:
    """Whether a command that waited for a job should exit with 0: at least one input succeeded."""
    return state in (JobState.COMPLETED, JobState.COMPLETED_WITH_ERRORS)
