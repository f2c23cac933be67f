"""The queue of noisy cases for reviewers: leases, what each of them said, and what can be undone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, func, select, text, update

from ragllava.feedback import NoisyReason, NoisyState, Verdict
from ragllava.stores.database import given, record, records, same, seconds
from ragllava.stores.jobs.answered import QuestionKey
from ragllava.stores.schema import archives, noisy_cases, reviews

FIRST: QuestionKey = (2**63 - 1, -1)  # a position before all cases of a queue


@dataclass(frozen=True, slots=True)
class Reviewer:
    """Who reviews, and in which tab of a browser: two tabs of one person hold different cases."""

    name: str
    tab: str


@dataclass(frozen=True, slots=True)
class QueueFilter:
    """Which cases of an archive. `model` is the version of a reranker or generator that answered.

    With `second_opinion`, those that exactly one other person has labelled, instead of the open ones.
    """

    reason: NoisyReason | None = None
    job_id: int | None = None
    model: str | None = None
    second_opinion: bool = False


@dataclass(frozen=True, slots=True)
class LockedCase:
    """A case whose row is locked in this transaction. `holder` and `tab` have it open; None: nobody has."""

    archive_id: int
    state: NoisyState
    reasons: tuple[NoisyReason, ...]
    details: dict[str, Any]
    updated_at: datetime
    version: int
    holder: str | None
    tab: str | None
    held_until: datetime | None

    def before(self) -> dict[str, Any]:
        """What an undo restores, as JSON."""
        return {
            "state": self.state.value,
            "reasons": [reason.value for reason in self.reasons],
            "details": self.details,
            "updated_at": self.updated_at.isoformat(),
            "version": self.version,
        }


@dataclass(frozen=True, slots=True)
class Review:
    """What a reviewer did with a case. `verdict` None: he dismissed it. `version` is that of the case after it."""

    job_id: int
    question_no: int
    reviewer: str
    save_id: str
    verdict: Verdict | None
    relevant: tuple[int, ...]
    irrelevant: tuple[int, ...]
    label_id: int | None
    undo: dict[str, Any] | None
    version: int
    id: int | None = None

    @property
    def key(self) -> QuestionKey:
        """The case."""
        return self.job_id, self.question_no


@dataclass(frozen=True, slots=True)
class SaidOpinion:
    """What one person has said of a case at last; `answer` is the right one, if the person wrote one."""

    reviewer: str
    verdict: Verdict
    answer: str | None
    relevant: tuple[int, ...]
    irrelevant: tuple[int, ...]
    created_at: datetime


def claim(
    connection: Connection,
    archive_id: int,
    which: QueueFilter,
    reviewer: Reviewer,
    *,
    lease_s: float,
    limit: int,
    after: QuestionKey = FIRST,
) -> list[QuestionKey]:
    """Lease the next cases of a queue, those of the newest job first; nobody else gets one of them meanwhile.

    Left out are cases that somebody else, or another tab, has open, and those that this person has reviewed as they
    are. `after` is the last case that the caller has.
    """
    values = {
        "archive_id": archive_id,
        "state": (NoisyState.LABELLED if which.second_opinion else NoisyState.OPEN).value,
        "second": which.second_opinion,
        "reason": which.reason.value if which.reason else None,
        "job_id": which.job_id,
        "model": which.model,
        "me": reviewer.name,
        "tab": reviewer.tab,
        "lease_s": lease_s,
        "limit": limit,
        "after_job": after[0],
        "after_no": after[1],
    }
    keys = [(row.job_id, row.question_no) for row in connection.execute(_CLAIM, values)]
    return sorted(keys, key=lambda key: (-key[0], key[1]))


def renew(connection: Connection, keys: Sequence[QuestionKey], reviewer: Reviewer, lease_s: float) -> list[QuestionKey]:
    """Prolong leases, also those that ended and that nobody has taken; returns the cases that are still held."""
    cases = noisy_cases.c
    held = same(noisy_cases, given(keys, cases.job_id, cases.question_no), "job_id", "question_no")
    mine = (cases.locked_by == reviewer.name, cases.locked_tab == reviewer.tab)
    until = func.now() + seconds(lease_s)
    statement = update(noisy_cases).where(held, *mine).values(locked_until=until)
    rows = connection.execute(statement.returning(cases.job_id, cases.question_no))
    return [(job_id, number) for job_id, number in rows]


def take(connection: Connection, key: QuestionKey, reviewer: Reviewer, lease_s: float) -> bool:
    """Lease this case, unless another reviewer holds it; returns whether it is leased.

    It is taken over from another tab of the same reviewer, who has asked for it here.
    """
    values = {"job_id": key[0], "no": key[1], "me": reviewer.name, "tab": reviewer.tab, "lease_s": lease_s}
    return connection.execute(_TAKE, values).rowcount > 0


def release(connection: Connection, reviewer: Reviewer, keys: Sequence[QuestionKey] | None = None) -> int:
    """End the leases of a tab, or those of these cases; returns how many."""
    cases = noisy_cases.c
    mine = [cases.locked_by == reviewer.name, cases.locked_tab == reviewer.tab]
    if keys is not None:
        mine.append(same(noisy_cases, given(keys, cases.job_id, cases.question_no), "job_id", "question_no"))
    free = update(noisy_cases).where(*mine).values(locked_by=None, locked_tab=None, locked_until=None)
    return connection.execute(free).rowcount


def lock_case(connection: Connection, key: QuestionKey) -> LockedCase | None:
    """A case, whose row stays locked until the end of the transaction; None if the question is none."""
    row = connection.execute(_LOCK, {"job_id": key[0], "no": key[1]}).one_or_none()
    return None if row is None else record(LockedCase, row)


def next_version(connection: Connection, key: QuestionKey) -> tuple[int, NoisyState]:
    """Give a case its next version, also where a review has changed nothing else; returns it and the state."""
    cases = noisy_cases.c
    of_case = update(noisy_cases).where(cases.job_id == key[0], cases.question_no == key[1])
    grown = of_case.values(version=cases.version + 1).returning(cases.version, cases.state)
    row = connection.execute(grown).one()
    return row.version, NoisyState(row.state)


def newest_label_id(connection: Connection, key: QuestionKey) -> int | None:
    """The id of the newest label of a question."""
    query = text("SELECT max(id) FROM labels WHERE job_id = :job_id AND question_no = :no")
    newest: int | None = connection.scalar(query, {"job_id": key[0], "no": key[1]})
    return newest


def insert_review(connection: Connection, archive_id: int, review: Review) -> None:
    """Store what a reviewer did."""
    values = {name: getattr(review, name) for name in Review.__slots__ if name != "id"}
    listed = {"relevant": list(review.relevant), "irrelevant": list(review.irrelevant)}
    verdict = review.verdict.value if review.verdict else None
    connection.execute(reviews.insert().values(values | listed | {"verdict": verdict, "archive_id": archive_id}))


def find_review(connection: Connection, archive_id: int, reviewer: str, save_id: str) -> Review | None:
    """What a reviewer has saved under this id in an archive."""
    of_reviewer = (reviews.c.archive_id == archive_id, reviews.c.reviewer == reviewer)
    query = select(reviews).where(*of_reviewer, reviews.c.save_id == save_id)
    row = connection.execute(query).one_or_none()
    return None if row is None else record(Review, row)


def last_review(connection: Connection, archive_id: int, reviewer: str) -> Review | None:
    """The newest review of a person in an archive."""
    mine = select(reviews).where(reviews.c.archive_id == archive_id, reviews.c.reviewer == reviewer)
    row = connection.execute(mine.order_by(reviews.c.created_at.desc(), reviews.c.id.desc()).limit(1)).one_or_none()
    return None if row is None else record(Review, row)


def last_reviewer(connection: Connection, key: QuestionKey) -> str | None:
    """Who reviewed a case last."""
    of_case = (reviews.c.job_id == key[0], reviews.c.question_no == key[1])
    query = select(reviews.c.reviewer).where(*of_case).order_by(reviews.c.id.desc()).limit(1)
    name: str | None = connection.scalar(query)
    return name


def restore(connection: Connection, review: Review, version: int) -> None:
    """Undo a review: the case is as before, its label is gone. `version` is that of the case now.

    The review before it, if it is of the same case as it is again, can be undone next.
    """
    before = review.undo or {}
    values = {**before, "job_id": review.job_id, "no": review.question_no, "version": version + 1}
    values |= {"id": review.id, "label_id": review.label_id, "restored": before.get("version")}
    for statement in _RESTORE:
        connection.execute(statement, values)


def forget_undo(connection: Connection, archive_id: int) -> None:
    """The reviews of an archive cannot be undone any more: what an undo restores may name what was erased."""
    with_undo = (reviews.c.archive_id == archive_id, reviews.c.undo.is_not(None))
    connection.execute(update(reviews).where(*with_undo).values(undo=None))


def count_open(connection: Connection) -> dict[str, int]:
    """How many open cases each archive has, by its name; archives without any are left out."""
    of_archive = noisy_cases.join(archives, archives.c.id == noisy_cases.c.archive_id)
    query = select(archives.c.name, func.count()).select_from(of_archive).group_by(archives.c.name)
    rows = connection.execute(query.where(noisy_cases.c.state == NoisyState.OPEN.value))
    return {name: int(count) for name, count in rows}


def opinions_on(connection: Connection, key: QuestionKey) -> list[SaidOpinion]:
    """The newest opinion of each person on one case, in the order in which they were given."""
    job_id, number = key
    return records(SaidOpinion, connection.execute(_OPINIONS_ON, {"job_id": job_id, "no": number}))


_FREE = """(n.locked_until IS NULL OR n.locked_until < now() OR (n.locked_by = :me AND n.locked_tab = :tab))"""
_CLAIM = text(f"""
    UPDATE noisy_cases n
    SET locked_by = :me, locked_tab = :tab, locked_until = now() + make_interval(secs => :lease_s)
    FROM (
        SELECT n.job_id, n.question_no FROM noisy_cases n
        WHERE n.archive_id = :archive_id AND n.state = :state AND n.job_id <= :after_job
          AND (n.job_id < :after_job OR n.question_no > :after_no)
          AND (CAST(:job_id AS bigint) IS NULL OR n.job_id = :job_id)
          AND (CAST(:reason AS text) IS NULL OR n.reasons @> ARRAY[CAST(:reason AS text)])
          AND {_FREE}
          AND (CAST(:model AS text) IS NULL OR EXISTS (
              SELECT FROM answers a WHERE a.job_id = n.job_id AND a.question_no = n.question_no
                AND CAST(:model AS text) IN (a.models->>'reranker', a.models->>'generator')))
          AND NOT EXISTS (
              SELECT FROM reviews r WHERE r.job_id = n.job_id AND r.question_no = n.question_no
                AND r.reviewer = :me AND (:second OR r.version = n.version))
          AND (NOT :second OR (
              SELECT count(DISTINCT r.reviewer) FROM reviews r
              WHERE r.job_id = n.job_id AND r.question_no = n.question_no AND r.verdict IS NOT NULL) = 1)
        ORDER BY n.job_id DESC, n.question_no LIMIT :limit FOR UPDATE OF n SKIP LOCKED) free
    WHERE n.job_id = free.job_id AND n.question_no = free.question_no
    RETURNING n.job_id, n.question_no
