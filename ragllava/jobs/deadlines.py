"""What limits a job: a deadline, and a budget of the seconds that workers are busy with it. What has no outcome when
one of them is reached ends as `expired`.

Deadlines are times of the database's clock. Busy seconds are measured by each worker with a clock that only counts
forward, and added up in the rows of the shards; of a job with a budget in its own row, too.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, tzinfo

from sqlalchemy import Connection, text, update

from ragllava.errors import UsageError
from ragllava.jobs.locking import lock_job
from ragllava.jobs.states import JobState
from ragllava.stores.schema import jobs

_UNITS_S = {"d": 86_400.0, "h": 3_600.0, "m": 60.0, "s": 1.0}
_DURATION = re.compile(r"(?:(\d{1,4})d)?(?:(\d{1,5})h)?(?:(\d{1,6})m)?(?:(\d{1,8})s)?")
_CLOCK = re.compile(r"\d{1,2}:\d{2}")
LONGEST_S = 366 * 86_400.0
_LONGEST_LOOK_S = 15.0
_OFTEN_S = 0.2  # between two looks at a budget that is nearly used up
_SHARDS_READ = 200  # that wait, of a job, for one look at what is left of it
_EXPIRABLE = (JobState.RUNNING, JobState.PAUSED)


@dataclass(frozen=True, slots=True)
class JobLimits:
    """Until when a job may run, as a time (`at`) or in seconds from its submit (`within_s`), and for how many seconds
    workers may be busy with it, all together. None: no limit."""

    at: datetime | None = None
    within_s: float | None = None
    max_gpu_s: float | None = None


NO_LIMITS = JobLimits()


@dataclass(frozen=True, slots=True)
class Remaining:
    """What is left of the limits of a job, in seconds (None: no such limit); `running` counts its shards that run."""

    left_s: float | None
    gpu_left_s: float | None
    running: int

    @property
    def is_over(self) -> bool:
        """Whether a limit is reached."""
        return any(left is not None and left <= 0 for left in (self.left_s, self.gpu_left_s))

    @property
    def next_look_s(self) -> float:
        """After how many seconds a limit may be reached; a budget is looked at twice as often as it could be."""
        budget_s = None if self.gpu_left_s is None else max(_OFTEN_S, self.gpu_left_s / (2 * max(1, self.running)))
        looks = [left for left in (self.left_s, budget_s) if left is not None]
        return min([_LONGEST_LOOK_S, *looks])


@dataclass(frozen=True, slots=True)
class Room(Remaining):
    """What is left of the limits of a job, and of its work.

    `waiting` counts the inputs of shards that wait, `beside` those of shards that other workers run; `owners` the
    owners of jobs of its kind that have shards in flight.
    """

    waiting: int
    beside: int
    owners: int


def parse_limits(deadline: str | None, max_gpu_s: float | None, zone: tzinfo | None = UTC) -> JobLimits:
    """A deadline as people write it, and a budget: `90s`, `45m`, `2h`, `1h30m`, `3d`, `18:00`, or ISO 8601.

    `zone` holds for times without one; None is that of this machine. `18:00` is the next such time. Raises UsageError.
    """
    if max_gpu_s is not None and not 0 < max_gpu_s <= LONGEST_S:
        raise UsageError(f"max_gpu_seconds must be more than 0 and at most {LONGEST_S:.0f}, not {max_gpu_s:g}")
    if deadline is None or not deadline.strip():
        return JobLimits(max_gpu_s=max_gpu_s)
    stated = deadline.strip()
    match = _DURATION.fullmatch(stated.lower().replace(" ", ""))
    if match is not None:
        length_s = sum(
            int(number or 0) * unit_s for number, unit_s in zip(match.groups(), _UNITS_S.values(), strict=True)
        )
        if not 0 < length_s <= LONGEST_S:
            raise UsageError(f"deadline: {stated[:40]!r} is not a time from 1s to 366d")
        return JobLimits(within_s=length_s, max_gpu_s=max_gpu_s)
    return JobLimits(at=_moment(stated, zone), max_gpu_s=max_gpu_s)


def _moment(stated: str, zone: tzinfo | None) -> datetime:
    now = datetime.now(zone).astimezone(zone)
    try:
        if _CLOCK.fullmatch(stated):
            hours, minutes = map(int, stated.split(":"))
            today = now.replace(hour=hours, minute=minutes, second=0, microsecond=0)
            return today if today > now else today + timedelta(days=1)
        moment = datetime.fromisoformat(stated)
    except ValueError:
        raise UsageError(
            f"deadline: {stated[:40]!r} is neither a duration, such as 2h or 1h30m, nor a time, such as 18:00 or "
            "2027-01-31T18:00"
        ) from None
    moment = moment if moment.tzinfo else (moment.replace(tzinfo=zone) if zone else moment.astimezone())
    if moment <= now:
        raise UsageError(f"deadline: {stated[:40]} is over already")
    return moment


def remaining_of(connection: Connection, job_id: int) -> Remaining:
    """What is left of the limits of a job, without a look at the shards that wait or have ended; of a job that is gone
    nothing."""
    row = connection.execute(_REMAINING, {"job_id": job_id}).one_or_none()
    return Remaining(0.0, None, 0) if row is None else Remaining(**row._mapping)


def room_of(connection: Connection, job_id: int, shard_id: int | None = None) -> Room:
    """What is left to a job, seen from one of its shards; of a job that is gone nothing.

    Reads few of its shards, however many wait.
    """
    row = connection.execute(_ROOM, {"job_id": job_id, "shard_id": shard_id}).one_or_none()
    return Room(0.0, None, 0, 0, 0, 1) if row is None else Room(**row._mapping)


def due_jobs(connection: Connection) -> list[int]:
    """Open jobs that have reached a limit, oldest first."""
    return list(connection.scalars(_DUE))


def expire_if_due(connection: Connection, job_id: int, deadline_at: datetime | None = None) -> bool:
    """Let a job stop if it has reached a limit; whether it does. Its waiting shards are left to jobs/ending.py.

    With `deadline_at`, the job has this deadline from now on.
    """
    job = lock_job(connection, job_id)
    if job is None or job.state not in _EXPIRABLE:
        return job is not None and job.state == JobState.EXPIRING
    if deadline_at is not None and deadline_at != job.deadline_at:
        changed = update(jobs).where(jobs.c.id == job_id).values(deadline_at=deadline_at)
        job = connection.execute(changed.returning(jobs)).one()
    remaining = remaining_of(connection, job_id)
    if not remaining.is_over:
        return False
    if remaining.left_s is not None and remaining.left_s <= 0:
        reason = f"the deadline, {job.deadline_at.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC, was over"
    else:
        reason = f"the budget of {job.max_gpu_s:g} GPU seconds was used up"
    expiring = {"state": JobState.EXPIRING, "error": reason}
    connection.execute(update(jobs).where(jobs.c.id == job_id).values(expiring))
    return True


# Of a job with a budget, its row has the sum of its shards (queue.heartbeat).
_LEFT = """
    CAST(extract(epoch FROM j.deadline_at - clock_timestamp()) AS double precision) AS left_s,
    j.max_gpu_s - j.busy_s AS gpu_left_s
