"""Jobs of every kind: their state, and how they are controlled."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import datetime

from sqlalchemy import Connection

from ragllava.client.connections import Namespace, forwarded
from ragllava.client.removals import remover
from ragllava.errors import UsageError
from ragllava.jobs import control, views
from ragllava.jobs.ending import end_job
from ragllava.jobs.kinds import kind_of
from ragllava.jobs.states import JobState
from ragllava.jobs.views import JobView
from ragllava.records import JobKind
from ragllava.stages.erasing.remove import Removal
from ragllava.stores.database import read_at_once

Count = Callable[[Connection, int], None]  # of questions, in the transaction that queues them

# Between two looks at a job: in proportion to the time waited so far, so that short jobs are not delayed and long ones
# not queried all the time. Each look is one row by its key. Who is notified looks only to be sure.
_PAUSE_SHARE = 0.03
_SHORTEST_PAUSE_S = 0.008
_LISTENING_PAUSE_S = 0.05
# Of the time that a waiting client lets pass, the part in which the database counts outcomes for it.
_COUNTING_SHARE = 0.05
_CANCELLING_S = 5.0
_LOOK_S = 2.0  # between two looks of who is notified of ends: a notification may get lost


class Jobs(Namespace):
    """Jobs. Each method raises UsageError for an unknown job, and for one whose state does not allow the change."""

    get = forwarded(views.view)
    several = forwarded(views.views)
    troubled_shards = forwarded(views.troubled_shards)
    pause = forwarded(control.pause)

    def latest(self, kind: str | None = None) -> JobView:
        """The newest job of a kind, else of all kinds but maintenance; single questions do not count."""
        return self.get(self._do(views.latest, kind))

    def cancel(self, job_id: int) -> None:
        """Stop a job: its waiting inputs are cancelled, running shards stop soon. Its outcomes so far stay.

        Of a job that takes longer than a few seconds the maintenance worker cancels the rest.
        """
        self._do(control.cancel, job_id)
        end_job(self._connections.engine, job_id, _CANCELLING_S)

    def resume(self, job_id: int) -> None:
        """Dispatch the shards of a paused job again. Raises UsageError for one that is not paused."""
        self._do(control.resume, job_id)
        self._dispatch()

    def retry(self, job_id: int, count: Count | None = None) -> int:
        """Try the failed, dead, expired and cancelled inputs of an ended job again; returns how many.

        Raises UsageError. `count` is called in the same transaction with the number of questions among them; what it
        raises undoes it.
        """
        kind = kind_of(self.get(job_id).kind)
        number = self._do(_retry, job_id, kind.per_shard(self._connections.settings), count)
        self._dispatch()
        return number

    def remove(self, job_id: int, *, dry_run: bool = False) -> Removal:
        """Erase a job that has ended, with its inputs, answers, labels, noisy cases and result files.

        Returns what was erased, or would be. Pictures that an ingest job brought stay. Raises UsageError for an open
        job, and for a training whose model version is there.
        """
        with remover(self._connections) as removing:
            return removing.job(job_id, dry_run=dry_run)

    def wait(
        self,
        job_id: int,
        *,
        on_progress: Callable[[JobView], None] | None = None,
        timeout_s: float | None = None,
        poll_s: float = 0.5,
    ) -> JobView:
        """Wait until a job has ended, or for `timeout_s` seconds; the view that is returned says which.

        `on_progress` is given a view every `poll_s` seconds, less often when counting the outcomes takes long, and the
        last one. The end of a short job is seen within milliseconds, that of a long one within `poll_s`.
        """
        began = next_view = time.monotonic()
        with self._connections.job_ends.listening(job_id) as listen:
            shortest = _SHORTEST_PAUSE_S if listen is None else _LISTENING_PAUSE_S
            while not read_at_once(self._connections.engine, views.has_ended, job_id):
                now = time.monotonic()
                if timeout_s is not None and now - began > timeout_s:
                    break
                if on_progress is not None and now >= next_view:
                    on_progress(self.get(job_id))
                    next_view = now + pause_between_views(time.monotonic() - now, poll_s)
                (listen or time.sleep)(min(poll_s, max(shortest, (now - began) * _PAUSE_SHARE)))
        job = self.get(job_id)
        if on_progress is not None:
            on_progress(job)
        return job

    def has_ended(self, job_id: int, timeout_s: float) -> bool:
        """Wait until a job has ended, for `timeout_s` seconds at most; whether it has. Raises UsageError.

        A server that waits for many jobs at once keeps one session that listens for all of them.
        """
        if not self._connections.for_tenants:
            return self.wait(job_id, timeout_s=timeout_s).is_final
        until, board = time.monotonic() + timeout_s, self._connections.job_board
        with board.awaited(job_id) as ended:
            while not self._do(views.has_ended, job_id):
                left_s = until - time.monotonic()
                if left_s <= 0:
                    return False
                ended.wait(min(left_s, _LOOK_S))
                ended.clear()
        return True

    def require_answers(self, job_id: int) -> JobView:
        """The job, if it is an answer job; else raises UsageError."""
        job = self.get(job_id)
        if job.kind != JobKind.ANSWER:
            article = "an" if job.kind[0] in "aeiou" else "a"
            raise UsageError(
                f"job {job_id} is {article} {job.kind} job and has no answers; see `ragllava jobs show {job_id}`"
            )
        return job

    list = forwarded(views.list_jobs)


def _retry(connection: Connection, job_id: int, per_shard: int, count: Count | None) -> int:
    number = control.retry(connection, job_id, per_shard)
    if count is not None and views.kind_of_job(connection, job_id) == JobKind.ANSWER:
        count(connection, number)
    return number


def pause_between_views(took_s: float, least_s: float) -> float:
    """Seconds from one view of a job to the next for somebody who follows it, when a view took `took_s` seconds.

    A view of a large job counts its outcomes: the database spends at most a twentieth of the time on one follower.
    """
    return max(least_s, took_s / _COUNTING_SHARE)


def is_success(state: JobState) -> bool:
    """Whether a command that waited for a job should exit with 0: at least one input succeeded."""
    return state in (JobState.COMPLETED, JobState.COMPLETED_WITH_ERRORS)


def seconds_left(job: JobView, now: datetime) -> float | None:
    """An estimate: what is left, at the pace since the start. None for a job that has ended, or has no outcome yet."""
    done, total = job.progress.done, job.progress.total
    if job.is_final or job.started_at is None or not done:
        return None
    return round((now - job.started_at).total_seconds() * (total - done) / done, 1)
