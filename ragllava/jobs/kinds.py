"""The kinds of job: one record for each.

To add a kind: write an enum of statuses, a table of inputs, a stage (a function that takes a ShardContext) and a record
here. Queue, dispatch, retry, results, `ragllava jobs`, inspection and VACUUM read what they need from the record.
tests/integration/jobs/test_kinds.py adds one.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pkgutil import resolve_name
from typing import Any, Protocol

from sqlalchemy import ColumnElement, Connection, func

from ragllava.errors import UsageError
from ragllava.records import AnswerStatus, JobKind, ReindexStatus, RequestStatus, TaskStatus, TrainingStatus
from ragllava.settings import Settings
from ragllava.source_files import FileStatus
from ragllava.stores.archives import reindex_items
from ragllava.stores.jobs import refreshes
from ragllava.stores.jobs.outcomes import InputTable, JobInputs, QuestionInputs
from ragllava.stores.learning import trainings
from ragllava.stores.maintenance import tasks
from ragllava.stores.schema import files, jobs, maintenance_tasks, reindexed, requests
from ragllava.stores.schema import trainings as trainings_table


class JobDetail(Protocol):
    """What only jobs of one kind have to show: a training's phase, a reindexing's gate, …"""

    def as_json(self) -> dict[str, Any]:
        """For `--json`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """All that differs between kinds of job."""

    # Work
    name: str  # as stored in jobs.kind
    queue: str  # of the workers that run its shards, unless a shard names another
    stage: str | Callable[[Any], None]  # or its address, `module:function`; workers import it before the first shard
    gives_way: bool = False  # its stage lets shards of urgent jobs of its queue run in between
    per_shard: Callable[[Settings], int] = lambda _settings: 1  # inputs, unless the job says otherwise

    # Inputs and how they end
    inputs: JobInputs
    statuses: type[StrEnum]  # has at least DEAD and CANCELLED, which the queue writes
    bad: tuple[StrEnum, ...]  # a job whose inputs all end so has failed; with some of them it has errors
    refused: StrEnum  # how the inputs end when the stage raises JobRefused
    also_retried: tuple[StrEnum, ...] = ()  # by `ragllava jobs retry`, beside the bad and the cancelled ones
    # Called before a retry locks the job's row. Raises UsageError when this job must not run now.
    guard_retry: Callable[[Connection, int], None] | None = None

    # Words for people
    noun: str  # one input: `file`
    last_noun: str | None = None  # the last input, where it is something else than the others

    # What the job shows and leaves
    detail_key: str = "detail"  # in JSON
    # Of jobs of the kind, from their specs by job id; a job without a detail may be left out.
    details: Callable[[Connection, Mapping[int, Mapping[str, Any]]], Mapping[int, JobDetail]] | None = None
    result_has_detail: bool = False
    # Address of a function of (engine, objects, job, reconciliation), called after the end of the job. It does what is
    # left to do and returns what to add to the job's result.
    finish: str | None = None

    def __post_init__(self) -> None:
        """Raises ValueError when the queue would write a status that the kind does not have."""
        missing = {"dead", "cancelled"}.difference(self.statuses)
        if missing:
            raise ValueError(f"{self.statuses.__name__} lacks {', '.join(sorted(missing))}, which the queue writes")

    @property
    def retried(self) -> list[str]:
        """The statuses of the inputs that a retry of the job tries again."""
        return [*self.bad, *self.also_retried, self.statuses("cancelled")]

    def load_stage(self) -> Callable[[Any], None]:
        """The stage, imported if it was not yet."""
        stage: Callable[[Any], None] = resolve_name(self.stage) if isinstance(self.stage, str) else self.stage
        return stage


INGEST = Kind(
    name=JobKind.INGEST,
    queue="ingest",
    stage="ragllava.stages.ingest.stage:ingest_stage",
    per_shard=lambda settings: settings.files_per_shard,
    inputs=InputTable(files, "file_no"),
    statuses=FileStatus,
    bad=(FileStatus.REJECTED, FileStatus.DEAD),
    refused=FileStatus.REJECTED,
    noun="file",
    finish="ragllava.stages.results.finalize:build_graph",
)

