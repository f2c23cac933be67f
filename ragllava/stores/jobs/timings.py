"""What earlier answer jobs have taken, and what the open ones have left: the facts that estimates rest on."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, text

from ragllava.stores.database import records

_JOBS_TO_GO_BY = 12
_LOOKED_AT = 200  # newest jobs of an archive, or of all


@dataclass(frozen=True, slots=True)
class EarlierJob:
    """A job that ended: its questions with a good outcome, the seconds that workers were busy with it and those that it
    waited for its first worker. `is_own`: it asked the same archive."""

    job_id: int
    questions: int
    busy_s: float
    waited_s: float | None
    is_own: bool


@dataclass(frozen=True, slots=True)
class OpenJob:
    """A running answer job: how many of its inputs are in open shards."""

    job_id: int
    priority: int
    inputs: int


def earlier_jobs(
    connection: Connection, archive_id: int, options: Mapping[str, Any], profile: str | None, fewest: int = 1
) -> list[EarlierJob]:
    """The last jobs with these options by workers of this profile that answered at least `fewest` questions, those of
    the archive first.

    `options` are AnswerOptions as JSON; of the filter counts only whether there is one. Refreshes, jobs whose depth was
    cut and jobs of which hardly anything was answered say nothing, and are left out.
    """
    compared = {name: value for name, value in options.items() if name not in ("filter", "threshold")}
    values = {
        "archive_id": archive_id,
        "options": json.dumps(compared),
        "profile": profile,
        "filtered": bool(options["filter"]),
        "fewest": fewest,
    }
    rows = connection.execute(_EARLIER, values | {"jobs": _JOBS_TO_GO_BY, "looked_at": _LOOKED_AT})
    return records(EarlierJob, rows)


def open_jobs(connection: Connection) -> list[OpenJob]:
    """The answer jobs that run or wait, oldest first."""
    return records(OpenJob, connection.execute(_OPEN))


def count_images(connection: Connection, archive_id: int, at_most: int) -> int:
    """How many images an archive has, if it is not more than `at_most`."""
    return int(connection.execute(_IMAGES, {"archive_id": archive_id, "at_most": at_most}).scalar_one())


def live_profile(connection: Connection) -> str | None:
    """The profile of the answer workers that are ready; None without one."""
    profile: str | None = connection.scalar(_PROFILE)
    return profile


_EARLIER = text("""
    SELECT id AS job_id, questions, busy_s, waited_s, is_own FROM (
        SELECT j.id, j.archive_id = :archive_id AS is_own, CAST(j.timing ->> 'busy_s' AS double precision) AS busy_s,
            CAST(j.timing ->> 'waited_s' AS double precision) AS waited_s, j.total,
            CAST(coalesce(j.counts ->> 'answered', '0') AS bigint)
                + CAST(coalesce(j.counts ->> 'no_evidence', '0') AS bigint) AS questions
        FROM (SELECT * FROM jobs WHERE kind = 'answer' AND total >= :fewest ORDER BY id DESC LIMIT :looked_at) j
        WHERE j.finished_at IS NOT NULL AND j.timing ->> 'profile' = :profile AND j.timing ->> 'cut_to' IS NULL
            AND NOT j.spec ? 'refreshes' AND j.spec -> 'options' @> CAST(:options AS jsonb)
            AND (j.spec -> 'options' ->> 'filter' IS NOT NULL) = :filtered
    ) timed
    WHERE questions > 0 AND questions >= :fewest AND questions * 2 >= total AND busy_s > 0
    ORDER BY is_own DESC, id DESC LIMIT :jobs
""")
_OPEN = text("""
    SELECT j.id AS job_id, j.priority, CAST(sum(s.hi - s.lo) AS bigint) AS inputs
    FROM jobs j JOIN shards s ON s.job_id = j.id AND s.state IN ('pending', 'queued', 'running')
    WHERE j.finished_at IS NULL AND j.kind = 'answer' AND j.state = 'running' GROUP BY j.id ORDER BY j.id
""")
_IMAGES = text("""
    SELECT count(*) FROM (SELECT FROM images WHERE archive_id = :archive_id AND NOT retired LIMIT :at_most) first
""")
_PROFILE = text("""
    SELECT versions ->> 'profile' FROM workers
    WHERE state = 'live' AND 'query' = ANY (queues) AND versions ? 'profile' ORDER BY seen_at DESC LIMIT 1
""")
