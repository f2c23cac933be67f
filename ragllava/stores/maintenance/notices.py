"""Notices for people, and their mailings: the rows of an outbox. Every function works in the caller's transaction.

A notice is inserted once for each event, with the change that it tells of. The tick applies the rules of the settings
to it, which makes a mailing for each target, and sends those that are due. Who sends one leases it first.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any

from sqlalchemy import ColumnElement, Connection, case, func, select, text, update
from sqlalchemy.dialects.postgresql import insert

from ragllava.errors import Conflict, NotFound
from ragllava.records import MailingState
from ragllava.stores.database import equals_any, record, records, seconds
from ragllava.stores.maintenance import totals
from ragllava.stores.schema import archives, mailings, notices

_DELETED_AT_ONCE = 1_000


class NoticeEvent(StrEnum):
    """What people may be told of."""

    JOB_ENDED = "job_ended"
    TRAINING_REFUSED = "training_refused"
    GAP_FOUND = "gap_found"
    DISK_LOW = "disk_low"


@dataclass(frozen=True, slots=True)
class NewNotice:
    """Something that has happened to `subject`; the same subject twice is one event. `facts` name no picture."""

    event: NoticeEvent
    subject: str
    facts: dict[str, Any] = field(default_factory=dict)
    archive_id: int | None = None
    job_id: int | None = None


@dataclass(frozen=True, slots=True)
class Notice:
    """A stored notice; `archive` is a name, None where it concerns none or all."""

    notice_id: int
    event: NoticeEvent
    facts: dict[str, Any]
    archive: str | None
    job_id: int | None
    created_at: datetime


@dataclass(frozen=True, slots=True)
class LeasedMailing:
    """A mailing that the caller sends now; `attempts` counts this one. `was_sending`: an earlier sender ended in the
    middle."""

    mailing_id: int
    notice_id: int
    target: str
    attempts: int
    was_sending: bool


@dataclass(frozen=True, slots=True)
class MailingView:
    """What became of a notice for a target. `error` is that of the last attempt; `next_try_at`: of one that waits."""

    mailing_id: int
    event: str
    job_id: int | None
    target: str
    state: MailingState
    attempts: int
    error: str | None
    created_at: datetime
    delivered_at: datetime | None
    next_try_at: datetime | None


def announce(connection: Connection, new: NewNotice) -> bool:
    """Store a notice unless there is one of this event that is not over; returns whether it is new."""
    row = {name: getattr(new, name) for name in ("event", "subject", "facts", "archive_id", "job_id")}
    is_open = notices.c.over_at.is_(None)
    statement = insert(notices).values(row)
    statement = statement.on_conflict_do_nothing(index_elements=["event", "subject"], index_where=is_open)
    return bool(connection.execute(statement).rowcount)


def note_over(connection: Connection, event: NoticeEvent, subject: str) -> bool:
    """An event is over, so that the next one of this subject is another one; whether there was one."""
    is_open = (notices.c.event == event, notices.c.subject == subject, notices.c.over_at.is_(None))
    return bool(connection.execute(update(notices).where(*is_open).values(over_at=func.now())).rowcount)


def new_notices(connection: Connection, limit: int) -> list[Notice]:
    """Notices to which the rules were not applied, oldest first; others that ask meanwhile do not get them."""
    query = _SELECT.where(notices.c.addressed_at.is_(None)).order_by(notices.c.id).limit(limit)
    return records(Notice, connection.execute(query.with_for_update(of=notices, skip_locked=True)))


def load_notice(connection: Connection, notice_id: int) -> Notice | None:
    """One notice; None if it went with its job or archive."""
    row = connection.execute(_SELECT.where(notices.c.id == notice_id)).one_or_none()
    return None if row is None else record(Notice, row)


def address(connection: Connection, notice_id: int, targets: Sequence[str]) -> None:
    """Make a mailing for each target, and note that the rules were applied."""
    rows = [{"notice_id": notice_id, "target": target} for target in dict.fromkeys(targets)]
    if rows:
        connection.execute(insert(mailings).on_conflict_do_nothing(), rows)
    connection.execute(update(notices).where(notices.c.id == notice_id).values(addressed_at=func.now()))


def lease_due(connection: Connection, limit: int, lease_s: float) -> list[LeasedMailing]:
    """Mailings to be sent now; nobody else gets them for `lease_s` seconds. Commit before sending."""
    return records(LeasedMailing, connection.execute(_LEASE, {"limit": limit, "lease_s": lease_s}))


def note_sending(connection: Connection, mailing: LeasedMailing) -> bool:
    """From now on the receiver may have it. False if the lease was over and somebody else has it: do not send it."""
    return _note(connection, mailing.mailing_id, *_leased(mailing), mailings.c.state == "waiting", state="sending")


def note_delivered(connection: Connection, mailing_id: int) -> None:
    """The receiver has accepted it."""
    _note(connection, mailing_id, state="delivered", delivered_at=func.now(), error=None)


def note_failed(connection: Connection, mailing: LeasedMailing, error: str, retry_s: float | None) -> None:
    """It was not accepted; it is sent again after `retry_s` seconds, or, None, given up. Nothing happens if somebody
    else has it by now."""
    after: dict[str, Any] = {"state": MailingState.GIVEN_UP.value}
    if retry_s is not None:
        after = {"state": "waiting", "not_before": func.now() + seconds(retry_s)}
    is_noted = _note(connection, mailing.mailing_id, *_leased(mailing), error=error, **after)
    if is_noted and retry_s is None:
        totals.add(connection, [(totals.MAILINGS, "", MailingState.GIVEN_UP.value, 1.0)])


def list_mailings(connection: Connection, limit: int = 100, state: MailingState | None = None) -> list[MailingView]:
    """The newest mailings, with `state` those in this state alone."""
    query = (
        select(
            mailings.c.id.label("mailing_id"),
            notices.c.event,
            notices.c.job_id,
            notices.c.created_at,
            *(mailings.c[name] for name in ("target", "state", "attempts", "error", "delivered_at")),
            case((mailings.c.state == MailingState.WAITING, mailings.c.not_before)).label("next_try_at"),
        )
        .join(notices, notices.c.id == mailings.c.notice_id)
        .order_by(mailings.c.id.desc())
    )
    if state is not None:
        query = query.where(mailings.c.state == state)
    return records(MailingView, connection.execute(query.limit(limit)))


def send_again(connection: Connection, mailing_ids: Sequence[int]) -> int:
    """Let these mailings, which wait or were given up, be due now; returns how many they are.

    The attempts go on counting. Raises NotFound and Conflict; then nothing is changed.
    """
    wanted = sorted(set(mailing_ids))
    query = select(mailings.c.id, mailings.c.state).where(equals_any(mailings.c.id, wanted))
    states = {row.id: row.state for row in connection.execute(query.order_by(mailings.c.id).with_for_update())}
    for mailing_id in wanted:
        if mailing_id not in states:
            raise NotFound(f"there is no mailing {mailing_id}; `ragllava mailings list` shows the newest")
        if states[mailing_id] not in (MailingState.WAITING, MailingState.GIVEN_UP):
            is_in = "is being sent" if states[mailing_id] == MailingState.SENDING else "was delivered"
            raise Conflict(f"mailing {mailing_id} {is_in}; only one that waits or was given up is sent again")
    return _make_due(connection, equals_any(mailings.c.id, wanted))


def send_given_up_again(connection: Connection) -> int:
    """Let all mailings be due that were given up; returns how many they were."""
    return _make_due(connection, mailings.c.state == MailingState.GIVEN_UP)


def _make_due(connection: Connection, condition: ColumnElement[bool]) -> int:
    due = {"state": MailingState.WAITING, "not_before": func.now()}
    return connection.execute(update(mailings).where(condition).values(due)).rowcount


def delete_old(connection: Connection, older_than_s: float) -> int:
    """Delete notices that are older, have nothing left to send and are over, or tell of a job, a bounded number;
    returns how many. Repeat it until that is 0."""
    return connection.execute(_DELETE_OLD, {"older_than_s": older_than_s, "most": _DELETED_AT_ONCE}).rowcount


def _leased(mailing: LeasedMailing) -> tuple[ColumnElement[bool], ...]:
    """The conditions that the lease is still the caller's: each lease counts an attempt."""
    return (mailings.c.attempts == mailing.attempts, mailings.c.state.in_(("waiting", "sending")))


