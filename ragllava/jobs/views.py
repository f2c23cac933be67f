"""Jobs as people see them: one, many, the newest, and what is asked about one."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Row, Select, func, select

from ragllava.errors import NotFound
from ragllava.jobs.kinds import KINDS, JobDetail, details_of, kind_of
from ragllava.jobs.standing import jobs_before
from ragllava.jobs.states import FINAL_JOB_STATES, JobState, ShardState
from ragllava.records import JobKind, Progress
from ragllava.stores.archives.archive import get_archive
from ragllava.stores.archives.reindex_items import ReindexingView
from ragllava.stores.database import equals_any, records
from ragllava.stores.jobs.refreshes import RefreshView
from ragllava.stores.learning.trainings import TrainingView
from ragllava.stores.maintenance.tasks import TaskView
from ragllava.stores.schema import archives, jobs, shards

ASKED = "ask"  # the `input` of a job that is a single question
WITH_PICTURES = "pictures"  # in the spec of a job of which a question was asked with a picture
ALL_ARCHIVES = "*"  # no archive can have this name


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


def view(connection: Connection, job_id: int) -> JobView:
    """One job with its counts. Raises UsageError for an unknown id."""
    for shown in views(connection, [job_id]):
        return shown
    raise unknown_job(job_id)


def views(connection: Connection, job_ids: Collection[int]) -> list[JobView]:
    """Jobs with their counts, by id; those that do not exist are left out."""
    query = _select_jobs().where(equals_any(jobs.c.id, job_ids)).order_by(jobs.c.id)
    return _as_views(connection, connection.execute(query).all())


def has_ended(connection: Connection, job_id: int) -> bool:
    """Whether a job has ended: JobView.is_final without the rest of the view. Raises UsageError for an unknown id."""
    state = connection.scalar(select(jobs.c.state).where(jobs.c.id == job_id))
    if state is None:
        raise unknown_job(job_id)
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


def jobs_without_result(connection: Connection) -> list[int]:
    """Ended jobs whose result is not stored yet, oldest first."""
    query = select(jobs.c.id).where(jobs.c.finished_at.is_not(None), jobs.c.result.is_(None))
    return list(connection.scalars(query.order_by(jobs.c.id)))


def unknown_job(job_id: int) -> NotFound:
    """The error of a job that does not exist."""
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