"""
_REMAINING = text(f"""
    SELECT {_LEFT}, (SELECT count(*) FROM shards s WHERE s.job_id = j.id AND s.state = 'running') AS running
    FROM jobs j WHERE j.id = :job_id
""")  # noqa: S608 - no foreign text
# `waiting`: the first pending shards are read, and behind them all inputs up to the end of the last one count. That is
# exact for shards that wait in the order in which they are handed out, however many there are.
_ROOM = text(f"""
    SELECT {_LEFT}, r.running, CAST(r.beside AS bigint) AS beside,
        CAST(q.inputs + coalesce(p.inputs + p.last_hi - p.hi, 0) AS bigint) AS waiting,
        (SELECT greatest(1, count(DISTINCT coalesce(o.owner, CAST(o.id AS text)))) FROM jobs o
         JOIN shards t ON t.job_id = o.id AND t.state IN ('queued', 'running')
         WHERE o.finished_at IS NULL AND o.kind = j.kind AND o.priority = j.priority) AS owners
    FROM jobs j,
        LATERAL (SELECT count(*) AS running,
                 coalesce(sum(s.hi - s.lo) FILTER (WHERE s.id <> coalesce(:shard_id, 0)), 0) AS beside
                 FROM shards s WHERE s.job_id = j.id AND s.state = 'running') r,
        LATERAL (SELECT coalesce(sum(s.hi - s.lo), 0) AS inputs
                 FROM shards s WHERE s.job_id = j.id AND s.state = 'queued') q,
        LATERAL (SELECT sum(f.hi - f.lo) AS inputs, max(f.hi) AS hi,
                 (SELECT s.hi FROM shards s WHERE s.job_id = j.id AND s.state = 'pending'
                  ORDER BY s.lo DESC LIMIT 1) AS last_hi
                 FROM (SELECT s.lo, s.hi FROM shards s WHERE s.job_id = j.id AND s.state = 'pending'
                       ORDER BY s.lo LIMIT {_SHARDS_READ}) f) p
    WHERE j.id = :job_id
""")  # noqa: S608 - no foreign text
_DUE = text("""
    SELECT j.id FROM jobs j WHERE j.finished_at IS NULL AND j.state IN ('running', 'paused')
        AND (j.deadline_at <= clock_timestamp() OR j.max_gpu_s <= j.busy_s) ORDER BY j.id
""")