def _note(connection: Connection, mailing_id: int, *conditions: ColumnElement[bool], **values: Any) -> bool:
    chosen = update(mailings).where(mailings.c.id == mailing_id, *conditions)
    return bool(connection.execute(chosen.values(values)).rowcount)


_SELECT = select(
    notices.c.id.label("notice_id"),
    archives.c.name.label("archive"),
    *(notices.c[name] for name in ("event", "facts", "job_id", "created_at")),
).outerjoin_from(notices, archives, archives.c.id == notices.c.archive_id)
_LEASE = text("""
    WITH due AS (
        SELECT id, state FROM mailings WHERE state IN ('waiting', 'sending') AND not_before <= now()
        ORDER BY not_before, id LIMIT :limit FOR UPDATE SKIP LOCKED
    )
    UPDATE mailings m SET attempts = m.attempts + 1, not_before = now() + make_interval(secs => :lease_s)
    FROM due WHERE m.id = due.id
    RETURNING m.id AS mailing_id, m.notice_id, m.target, m.attempts, due.state = 'sending' AS was_sending
""")
_DELETE_OLD = text("""
    DELETE FROM notices WHERE id = ANY (ARRAY(
        SELECT n.id FROM notices n WHERE n.created_at < now() - make_interval(secs => :older_than_s)
            AND n.addressed_at IS NOT NULL AND (n.over_at IS NOT NULL OR n.job_id IS NOT NULL)
            AND NOT EXISTS (SELECT FROM mailings m WHERE m.notice_id = n.id AND m.state IN ('waiting', 'sending'))
        ORDER BY n.created_at LIMIT :most
    ))
""")
