"""Counters that never decrease: how many jobs and inputs ended how, why files were rejected, how many mailings and
webhooks were given up, and how long jobs took. Metrics show them.

Each row adds to one number. Every function works in the caller's transaction; none waits for another one's.
"""

from __future__ import annotations

from collections.abc import Iterable

from sqlalchemy import Connection, text

JOBS, INPUTS, REJECTED = "jobs", "inputs", "rejected"
MAILINGS = "mailings"  # of mails and webhooks of notifications; they have no kind of job
WEBHOOKS = "webhooks"  # of jobs; of no kind, as mailings
WAIT_SECONDS, SHARD_SECONDS = "wait_seconds", "shard_seconds"
BOUNDS = ("0.5", "1", "2.5", "5", "10", "30", "60", "120", "300", "900", "3600", "21600")  # of buckets, in seconds
BEYOND = "+Inf"
SUM = "sum"  # of the seconds, beside the buckets
_MOST_ROWS = 500  # before sums replace them
_AT_ONCE = 20_000

Addition = tuple[str, str, str, float]  # measure, kind of job, result, number


def observed(measure: str, kind: str, duration_s: float) -> list[Addition]:
    """What one duration adds: to the bucket that it falls into, and to the sum. A negative one counts as 0."""
    length_s = max(0.0, duration_s)
    bucket = next((bound for bound in BOUNDS if length_s <= float(bound)), BEYOND)
    return [(measure, kind, bucket, 1), (measure, kind, SUM, length_s)]


def add(connection: Connection, additions: Iterable[Addition]) -> None:
    """Add to the counters, with one statement; zeros are left out."""
    rows = [(*names, float(number)) for *names, number in additions if number]
    if rows:
        columns = zip(_COLUMNS, zip(*rows, strict=True), strict=True)
        connection.execute(_ADD, {name: list(values) for name, values in columns})


def compact(connection: Connection) -> int:
    """Replace rows by their sums if there are many; returns how many were replaced."""
    return connection.scalar(_COMPACT, {"most": _MOST_ROWS, "at_once": _AT_ONCE}) or 0


# The number of a thing, always the same whatever the order of its rows, and the same before and after they are
# compacted: a sum of floating-point numbers differs in its last digits, and Prometheus takes the smallest decrease for
# a restart. As long as there are fewer than 10¹² seconds.
EXACT_SUM = "sum(round(CAST(number AS numeric), 3))"

_COLUMNS = ("measure", "kind", "result", "number")
# Without RETURNING: a tenant may add and not read.
_ADD = text("""
    INSERT INTO totals (measure, kind, result, number)
    SELECT * FROM unnest(
        CAST(:measure AS text[]), CAST(:kind AS text[]), CAST(:result AS text[]), CAST(:number AS double precision[])
    )
""")
# Of two that run at once, each replaces the rows that the other one has not locked.
_COMPACT = text(f"""
    WITH taken AS (
        DELETE FROM totals WHERE id IN (
            SELECT id FROM totals
            WHERE (SELECT count(*) FROM (SELECT FROM totals LIMIT :most + 1) first) > :most
            ORDER BY id LIMIT :at_once FOR UPDATE SKIP LOCKED
        ) RETURNING measure, kind, result, number
    ), summed AS (
        INSERT INTO totals (measure, kind, result, number)
        SELECT measure, kind, result, {EXACT_SUM} FROM taken GROUP BY measure, kind, result
    )
    SELECT count(*) FROM taken
""")  # noqa: S608 - our own words
