"""How far the reviews of an archive are, and how far reviewers agree.

Reviewers look often, so a look reads the open cases, the reviews of today and the newest ones, never the whole history.
"""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import Connection, text

from ragllava.feedback import NoisyState
from ragllava.stores.jobs.answered import QuestionKey
from ragllava.stores.learning.reviewing import Reviewer

_DISAGREED = 20  # cases that a look names


@dataclass(frozen=True, slots=True)
class QueueCounts:
    """The queue of an archive for one reviewer. `held` counts open cases that others have open; days are those of UTC.

    `second_opinions` counts the cases that wait for one, among those of the newest reviews.
    """

    open: int
    held: int
    mine_today: int
    all_today: int
    second_opinions: int
    by_reason: dict[str, int]


@dataclass(frozen=True, slots=True)
class ReviewTotals:
    """Cases of an archive that have ended, and the reviews of one reviewer, since the archive is there."""

    labelled: int
    dismissed: int
    mine: int


@dataclass(frozen=True, slots=True)
class PairCounts:
    """What pairs of people said of the same things: both yes, only the first, only the second, both no."""

    both_yes: int
    only_first: int
    only_second: int
    both_no: int


@dataclass(frozen=True, slots=True)
class RecentReviews:
    """The queue, and what its newest reviews say where several people reviewed a case.

    A pair is an opinion and the next one, of another person, on the same case. `disagreed` are cases of pairs that
    differ, at most 20, the newest first.
    """

    counts: QueueCounts
    answers: PairCounts
    pictures: PairCounts
    disagreed: tuple[QuestionKey, ...]


def recent_reviews(connection: Connection, archive_id: int, reviewer: Reviewer, newest: int) -> RecentReviews:
    """The queue of an archive for a reviewer, and the agreement in the cases of so many of the newest reviews."""
    values = {"archive_id": archive_id, "me": reviewer.name, "tab": reviewer.tab, "newest": newest, "most": _DISAGREED}
    row = connection.execute(_RECENT, values).one()
    counts = QueueCounts(
        row.open, row.held, row.mine_today, row.all_today, row.second_opinions, dict(row.by_reason or {})
    )
    disagreed = tuple((job_id, number) for job_id, number in row.disagreed or ())
    return RecentReviews(counts, PairCounts(*row.answers), PairCounts(*row.pictures), disagreed)


def count_all(connection: Connection, archive_id: int, reviewer: Reviewer) -> ReviewTotals:
    """Count all ended cases of an archive, and all reviews of a reviewer: in the whole history, from indexes."""
    row = connection.execute(_TOTALS, {"archive_id": archive_id, "me": reviewer.name} | _ENDED).one()
    return ReviewTotals(**row._mapping)


_ENDED = {"labelled": NoisyState.LABELLED.value, "dismissed": NoisyState.DISMISSED.value}
_TOTALS = text("""
    SELECT (SELECT count(*) FROM noisy_cases WHERE archive_id = :archive_id AND state = :labelled) AS labelled,
           (SELECT count(*) FROM noisy_cases WHERE archive_id = :archive_id AND state = :dismissed) AS dismissed,
           (SELECT count(*) FROM reviews WHERE archive_id = :archive_id AND reviewer = :me) AS mine
""")

_TABLE = """
    SELECT ARRAY[count(*) FILTER (WHERE was_right AND is_right),
                 count(*) FILTER (WHERE was_right AND NOT is_right),
                 count(*) FILTER (WHERE is_right AND NOT was_right),
                 count(*) FILTER (WHERE NOT was_right AND NOT is_right)] FROM
"""
# OFFSET 0 keeps the reviews of a case a look-up by the index for each case, whatever the statistics say.
_RECENT = text(f"""
    WITH waiting AS MATERIALIZED (
        SELECT reasons, coalesce(locked_until > now() AND (locked_by <> :me OR locked_tab <> :tab), false) AS is_held
        FROM noisy_cases WHERE archive_id = :archive_id AND state = 'open'
    ), today AS (
        SELECT count(*) AS number, count(*) FILTER (WHERE reviewer = :me) AS mine
        FROM reviews WHERE archive_id = :archive_id AND created_at >= date_trunc('day', now())
    ), recent AS MATERIALIZED (
        SELECT DISTINCT job_id, question_no FROM (
            SELECT job_id, question_no FROM reviews WHERE archive_id = :archive_id
            ORDER BY created_at DESC LIMIT :newest) newest
    ), said AS MATERIALIZED (
        SELECT c.job_id, c.question_no, r.* FROM recent c CROSS JOIN LATERAL (
            SELECT id, reviewer, verdict, relevant, irrelevant FROM reviews
            WHERE job_id = c.job_id AND question_no = c.question_no OFFSET 0) r
    ), once AS (
        SELECT job_id, question_no FROM said GROUP BY job_id, question_no
        HAVING count(DISTINCT reviewer) FILTER (WHERE verdict IS NOT NULL) = 1 AND NOT bool_or(reviewer = :me)
    ), last_of_each AS (
        SELECT DISTINCT ON (job_id, question_no, reviewer) * FROM said WHERE verdict IS NOT NULL
        ORDER BY job_id, question_no, reviewer, id DESC
    ), opinions AS (
        SELECT job_id, question_no, verdict = 'right' AS is_right, relevant AS yes, relevant || irrelevant AS judged,
               lag(verdict = 'right') OVER following AS was_right, lag(relevant) OVER following AS yes_before,
               lag(relevant || irrelevant) OVER following AS judged_before
        FROM last_of_each WINDOW following AS (PARTITION BY job_id, question_no ORDER BY id)
    ), pairs AS MATERIALIZED (
        SELECT * FROM opinions WHERE was_right IS NOT NULL
    ), pictures AS MATERIALIZED (
        SELECT p.job_id, p.question_no, i.image = ANY(p.yes_before) AS was_right, i.image = ANY(p.yes) AS is_right
        FROM pairs p CROSS JOIN LATERAL (
            SELECT DISTINCT image FROM unnest(p.judged) image WHERE image = ANY(p.judged_before)) i
    )
    SELECT (SELECT count(*) FROM waiting) AS open, (SELECT count(*) FROM waiting WHERE is_held) AS held,
           (SELECT jsonb_object_agg(reason, number) FROM (
                SELECT reason, count(*) AS number FROM waiting, unnest(reasons) reason GROUP BY reason) of_reason)
               AS by_reason,
           (SELECT mine FROM today) AS mine_today, (SELECT number FROM today) AS all_today,
           (SELECT count(*) FROM once o WHERE (
                SELECT state FROM noisy_cases WHERE job_id = o.job_id AND question_no = o.question_no) = 'labelled')
               AS second_opinions,
           ({_TABLE} pairs) AS answers,
           ({_TABLE} pictures) AS pictures,
           (SELECT jsonb_agg(jsonb_build_array(job_id, question_no) ORDER BY job_id DESC, question_no DESC) FROM (
                SELECT DISTINCT job_id, question_no FROM (
                    SELECT * FROM pictures WHERE was_right <> is_right UNION ALL
                    SELECT job_id, question_no, was_right, is_right FROM pairs WHERE was_right <> is_right) differing
                ORDER BY job_id DESC, question_no DESC LIMIT :most) newest) AS disagreed
""")  # noqa: S608 - our own words