ANSWER = Kind(
    name=JobKind.ANSWER,
    queue="query",
    stage="ragllava.stages.answer.stage:answer_stage",
    gives_way=True,
    per_shard=lambda settings: settings.questions_per_shard,
    inputs=QuestionInputs(),
    statuses=AnswerStatus,
    bad=(AnswerStatus.FAILED, AnswerStatus.DEAD, AnswerStatus.EXPIRED),
    refused=AnswerStatus.FAILED,
    noun="question",
    detail_key="refresh",
    details=refreshes.views,
    result_has_detail=True,
    finish="ragllava.stages.results.finalize:write_files",
)

TRAIN = Kind(
    name=JobKind.TRAIN,
    queue="train",
    stage="ragllava.training.job:train_stage",
    inputs=InputTable(
        trainings_table,
        ended={"phase": "ended", "updated_at": func.now()},
        reopened={"phase": "waiting", "updated_at": func.now()},
    ),
    statuses=TrainingStatus,
    bad=(TrainingStatus.FAILED, TrainingStatus.DEAD),
    refused=TrainingStatus.FAILED,
    guard_retry=trainings.guard_retry,
    noun="training",
    detail_key="training",
    details=trainings.views,
    result_has_detail=True,
)

REINDEX = Kind(
    name=JobKind.REINDEX,
    queue="ingest",
    stage="ragllava.stages.reindex.stage:reindex_stage",
    per_shard=lambda settings: settings.files_per_shard,
    inputs=InputTable(reindexed, "item_no"),
    statuses=ReindexStatus,
    bad=(ReindexStatus.UNREADABLE, ReindexStatus.FAILED, ReindexStatus.DEAD),
    refused=ReindexStatus.FAILED,
    also_retried=(ReindexStatus.REFUSED,),
    noun="image",
    last_noun="the gate",
    detail_key="reindexing",
    details=reindex_items.views,
)

MAINTENANCE = Kind(
    name=JobKind.MAINTENANCE,
    queue="ingest",
    stage="ragllava.stages.maintenance.stage:maintenance_stage",
    inputs=InputTable(
        maintenance_tasks, ended={"updated_at": func.now()}, reopened={"report": None, "updated_at": func.now()}
    ),
    statuses=TaskStatus,
    bad=(TaskStatus.FAILED, TaskStatus.DEAD),
    refused=TaskStatus.FAILED,
    noun="maintenance task",
    detail_key="maintenance",
    details=tasks.views,
)

REQUEST = Kind(
    name=JobKind.REQUEST,
    queue="query",
    stage="ragllava.stages.requests.stage:request_stage",
    inputs=InputTable(requests, ended={"body": None}),
    statuses=RequestStatus,
    bad=(RequestStatus.FAILED, RequestStatus.DEAD),
    refused=RequestStatus.FAILED,
    noun="request",
)

KINDS: dict[str, Kind] = {kind.name: kind for kind in (INGEST, ANSWER, TRAIN, REINDEX, MAINTENANCE, REQUEST)}


def kind_of(name: str) -> Kind:
    """The record of a stored kind. Raises UsageError for one that this version does not have."""
    if name not in KINDS:
        raise UsageError(f"this version has no jobs of the kind {name!r}; run the version that made the job")
    return KINDS[name]


def details_of(connection: Connection, listed: Iterable[tuple[int, str, Mapping[str, Any]]]) -> dict[int, JobDetail]:
    """The details of jobs (id, kind, spec), by id: one look for each kind, however many jobs there are.

    Jobs without a detail, and those of a kind that this version does not have, are left out.
    """
    specs: dict[str, dict[int, Mapping[str, Any]]] = defaultdict(dict)
    for job_id, name, spec in listed:
        specs[name][job_id] = spec
    details: dict[int, JobDetail] = {}
    for name, of_kind in specs.items():
        kind = KINDS.get(name)
        if kind is not None and kind.details is not None:
            details |= kind.details(connection, of_kind)
    return details


def is_known_kind() -> ColumnElement[bool]:
    """The condition that this version knows the kind of a job."""
    return jobs.c.kind.in_(list(KINDS))


def kinds_beside(name: str) -> list[str]:
    """The kinds whose shards run on the same workers: those whose urgent shards a shard of a kind lets run in between.

    Empty for a kind that does not give way, or that this version does not have.
    """
    kind = KINDS.get(name)
    return [other.name for other in KINDS.values() if kind and kind.gives_way and other.queue == kind.queue]


def queues_by_kind() -> dict[str, str]:
    """The queue of each kind, by the kind's name."""
    return {kind.name: kind.queue for kind in KINDS.values()}
