"""What people do with jobs: create, view, cancel, pause, resume, retry."""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Row, Select, case, func, literal, select, update
from sqlalchemy.dialects.postgresql import insert

from ragllava import tracing
from ragllava.errors import Conflict, KeyReused, NotFound
from ragllava.jobs import totalling
from ragllava.jobs.closing import close_job_if_ended
from ragllava.jobs.deadlines import NO_LIMITS, JobLimits
from ragllava.jobs.kinds import KINDS, JobDetail, details_of, kind_of
from ragllava.jobs.locking import lock_job
from ragllava.jobs.queue import Lease, hand_back, insert_shards, unqueue
from ragllava.jobs.standing import jobs_before
from ragllava.jobs.states import FINAL_JOB_STATES, JobState, ShardState
from ragllava.jobs.stopping import ENDED_AT_ONCE, end_waiting_shards, stop_waiting_shards
from ragllava.records import JobKind, Progress
from ragllava.settings import Settings
from ragllava.stores.access.usage import require_room
from ragllava.stores.archives.archive import get_archive
from ragllava.stores.archives.reindex_items import ReindexingView
from ragllava.stores.database import equals_any, records, seconds
from ragllava.stores.jobs import workers
from ragllava.stores.jobs.refreshes import RefreshView
from ragllava.stores.learning.trainings import TrainingView
from ragllava.stores.maintenance.tasks import TaskView
from ragllava.stores.schema import archives, jobs, shards
from ragllava.stores.schema import workers as workers_table
from ragllava.stores.sessions import OWNER

ASKED = "ask"  # the `input` of a job that is a single question
WITH_PICTURES = "pictures"  # in the spec of a job of which a question was asked with a picture
ALL_ARCHIVES = "*"  # no archive can have this name


