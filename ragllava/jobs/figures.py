"""The metrics of the system, read from its rows: names, meanings, and one bounded statement for each.

No statement reads a table that grows with the number of questions, pictures or ended jobs: open jobs and shards are
few, and the rest is counted as it happens (stores/maintenance/totals.py). No label is an id, a name of a person, or an
archive. The names follow Prometheus: `_total` never decreases, durations are seconds, sizes are bytes.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from sqlalchemy import Connection, text

from ragllava.errors import RejectionClass
from ragllava.jobs.kinds import KINDS, queues_by_kind
from ragllava.jobs.states import FINAL_JOB_STATES
from ragllava.jobs.totalling import MISSING
from ragllava.records import AnswerStatus, GapReason, JobKind
from ragllava.settings import Settings
from ragllava.stores.maintenance import totals
from ragllava.stores.maintenance.faults import PERSISTENT_ATTEMPTS

MOST_COUNTED = 10_001  # rows of a list that may grow long
SILENT_TICKS = 3  # after which a worker is taken for gone
TICK_GRACE_S = 10.0

Type = Literal["gauge", "counter", "histogram"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    """One metric. Its statement returns its labels and then the number; of a histogram, the bound of a bucket (or
    `sum`) before the number. `zeros` says which labels are shown with 0 when no row has them: Prometheus sees no
    increase in a counter that begins with 1."""

    name: str
    type: Type
    meaning: str
    statement: str
    labels: tuple[str, ...] = ()
    zeros: Literal["", "queues", "leases", "kinds", "rejections", "ends", "answers"] = ""


@dataclass(frozen=True, slots=True)
class Sample:
    """A number under the values of its metric's labels."""

    labels: tuple[str, ...]
    number: float


@dataclass(frozen=True, slots=True)
class Histogram:
    """Durations under the values of the labels: how many are at most as long as each bound, and their sum."""

    labels: tuple[str, ...]
    buckets: tuple[tuple[str, float], ...]
    sum_s: float


@dataclass(frozen=True, slots=True)
class Reading:
    """What a metric shows now."""

    metric: Metric
    samples: Sequence[Sample] = ()
    histograms: Sequence[Histogram] = ()


def read(connection: Connection, settings: Settings) -> list[Reading]:
    """All metrics of the database, one statement each; the transaction must see all archives."""
    values = {
        "queues": json.dumps(queues_by_kind()),
        "silent_s": SILENT_TICKS * settings.tick_s + TICK_GRACE_S,
        "most": MOST_COUNTED,
        "persistent": PERSISTENT_ATTEMPTS,
        "gap_reasons": list(GapReason),
    }
    return [_read(connection, metric, values) for metric in METRICS]


def _read(connection: Connection, metric: Metric, values: dict[str, object]) -> Reading:
    rows = connection.execute(text(metric.statement), values).all()
    width = len(metric.labels)
    if metric.type == "histogram":
        return Reading(metric, histograms=_histograms(rows, width))
    numbers = dict.fromkeys(_zeros(metric), 0.0)
    numbers |= {tuple(map(str, row[:width])): float(row[width]) for row in rows if row[width] is not None}
    return Reading(metric, [Sample(labels, number) for labels, number in sorted(numbers.items())])


def _zeros(metric: Metric) -> list[tuple[str, ...]]:
    queues = sorted({kind.queue for kind in KINDS.values()})
    zeros: dict[str, list[tuple[str, ...]]] = {
        "": [],
        "queues": [(queue,) for queue in queues],
        "leases": [(queue, state) for queue in queues for state in ("overdue", "running")],
        "kinds": [(kind,) for kind in sorted(KINDS)],
        "rejections": [(rejection.value,) for rejection in RejectionClass],
        "ends": [(kind, state.value) for kind in sorted(KINDS) for state in FINAL_JOB_STATES],
        "answers": [(JobKind.ANSWER.value, result) for result in (*AnswerStatus, MISSING)],
    }
    return zeros[metric.zeros]


