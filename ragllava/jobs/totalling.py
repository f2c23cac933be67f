"""What the ends of jobs and shards add to the counters of the metrics (stores/maintenance/totals.py).

An input counts once under each outcome that it had in the jobs' counts: a retry adds what is new. So no counter ever
decreases, which Prometheus would take for a restart.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection, Row

from ragllava.jobs.states import JobState
from ragllava.stores.jobs.outcomes import Reconciliation
from ragllava.stores.maintenance import totals

MISSING = "missing"  # the outcome of an input that has none although its job has ended


def note_job(connection: Connection, job: Row[Any], state: JobState, counted: Reconciliation) -> None:
    """A job has ended, in the transaction that ends it; `job` is its row before."""
    before: dict[str, int] = job.counted or {}
    outcomes = dict(counted.by_status)
    outcomes[MISSING] = max(0, counted.total - sum(outcomes.values()))
    additions = [(totals.JOBS, job.kind, str(state), 1.0)]
    for outcome, number in outcomes.items():
        additions.append((totals.INPUTS, job.kind, str(outcome), max(0, number - before.get(outcome, 0))))
    if job.counted is None and job.started_at is not None:
        additions += totals.observed(totals.WAIT_SECONDS, job.kind, (job.started_at - job.created_at).total_seconds())
    totals.add(connection, additions)


def note_shard(connection: Connection, kind: str, worked_s: float) -> None:
    """A shard is done, `worked_s` seconds after its last worker claimed it."""
    totals.add(connection, totals.observed(totals.SHARD_SECONDS, kind, worked_s))


def counted_so_far(job: Row[Any]) -> dict[str, int]:
    """What the totals have of an ended job that is to run again."""
    before: dict[str, int] = job.counted or {}
    last: dict[str, int] = job.counts or {}
    return {outcome: max(before.get(outcome, 0), last.get(outcome, 0)) for outcome in before | last}
