"""What `/metrics` says at the end of a run, beside what the tables say: each number is counted again, in another way.

The exporter adds up what was counted when it happened. The statements here read the inputs, answers and shards
themselves.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass

from prometheus_client.parser import text_string_to_metric_families
from rich.table import Table
from sqlalchemy import Connection, text
from starlette.testclient import TestClient

from ragllava.api.metrics import make_metrics_app
from ragllava.client import ALL_METRICS, Client
from ragllava.stores.database import in_transaction
from tests.support.waiting import wait_for

Numbers = dict[tuple[str, tuple[str, ...]], float]  # by metric and the values of its labels; zeros are left out
SETTLED_S = 60.0

_LATEST = "SELECT DISTINCT ON (job_id, question_no) * FROM answers ORDER BY job_id, question_no, run_no DESC"
_OTHER_INPUTS = """
    SELECT 'ingest' AS kind, job_id, status FROM files
    UNION ALL SELECT 'reindex', job_id, status FROM reindexed
    UNION ALL SELECT 'train', job_id, status FROM trainings
    UNION ALL SELECT 'maintenance', job_id, status FROM maintenance_tasks
    UNION ALL SELECT 'request', job_id, status FROM requests
"""
_ENDED = "job_id IN (SELECT id FROM jobs WHERE finished_at IS NOT NULL)"
_OF_KIND = (
    "CASE kind WHEN 'answer' THEN 'query' WHEN 'request' THEN 'query' WHEN 'train' THEN 'train' ELSE 'ingest' END"
)
_QUEUES = f"coalesce(shards.queue, {_OF_KIND})"
# Each returns the labels of its metric and the number; of a histogram, how many durations it has.
TABLES: Mapping[str, str] = {
    "ragllava_jobs_total": "SELECT kind, state, count(*) FROM jobs WHERE finished_at IS NOT NULL GROUP BY kind, state",
    "ragllava_jobs_open": "SELECT kind, state, count(*) FROM jobs WHERE finished_at IS NULL GROUP BY kind, state",
    "ragllava_questions_total": f"SELECT 'answer', status, count(*) FROM ({_LATEST}) a WHERE {_ENDED} GROUP BY status",
    "ragllava_inputs_total": f"SELECT kind, status, count(*) FROM ({_OTHER_INPUTS}) i WHERE {_ENDED} GROUP BY 1, 2",
    "ragllava_inputs_done_total": f"""
        SELECT kind, count(*) FROM (
            SELECT 'answer' AS kind, status FROM ({_LATEST}) a UNION ALL SELECT kind, status FROM ({_OTHER_INPUTS}) i
        ) inputs WHERE status IS NOT NULL GROUP BY kind
    """,
    "ragllava_decode_rejected_total": "SELECT count(*) FROM files WHERE status = 'rejected'",
    "ragllava_job_wait_seconds": """
        SELECT kind, count(*) FROM jobs WHERE finished_at IS NOT NULL AND started_at IS NOT NULL GROUP BY kind
    """,
    "ragllava_stage_seconds": """
        SELECT kind, count(*) FROM shards JOIN jobs ON jobs.id = job_id WHERE shards.state = 'done' GROUP BY kind
    """,
    "ragllava_queue_depth": f"""
        SELECT {_QUEUES}, count(*) FROM shards JOIN jobs ON jobs.id = job_id
        WHERE shards.state IN ('pending', 'queued') AND jobs.state <> 'paused' GROUP BY 1
    """,
    "ragllava_leases": f"""
        SELECT {_QUEUES}, CASE WHEN lease_until < now() THEN 'overdue' ELSE 'running' END, count(*)
        FROM shards JOIN jobs ON jobs.id = job_id WHERE shards.state = 'running' GROUP BY 1, 2
    """,
    "ragllava_results_waiting": "SELECT count(*) FROM jobs WHERE finished_at IS NOT NULL AND result IS NULL",
    "ragllava_change_events_waiting": "SELECT count(*) FROM change_events",
    "ragllava_champions": "SELECT role, count(*) FROM model_versions WHERE state = 'champion' GROUP BY role",
}  # fmt: skip


# In the order of the statements; the text format has another one. Rejections are not compared class by class.
_LABELS = {metric.name: metric.labels for metric in ALL_METRICS} | {"ragllava_decode_rejected_total": ()}


@dataclass(frozen=True, slots=True)
class Comparison:
    """One number of the exporter beside that of the tables."""

    metric: str
    labels: tuple[str, ...]
    exported: float
    counted: float

    @property
    def agrees(self) -> bool:
        return self.exported == self.counted

    def __str__(self) -> str:
        return f"{self.metric}({', '.join(self.labels)}) is {self.exported:g}, the tables have {self.counted:g}"


def exported_numbers(client: Client) -> Numbers:
    """What a scrape of `/metrics` shows of the metrics of TABLES."""
    body = TestClient(make_metrics_app(client.metrics.read, kept_s=0.0)).get("/metrics").text
    numbers: Numbers = {}
    for family in text_string_to_metric_families(body):
        for sample in family.samples:
            name = sample.name.removesuffix("_count") if family.type == "histogram" else sample.name
            if name in TABLES and sample.value:
                labels = tuple(sample.labels[label] for label in _LABELS[name])
                numbers[name, labels] = numbers.get((name, labels), 0.0) + sample.value
    return numbers


def counted_numbers(connection: Connection) -> Numbers:
    """The same from the tables."""
    return {
        (name, tuple(map(str, row[:-1]))): float(row[-1])
        for name, statement in TABLES.items()
        for row in connection.execute(text(statement))
        if row[-1]
    }


def compare(client: Client) -> list[Comparison]:
    """Every number that the exporter or the tables have, when nothing moves any more; at most SETTLED_S seconds."""
    compared: list[Comparison] = []

    def agree() -> bool:
        counted, exported = in_transaction(client.engine, counted_numbers), exported_numbers(client)
        compared[:] = [
            Comparison(name, labels, exported.get((name, labels), 0.0), counted.get((name, labels), 0.0))
            for name, labels in sorted(counted | exported)
        ]
        return all(comparison.agrees for comparison in compared)

    with suppress(AssertionError):  # the caller reports what does not agree
        wait_for("figures that agree", agree, SETTLED_S)
    return compared


def as_table(compared: list[Comparison]) -> Table:
    """For people."""
    table = Table("metric", "labels", "/metrics", "tables", box=None)
    for row in compared:
        table.add_row(row.metric, " ".join(row.labels), f"{row.exported:,.0f}", f"{row.counted:,.0f}")
    return table


def differences(compared: list[Comparison]) -> Iterator[str]:
    """A sentence for each number that differs."""
    return (str(comparison) for comparison in compared if not comparison.agrees)