def _histograms(rows: Sequence[Sequence[object]], width: int) -> list[Histogram]:
    by_labels: dict[tuple[str, ...], dict[str, float]] = defaultdict(dict)
    for row in rows:
        by_labels[tuple(map(str, row[:width]))][str(row[width])] = float(str(row[width + 1]))
    return [_histogram(labels, numbers) for labels, numbers in sorted(by_labels.items())]


def _histogram(labels: tuple[str, ...], numbers: dict[str, float]) -> Histogram:
    buckets, count = [], 0.0
    for bound in (*totals.BOUNDS, totals.BEYOND):
        count += numbers.get(bound, 0.0)
        buckets.append((bound, count))
    return Histogram(labels, tuple(buckets), numbers.get(totals.SUM, 0.0))


# Open shards, with the queue of each.
_OPEN = """
    SELECT coalesce(shards.queue, CAST(:queues AS jsonb) ->> jobs.kind) AS queue, shards.state, shards.lease_until,
        jobs.state AS job_state, jobs.created_at
    FROM shards JOIN jobs ON jobs.id = shards.job_id
    WHERE shards.state IN ('pending', 'queued', 'running') AND jobs.finished_at IS NULL
"""
_WAITING = f"({_OPEN}) open WHERE open.state <> 'running' AND job_state <> 'paused'"


def _sums(measure: str, condition: str = "true") -> str:
    """The totals of a measure by kind of job and result."""
    return f"""
        SELECT kind, result, {totals.EXACT_SUM} FROM totals
        WHERE measure = '{measure}' AND {condition} GROUP BY kind, result
    """  # noqa: S608 - our own words


_IS_OF_GATE = """(
    (kind = 'train' AND result IN ('promoted', 'challenger', 'refused'))
    OR (kind = 'reindex' AND result IN ('switched', 'kept', 'refused'))
)"""