@dataclass(frozen=True, slots=True)
class NewJob:
    """A job to be created.

    `content_digest` covers what was asked for: it distinguishes a repeated submit from another one under the same key.
    `archive_id` None is for maintenance tasks that concern all archives.
    `last_on` names a queue: then the last input is a shard of its own there, dispatched when all others have ended.
    `name` is what a person calls it. `estimate` is what is expected of it, as JSON.
    """

    kind: str
    archive_id: int | None
    spec: dict[str, Any]
    total: int
    per_shard: int
    priority: int = 0
    idempotency_key: str | None = None
    content_digest: str = ""
    last_on: str | None = None
    name: str | None = None
    limits: JobLimits = NO_LIMITS
    estimate: dict[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class JobView:
    """A job as people see it. `archive` is `*` for a maintenance task that concerns all archives.

    `name` is what a person called it, `owner` who queued it, as user@machine; None: not known.

    `jobs_before` counts the jobs that are served before the first shard of one that has not started; None for others.
    `deadline_at` and `max_gpu_s` are its limits, `estimate` is what was expected when it was made, and `timing` what
    came out when it ended first. `detail` is what only its kind has; for the kinds that ship, `training`, `reindexing`,
    `task` and `refresh` give it with its type.
    """

    job_id: int
    kind: str
    archive: str
    state: JobState
    priority: int
    spec: dict[str, Any]
    progress: Progress
    error: str | None
    result: dict[str, Any] | None
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    detail: JobDetail | None = None
    name: str | None = None
    owner: str | None = None
    jobs_before: int | None = None
    deadline_at: datetime | None = None
    max_gpu_s: float | None = None
    estimate: dict[str, Any] | None = None
    timing: dict[str, Any] | None = None

    @property
    def file(self) -> str | None:
        """What it was made from, as its owner named it: a question file, or the paths of pictures."""
        given = self.spec.get("input")
        return given if isinstance(given, str) else None

    @property
    def title(self) -> str | None:
        """Its name, else its file."""
        return self.name or self.file

    @property
    def state_text(self) -> str:
        """The state for people: of a job that has not started, how many jobs are served before it."""
        if self.jobs_before is None:
            return self.state.value
        if self.jobs_before == 0:
            return "waiting, next in turn"
        return f"waiting, {self.jobs_before} {'job' if self.jobs_before == 1 else 'jobs'} before it"

    @property
    def training(self) -> TrainingView | None:
        """Set for a train job."""
        return self.detail if isinstance(self.detail, TrainingView) else None

    @property
    def refresh(self) -> RefreshView | None:
        """Set for an answer job that refreshes another."""
        return self.detail if isinstance(self.detail, RefreshView) else None

    @property
    def reindexing(self) -> ReindexingView | None:
        """Set for a reindex job."""
        return self.detail if isinstance(self.detail, ReindexingView) else None

    @property
    def task(self) -> TaskView | None:
        """Set for a maintenance job."""
        return self.detail if isinstance(self.detail, TaskView) else None

    @property
    def is_final(self) -> bool:
        """The job has ended, and only a retry changes that."""
        return self.state in FINAL_JOB_STATES

    def detail_json(self) -> dict[str, Any]:
        """The detail under the key of its kind; empty without one."""
        return {kind_of(self.kind).detail_key: self.detail.as_json()} if self.detail else {}

    def as_json(self) -> dict[str, Any]:
        """For `--json`."""
        names = ("created_at", "started_at", "finished_at", "deadline_at")
        times = {name: getattr(self, name) for name in names}
        return {
            "job": self.job_id,
            "kind": self.kind,
            "name": self.name,
            "file": self.file,
            "archive": self.archive,
            "owner": self.owner,
            "state": self.state.value,
            "priority": self.priority,
            "jobs_before": self.jobs_before,
            "total": self.progress.total,
            "counts": self.progress.by_status,
            "error": self.error,
            "result": self.result,
            **{name: time.isoformat() if time else None for name, time in times.items()},
            "max_gpu_s": self.max_gpu_s,
            "estimate": self.estimate,
            "timing": self.timing,
            **self.detail_json(),
        }


@dataclass(frozen=True, slots=True)
class ShardView:
    """A shard that runs, failed or is dead."""

    shard_id: int
    state: ShardState
    lo: int
    hi: int
    attempts: int
    worker: str | None
    error: str | None


def create(connection: Connection, new: NewJob) -> tuple[int, bool]:
    """Create the job and its shards; returns its id and whether it is new.

    Raises QuotaExceeded if the session's caller may have no more jobs open. With an idempotency key that exists
    already, nothing is created and the existing id returned; UsageError if that job has another content. Of two
    submits at once with the same key, the second waits for the first. ValueError for limits of a kind whose inputs
    cannot expire.
    """
    if new.limits != NO_LIMITS and "expired" not in list(kind_of(new.kind).statuses):
        raise ValueError(f"a job of the kind {new.kind} has no limits: its inputs cannot expire")
    digest = hashlib.sha256(json.dumps([new.kind, new.archive_id, new.content_digest]).encode()).hexdigest()
    same_columns = ("kind", "archive_id", "priority", "spec", "total", "idempotency_key", "name")
    row = {name: getattr(new, name) for name in same_columns} | {"state": JobState.RUNNING, "spec_digest": digest}
    row |= {"estimate": new.estimate, "max_gpu_s": new.limits.max_gpu_s, "deadline_at": new.limits.at}
    if new.limits.within_s is not None:
        row["deadline_at"] = func.now() + seconds(new.limits.within_s)
    row["trace"] = tracing.context()
    row["owner"] = func.nullif(func.current_setting(OWNER, True), "")
    created = insert(jobs).values(row).on_conflict_do_nothing(index_elements=["idempotency_key"]).returning(jobs.c.id)
    job_id = connection.scalar(created)
    if job_id is None:
        of_key = select(jobs.c.id, jobs.c.spec_digest).where(jobs.c.idempotency_key == new.idempotency_key)
        existing = connection.execute(of_key).one()
        if existing.spec_digest != digest:
            raise KeyReused(
                f"idempotency key {new.idempotency_key!r} belongs to job {existing.id}, which has another content; "
                "use a new key"
            )
        return int(existing.id), False
    end = new.total - 1 if new.last_on else new.total
    bounds = [(lo, min(lo + new.per_shard, end)) for lo in range(0, end, new.per_shard)]
    insert_shards(connection, job_id, 1, bounds)
    if new.last_on:
        insert_shards(connection, job_id, 1, [(end, new.total)], queue=new.last_on, is_last=True)
    require_room(connection)
    return int(job_id), True


def view(connection: Connection, job_id: int) -> JobView:
    """One job with its counts. Raises UsageError for an unknown id."""
    for shown in views(connection, [job_id]):
        return shown
    raise _unknown_job(job_id)


def views(connection: Connection, job_ids: Collection[int]) -> list[JobView]:
    """Jobs with their counts, by id; those that do not exist are left out."""
    query = _select_jobs().where(equals_any(jobs.c.id, job_ids)).order_by(jobs.c.id)
    return _as_views(connection, connection.execute(query).all())


def has_ended(connection: Connection, job_id: int) -> bool:
    """Whether a job has ended: JobView.is_final without the rest of the view. Raises UsageError for an unknown id."""
    state = connection.scalar(select(jobs.c.state).where(jobs.c.id == job_id))
    if state is None:
        raise _unknown_job(job_id)
    return JobState(state) in FINAL_JOB_STATES


def archive_of(connection: Connection, job_id: int) -> str | None:
    """The name of a job's archive; None for a job of all archives, and for an unknown one."""
    named = select(archives.c.name).join_from(jobs, archives, archives.c.id == jobs.c.archive_id)
    return connection.scalar(named.where(jobs.c.id == job_id))


def kind_of_job(connection: Connection, job_id: int) -> str | None:
    """The kind of a job; None for an unknown one."""
    return connection.scalar(select(jobs.c.kind).where(jobs.c.id == job_id))


def asks_with_pictures(connection: Connection, job_id: int) -> bool:
    """Whether a question of this answer job was asked with a picture."""
    return bool(connection.scalar(select(jobs.c.spec.has_key(WITH_PICTURES)).where(jobs.c.id == job_id)))


def find_job(connection: Connection, idempotency_key: str) -> int | None:
    """The job that was made under this key, None when there is none."""
    return connection.scalar(select(jobs.c.id).where(jobs.c.idempotency_key == idempotency_key))


def list_jobs(
    connection: Connection,
    *,
    limit: int = 50,
    only_open: bool = False,
    archive: str | None = None,
    kind: str | None = None,
    state: str | None = None,
    before: int | None = None,
) -> list[JobView]:
    """The newest first, of one archive, kind and state if these are given, and older than the job `before`.

    Raises UsageError for an unknown archive.
    """
    query = _select_jobs().order_by(jobs.c.id.desc()).limit(limit)
    if only_open:
        query = query.where(jobs.c.finished_at.is_(None))
    if archive is not None:
        query = query.where(jobs.c.archive_id == get_archive(connection, archive).archive_id)
    if kind is not None:
        query = query.where(jobs.c.kind == kind)
    elif not only_open:  # requests are many, and gone soon
        query = query.where(jobs.c.kind != JobKind.REQUEST)
    if state is not None:
        query = query.where(jobs.c.state == state)
    if before is not None:
        query = query.where(jobs.c.id < before)
    return _as_views(connection, connection.execute(query).all())


def latest(connection: Connection, kind: str | None = None) -> int:
    """The newest job of a kind, else of all kinds but maintenance and requests; a single question does not count.

    Raises UsageError when there is none.
    """
    query = select(func.max(jobs.c.id)).where(func.coalesce(jobs.c.spec["input"].astext, "") != ASKED)
    of_its_own = (JobKind.MAINTENANCE, JobKind.REQUEST)
    query = query.where(jobs.c.kind == kind if kind else jobs.c.kind.not_in(of_its_own))
    job_id = connection.scalar(query)
    if job_id is None:
        raise NotFound(f"there is no {kind + ' ' if kind else ''}job yet; `ragllava jobs list` shows all")
    return int(job_id)


def troubled_shards(connection: Connection, job_id: int) -> list[ShardView]:
    """Shards that run, failed or are dead, with the reason."""
    query = select(shards.c.id.label("shard_id"), shards).where(
        shards.c.job_id == job_id,
        (shards.c.error.is_not(None)) | (shards.c.state.in_([ShardState.RUNNING, ShardState.DEAD])),
        shards.c.state.not_in([ShardState.DONE, ShardState.CANCELLED]),
    )
    return records(ShardView, connection.execute(query.order_by(shards.c.lo, shards.c.id)))


def cancel(connection: Connection, job_id: int) -> None:
    """Stop a job: its running shards stop at their next sub-batch. Outcomes stay.

    The waiting shards of a small job are cancelled now; those of a large one by `end_job` (jobs/ending.py), after the
    commit: the job's row must not be locked meanwhile.
    """
    total = _move(connection, job_id, (JobState.RUNNING, JobState.PAUSED), JobState.CANCELLING, "cancelled")
    if total <= ENDED_AT_ONCE:
        while stop_waiting_shards(connection, job_id):
            pass
        close_job_if_ended(connection, job_id)


def pause(connection: Connection, job_id: int) -> None:
    """Stop dispatching shards of a job; running ones are handed back at their next sub-batch."""
    _move(connection, job_id, (JobState.RUNNING,), JobState.PAUSED, "paused")
    unqueue(connection, shards.c.job_id == job_id)


def resume(connection: Connection, job_id: int) -> None:
    """Continue a paused job."""
    _move(connection, job_id, (JobState.PAUSED,), JobState.RUNNING, "resumed")


def retry(connection: Connection, job_id: int, per_shard: int) -> int:
    """Try the failed, dead, expired and cancelled inputs of an ended job again in a new run; returns how many there
    are.

    Inputs that were invalid from the start stay as they are. Earlier answers are kept under their own run. The new run
    has no deadline and no budget. Raises UsageError for an unknown job, for one that has not ended, and for a training
    while another one of its role is open.
    """
    name = connection.scalar(select(jobs.c.kind).where(jobs.c.id == job_id))
    if name is None:
        raise _unknown_job(job_id)
    kind = kind_of(name)
    if kind.guard_retry is not None:
        kind.guard_retry(connection, job_id)
    workers.forget_refusals(connection, job_id)  # workers before the job, as they are locked when one refuses it
    job = _locked(connection, job_id)
    if job.finished_at is None:
        raise Conflict(f"job {job_id} is {job.state}; only an ended job can be retried")
    last_run = connection.execute(select(func.max(shards.c.run_no)).where(shards.c.job_id == job_id)).scalar_one()
    run_no = (last_run or 0) + 1
    numbers = kind.inputs.reopen(connection, job_id, run_no, kind.retried)
    if not numbers:
        return 0
    last = connection.execute(  # the shard that waited for all others in the first run, if the job has one
        select(shards).where(shards.c.job_id == job_id, shards.c.is_last).order_by(shards.c.id).limit(1)
    ).one_or_none()
    others = [number for number in numbers if last is None or number != last.lo]
    chunks = [others[i : i + per_shard] for i in range(0, len(others), per_shard)]
    insert_shards(connection, job_id, run_no, [(chunk[0], chunk[-1] + 1) for chunk in chunks])
    if last is not None and len(others) < len(numbers):
        insert_shards(connection, job_id, run_no, [(last.lo, last.hi)], queue=last.queue, is_last=True)
    nothing = dict.fromkeys(("finished_at", "result", "counts", "error", "deadline_at", "max_gpu_s"))
    reopened = nothing | {"state": JobState.RUNNING, "counted": totalling.counted_so_far(job)}
    connection.execute(update(jobs).where(jobs.c.id == job_id).values(reopened))
    require_room(connection)
    return len(numbers)


def jobs_without_result(connection: Connection) -> list[int]:
    """Ended jobs whose result is not stored yet, oldest first."""
    query = select(jobs.c.id).where(jobs.c.finished_at.is_not(None), jobs.c.result.is_(None))
    return list(connection.scalars(query.order_by(jobs.c.id)))


def set_result(connection: Connection, job: JobView, result: dict[str, Any]) -> None:
    """Store the result of an ended job; `job` is what it was before the result was made.

    If the job was retried meanwhile, the result belongs to an earlier run: then none is stored, and if the new run has
    ended too, the next tick makes a new one.
    """
    of_this_run = case((jobs.c.finished_at == job.finished_at, literal(result, jobs.c.result.type)))
    ended = update(jobs).where(jobs.c.id == job.job_id, jobs.c.finished_at.is_not(None))
    connection.execute(ended.values(result=of_this_run))


def fail_unreconciled(connection: Connection, job: JobView, problem: str) -> None:
    """Set an ended job whose counts do not add up to `failed`, unless it was retried meanwhile."""
    if job.is_final:
        same_run = update(jobs).where(jobs.c.id == job.job_id, jobs.c.finished_at == job.finished_at)
        connection.execute(same_run.values(state=JobState.FAILED, error=problem))


@dataclass(frozen=True, slots=True)
class Refused:
    """A job whose shard was passed on; `has_ended`: no other worker can do it."""

    job_id: int
    kind: str
    reason: str
    has_ended: bool


def refuse(connection: Connection, lease: Lease, reason: str, settings: Settings) -> bool:
    """A worker cannot do a job (its index belongs to another retriever, …): leave the job to the other workers.

    The shard is handed back, and this worker claims none of the job any more. When no other live worker is left that
    may be able to do it, the job ends with the reason. Nothing happens when the lease is lost. Returns whether the job
    ends; the waiting shards of a large one are left to `end_refused` (jobs/ending.py), after the commit.
    """
    if not hand_back(connection, lease):
        return False
    is_worker = workers.note_refusal(connection, lease.worker, lease.job_id, reason)
    if is_worker and _can_anyone_else(connection, lease.job_id, lease.shard_id, settings):
        return False
    _refuse_job(connection, lease.job_id, lease.kind, reason)
    return True


def pass_on(connection: Connection, shard_id: int, worker: str, settings: Settings) -> Refused | None:
    """The part of `ending.pass_on` that is one transaction; None if the worker has not refused the shard's job."""
    row = connection.execute(
        select(shards.c.job_id, jobs.c.kind, workers_table.c.refused)
        .join(jobs, jobs.c.id == shards.c.job_id)
        .join(workers_table, workers_table.c.name == worker)
        .where(shards.c.id == shard_id, shards.c.state == ShardState.QUEUED, workers.has_refused(shards.c.job_id))
    ).one_or_none()
    if row is None:
        return None
    reason = row.refused[str(row.job_id)]
    has_ended = not _can_anyone_else(connection, row.job_id, shard_id, settings)
    if has_ended:
        lock_job(connection, row.job_id)
        _refuse_job(connection, row.job_id, row.kind, reason)
    else:
        unqueue(connection, shards.c.id == shard_id)
    return Refused(row.job_id, row.kind, reason, has_ended)


def _can_anyone_else(connection: Connection, job_id: int, shard_id: int, settings: Settings) -> bool:
    """Whether another worker may do the job, or one that was seen lately and may return."""
    query = select(jobs.c.kind, shards.c.queue).join(shards).where(shards.c.id == shard_id)
    row = connection.execute(query).one()
    within_s = max(3 * settings.tick_s, settings.lease_s)
    return workers.can_anyone_else(connection, job_id, row.queue or kind_of(row.kind).queue, within_s)


def _refuse_job(connection: Connection, job_id: int, kind: str, reason: str) -> None:
    refused = update(jobs).where(jobs.c.id == job_id).values(error=reason)
    if connection.execute(refused.returning(jobs.c.total)).scalar_one() <= ENDED_AT_ONCE:
        while end_waiting_shards(connection, job_id, kind_of(kind).refused, reason):
            pass
        close_job_if_ended(connection, job_id)


def _move(connection: Connection, job_id: int, allowed: tuple[JobState, ...], to: JobState, verb: str) -> int:
    """Set the job's state, unless it has it already; returns the number of its inputs."""
    job = _locked(connection, job_id)
    if job.state != to:
        if job.state not in allowed:
            raise Conflict(f"job {job_id} is {job.state} and cannot be {verb}")
        connection.execute(update(jobs).where(jobs.c.id == job_id).values(state=to))
    return int(job.total)


def _locked(connection: Connection, job_id: int) -> Row[Any]:
    job = lock_job(connection, job_id)
    if job is None:
        raise _unknown_job(job_id)
    return job


def _unknown_job(job_id: int) -> NotFound:
    return NotFound(f"there is no job {job_id}; `ragllava jobs list` shows all")


def _select_jobs() -> Select[Any]:
    """The columns that a JobView takes as they are, and its state."""
    texts = ("kind", "name", "owner", "state", "priority", "spec", "error", "result", "estimate", "timing", "max_gpu_s")
    names = (*texts, "created_at", "started_at", "finished_at", "deadline_at")
    archive = func.coalesce(archives.c.name, ALL_ARCHIVES).label("archive")
    columns = (jobs.c.id.label("job_id"), archive, jobs.c.total, jobs.c.counts, *(jobs.c[name] for name in names))
    return select(*columns).outerjoin_from(jobs, archives, archives.c.id == jobs.c.archive_id)


def _as_views(connection: Connection, rows: Sequence[Row[Any]]) -> list[JobView]:
    has_waiting = any(row.state == JobState.RUNNING and row.started_at is None for row in rows)
    before = jobs_before(connection) if has_waiting else {}
    counts = _counts_of_open(connection, rows)
    details = details_of(connection, ((row.job_id, row.kind, row.spec) for row in rows))
    return [_as_view(row, before.get(row.job_id), counts.get(row.job_id, {}), details.get(row.job_id)) for row in rows]


def _counts_of_open(connection: Connection, rows: Sequence[Row[Any]]) -> dict[int, dict[str, int]]:
    """Of the jobs that have not ended; those of a kind of a newer version are left out: it alone can count them."""
    totals: dict[str, dict[int, int]] = defaultdict(dict)
    for row in rows:
        if row.counts is None and row.kind in KINDS:
            totals[row.kind][row.job_id] = row.total
    counts: dict[int, dict[str, int]] = {}
    for kind, of_kind in totals.items():
        counts |= KINDS[kind].inputs.count_many(connection, of_kind)
    return counts


def _as_view(
    row: Row[Any], jobs_before: int | None, counts_so_far: dict[str, int], detail: JobDetail | None
) -> JobView:
    values = dict(row._mapping)
    values["state"] = JobState(row.state)
    total, counts = values.pop("total"), values.pop("counts")
    values["progress"] = Progress(total, counts_so_far if counts is None else counts)
    return JobView(**values, detail=detail, jobs_before=jobs_before)