""")  # noqa: S608 - our own condition
_TAKE = text("""
    UPDATE noisy_cases n
    SET locked_by = :me, locked_tab = :tab, locked_until = now() + make_interval(secs => :lease_s)
    WHERE n.job_id = :job_id AND n.question_no = :no
      AND (n.locked_until IS NULL OR n.locked_until < now() OR n.locked_by = :me)
""")
_LOCK = text("""
    SELECT archive_id, state, reasons, details, updated_at, version,
           CASE WHEN locked_until > now() THEN locked_by END AS holder,
           CASE WHEN locked_until > now() THEN locked_tab END AS tab, locked_until AS held_until
    FROM noisy_cases WHERE job_id = :job_id AND question_no = :no FOR UPDATE
""")
_RESTORE = (
    text("""
        UPDATE noisy_cases SET state = :state, reasons = :reasons, version = :version,
               updated_at = CAST(:updated_at AS timestamptz), details = u.undo->'details'
        FROM (SELECT undo FROM reviews WHERE id = :id) u
        WHERE job_id = :job_id AND question_no = :no
    """),
    text("DELETE FROM labels WHERE id = :label_id"),
    text("DELETE FROM reviews WHERE id = :id"),
    text("""
        UPDATE reviews SET version = :version
        WHERE job_id = :job_id AND question_no = :no AND version = :restored
    """),
)
_OPINIONS_ON = text("""
    SELECT * FROM (
        SELECT DISTINCT ON (r.reviewer) r.id, r.reviewer, r.verdict, l.answer, r.relevant, r.irrelevant, r.created_at
        FROM reviews r LEFT JOIN labels l ON l.id = r.label_id
        WHERE r.job_id = :job_id AND r.question_no = :no AND r.verdict IS NOT NULL
        ORDER BY r.reviewer, r.id DESC) newest
    ORDER BY id
""")