METRICS: tuple[Metric, ...] = (
    Metric(
        name="ragllava_jobs_open",
        type="gauge",
        labels=("kind", "state"),
        meaning="Open jobs.",
        statement="SELECT kind, state, count(*) FROM jobs WHERE finished_at IS NULL GROUP BY kind, state",
    ),
    Metric(
        name="ragllava_jobs_total",
        type="counter",
        labels=("kind", "result"),
        zeros="ends",
        meaning="Jobs that ended. A job that is retried ends again.",
        statement=_sums(totals.JOBS),
    ),
    Metric(
        name="ragllava_questions_total",
        type="counter",
        labels=("stage", "result"),
        zeros="answers",
        meaning="Questions by outcome, counted when their job ends. The stage is `answer`.",
        statement=_sums(totals.INPUTS, "kind = 'answer'"),
    ),
    Metric(
        name="ragllava_inputs_total",
        type="counter",
        labels=("kind", "result"),
        meaning="Inputs of the other kinds of job (files, trainings, images, ...) by outcome, counted when it ends.",
        statement=_sums(totals.INPUTS, "kind <> 'answer'"),
    ),
    Metric(
        name="ragllava_decode_rejected_total",
        type="counter",
        labels=("reason",),
        zeros="rejections",
        meaning="Files that an ingest rejected, by the class of the reason, as it happens; a retry counts them again.",
        statement="SELECT result, sum(number) FROM totals WHERE measure = 'rejected' GROUP BY result",
    ),
    Metric(
        name="ragllava_inputs_done_total",
        type="counter",
        labels=("kind",),
        zeros="kinds",
        meaning="Inputs with an outcome, those of open jobs too, shard by shard. Its rate is the speed of the system.",
        # Of a job that was retried, what is new is not known before its end.
        statement="""
            SELECT kind, sum(number) FROM (
                SELECT kind, number FROM totals WHERE measure = 'inputs'
                UNION ALL
                SELECT jobs.kind, jobs.total - coalesce((
                    SELECT sum(hi - lo) FROM shards
                    WHERE shards.job_id = jobs.id AND shards.state IN ('pending', 'queued', 'running')
                ), 0)
                FROM jobs WHERE jobs.finished_at IS NULL AND jobs.counted IS NULL
            ) done GROUP BY kind
        """,
    ),
    Metric(
        name="ragllava_job_wait_seconds",
        type="histogram",
        labels=("kind",),
        meaning="From the submission of a job to the start of its first shard; counted when the job ends.",
        statement=_sums(totals.WAIT_SECONDS),
    ),
    Metric(
        name="ragllava_stage_seconds",
        type="histogram",
        labels=("stage",),
        meaning="How long a worker worked on a shard that it finished. The stage is the kind of job.",
        statement=_sums(totals.SHARD_SECONDS),
    ),
    Metric(
        name="ragllava_gate_total",
        type="counter",
        labels=("kind", "result"),
        meaning="Decisions of the gates of trainings and of reindexings.",
        statement=_sums(totals.INPUTS, _IS_OF_GATE),
    ),
    Metric(
        name="ragllava_queue_depth",
        type="gauge",
        labels=("queue",),
        zeros="queues",
        meaning="Shards that wait for a worker, without those of paused jobs.",
        statement=f"SELECT queue, count(*) FROM {_WAITING} GROUP BY queue",  # noqa: S608
    ),
    Metric(
        name="ragllava_queue_oldest_seconds",
        type="gauge",
        labels=("queue",),
        zeros="queues",
        meaning="Age of the oldest job with a shard that waits.",
        statement=f"""
            SELECT queue, greatest(0, extract(epoch FROM now() - min(created_at))) FROM {_WAITING} GROUP BY queue
        """,  # noqa: S608
    ),
    Metric(
        name="ragllava_leases",
        type="gauge",
        labels=("queue", "state"),
        zeros="leases",
        meaning="Shards that workers have; `overdue` are those whose lease ran out and that no tick has reaped yet.",
        statement=f"""
            SELECT queue, CASE WHEN lease_until < now() THEN 'overdue' ELSE 'running' END AS lease, count(*)
            FROM ({_OPEN}) open WHERE open.state = 'running' GROUP BY queue, lease
        """,  # noqa: S608
    ),
    Metric(
        name="ragllava_worker_up",
        type="gauge",
        labels=("queue",),
        zeros="queues",
        meaning="Workers that are ready and were seen within three ticks and 10 seconds.",
        statement="""
            SELECT queue, count(*) FROM workers CROSS JOIN LATERAL unnest(queues) AS queue
            WHERE state = 'live' AND versions <> '{}' AND seen_at > now() - make_interval(secs => :silent_s)
            GROUP BY queue
        """,
    ),
    Metric(
        name="ragllava_tick_age_seconds",
        type="gauge",
        meaning="Time since the last tick ended; absent before the first.",
        statement="SELECT extract(epoch FROM clock_timestamp() - ended_at) FROM ticks WHERE name = 'tick'",
    ),
    Metric(
        name="ragllava_noisy_cases_open",
        type="gauge",
        meaning="Noisy cases that nobody has reviewed; 10,001 stands for more than 10,000.",
        statement="""
            SELECT count(*) FROM (
                SELECT FROM archives CROSS JOIN LATERAL (
                    SELECT FROM noisy_cases
                    WHERE archive_id = archives.id AND noisy_cases.state = 'open' LIMIT :most
                ) its LIMIT :most
            ) first
        """,
    ),
    Metric(
        name="ragllava_gaps",
        type="gauge",
        labels=("reason",),
        meaning="Pictures that no question can find, as the last maintenance task `gaps` of each archive counted them; "
        "absent before the first.",
        statement="""
            SELECT reason, sum(coalesce(CAST(gaps ->> reason AS bigint), 0))
            FROM archives CROSS JOIN unnest(CAST(:gap_reasons AS text[])) AS reason
            WHERE gaps IS NOT NULL GROUP BY reason
        """,
    ),
    Metric(
        name="ragllava_trainings",
        type="gauge",
        labels=("phase",),
        meaning="Trainings that wait or run. How others ended is in `ragllava_inputs_total`, kind `train`.",
        statement="""
            SELECT phase, count(*) FROM trainings JOIN jobs ON jobs.id = trainings.job_id
            WHERE jobs.finished_at IS NULL AND jobs.kind = 'train' GROUP BY phase
        """,
    ),
    Metric(
        name="ragllava_champions",
        type="gauge",
        labels=("role",),
        meaning="Model versions that are champion of their role, of all profiles.",
        statement="SELECT role, count(*) FROM model_versions WHERE state = 'champion' GROUP BY role",
    ),
    Metric(
        name="ragllava_objects_estimate",
        type="gauge",
        meaning="Pictures in the object store, by the statistics of the database.",
        statement="SELECT greatest(0, reltuples) FROM pg_class WHERE oid = CAST('blobs' AS regclass)",
    ),
    Metric(
        name="ragllava_database_bytes",
        type="gauge",
        meaning="Size of the database on the disk of its server.",
        statement="SELECT pg_database_size(current_database())",
    ),
    Metric(
        name="ragllava_schedule_lateness_seconds",
        type="gauge",
        meaning="How long the schedule that is most overdue has been due; paused ones do not count.",
        statement="""
            SELECT greatest(0, coalesce(extract(epoch FROM now() - min(next_due)), 0)) FROM schedules WHERE NOT paused
        """,
    ),
    Metric(
        name="ragllava_faults",
        type="gauge",
        labels=("room", "persistent"),
        meaning="Parts of the work that failed and are postponed; `persistent` is `yes` from the third failure on.",
        statement="""
            SELECT room, CASE WHEN attempts >= :persistent THEN 'yes' ELSE 'no' END AS persistent, count(*)
            FROM (SELECT * FROM faults LIMIT :most) first GROUP BY room, persistent
        """,
    ),
    Metric(
        name="ragllava_change_events_waiting",
        type="gauge",
        meaning="Objects of buckets that changed and were not looked at yet; 10,001 stands for more than 10,000.",
        statement="SELECT count(*) FROM (SELECT FROM change_events LIMIT :most) first",
    ),
    Metric(
        name="ragllava_results_waiting",
        type="gauge",
        meaning="Ended jobs whose results are not written yet.",
        statement="""
            SELECT count(*) FROM (
                SELECT FROM jobs WHERE finished_at IS NOT NULL AND result IS NULL LIMIT :most
            ) first
        """,
    ),
    Metric(
        name="ragllava_deliveries_waiting",
        type="gauge",
        meaning="Messages to webhooks and mails that are still to be sent; 10,001 stands for more than 10,000.",
        statement="""
            SELECT count(*) FROM (
                SELECT 1 FROM deliveries WHERE state = 'waiting'
                UNION ALL SELECT 1 FROM mailings WHERE state IN ('waiting', 'sending') LIMIT :most
            ) first
        """,
    ),
    Metric(
        name="ragllava_mailings_given_up_total",
        type="counter",
        meaning="Mails and webhooks of notifications that were given up; one that is given up again counts again.",
        statement="SELECT coalesce(sum(number), 0) FROM totals WHERE measure = 'mailings' AND result = 'given_up'",
    ),
    Metric(
        name="ragllava_webhooks_given_up_total",
        type="counter",
        meaning="Messages to webhooks about the end of a job that were given up.",
        statement="SELECT coalesce(sum(number), 0) FROM totals WHERE measure = 'webhooks' AND result = 'given_up'",
    ),
    Metric(
        name="ragllava_removals_held",
        type="gauge",
        meaning="Folders and buckets that lost so many pictures at once that nothing was removed without being asked.",
        statement="SELECT count(*) FROM (SELECT FROM held_removals LIMIT :most) first",
    ),
    Metric(
        name="ragllava_erasures_open",
        type="gauge",
        meaning="Removals of archives, pictures or jobs that have begun and not ended.",
        statement="SELECT count(*) FROM (SELECT FROM erasures WHERE finished_at IS NULL LIMIT :most) first",
    ),
)
