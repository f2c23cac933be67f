"""Webhooks, and what is to be sent to them: the rows of an outbox. Every function works in the caller's transaction.

A delivery is inserted in the transaction that stores the result of a job. Who sends one leases it first: the number of
attempts grows and its next time is set before anything is sent, so a killed sender delays it and loses nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, Connection, delete, func, insert, select, text, update

from ragllava.errors import NotFound
from ragllava.stores.database import record, records, seconds
from ragllava.stores.maintenance import totals
from ragllava.stores.schema import archives, deliveries, webhooks

_SHOWN = 100


@dataclass(frozen=True, slots=True)
class WebhookView:
    """A webhook without its secret. `archive` None: jobs of all archives."""

    webhook_id: int
    owner: str
    archive: str | None
    url: str
    kinds: tuple[str, ...]
    created_at: datetime


@dataclass(frozen=True, slots=True)
class NewWebhook:
    """A webhook to be made. `secret` signs what is sent."""

    owner: str
    archive_id: int | None
    url: str
    kinds: tuple[str, ...]
    secret: str


@dataclass(frozen=True, slots=True)
class DeliveryView:
    """A delivery: waiting, delivered or given_up; `error` is that of the last attempt."""

    delivery_id: int
    job_id: int
    state: str
    attempts: int
    error: str | None
    created_at: datetime
    delivered_at: datetime | None


@dataclass(frozen=True, slots=True)
class LeasedDelivery:
    """A delivery that the caller sends now; `attempts` counts this one."""

    delivery_id: int
    job_id: int
    attempts: int
    url: str
    secret: str


def insert_webhook(connection: Connection, new: NewWebhook) -> WebhookView:
    """Store a webhook."""
    values = {name: getattr(new, name) for name in ("owner", "archive_id", "url", "secret")}
    row = insert(webhooks).values(values | {"kinds": list(new.kinds)}).returning(webhooks.c.id)
    return load_webhook(connection, int(connection.execute(row).scalar_one()))


def load_webhook(connection: Connection, webhook_id: int) -> WebhookView:
    """One webhook. Raises NotFound."""
    row = connection.execute(_SELECT.where(webhooks.c.id == webhook_id)).one_or_none()
    if row is None:
        raise _unknown(webhook_id)
    return record(WebhookView, row)


def list_webhooks(connection: Connection) -> list[WebhookView]:
    """All webhooks by age."""
    return records(WebhookView, connection.execute(_SELECT.order_by(webhooks.c.id)))


def delete_webhook(connection: Connection, webhook_id: int) -> None:
    """Delete a webhook with its deliveries. Raises NotFound."""
    if not connection.execute(delete(webhooks).where(webhooks.c.id == webhook_id)).rowcount:
        raise _unknown(webhook_id)


def list_deliveries(connection: Connection, webhook_id: int) -> list[DeliveryView]:
    """The newest deliveries of a webhook. Raises NotFound."""
    load_webhook(connection, webhook_id)
    query = select(deliveries.c.id.label("delivery_id"), deliveries).where(deliveries.c.webhook_id == webhook_id)
    return records(DeliveryView, connection.execute(query.order_by(deliveries.c.id.desc()).limit(_SHOWN)))


def announce_end(connection: Connection, job_id: int) -> None:
    """Queue a delivery for each webhook that wants to know of the end of this job; repeating it queues none twice."""
    connection.execute(_ANNOUNCE, {"job_id": job_id})


def lease_due(connection: Connection, limit: int, lease_s: float) -> list[LeasedDelivery]:
    """Deliveries to be sent now; nobody else gets them for `lease_s` seconds. Commit before sending."""
    is_due = (deliveries.c.state == "waiting", deliveries.c.not_before <= func.now())
    due = select(deliveries.c.id).where(*is_due).order_by(deliveries.c.not_before, deliveries.c.id).limit(limit)
    leased = {"attempts": deliveries.c.attempts + 1, "not_before": func.now() + seconds(lease_s)}
    chosen = deliveries.c.id.in_(due.with_for_update(skip_locked=True).scalar_subquery())
    rows = connection.execute(
        update(deliveries)
        .where(chosen, webhooks.c.id == deliveries.c.webhook_id)
        .values(leased)
        .returning(
            deliveries.c.id.label("delivery_id"),
            deliveries.c.job_id,
            deliveries.c.attempts,
            webhooks.c.url,
            webhooks.c.secret,
        )
    )
    return records(LeasedDelivery, rows)


def note_delivered(connection: Connection, delivery_id: int) -> None:
    """It was sent, and accepted."""
    _note(connection, delivery_id, state="delivered", delivered_at=func.now(), error=None)


def note_failed(connection: Connection, delivery: LeasedDelivery, error: str, retry_s: float | None) -> None:
    """The message was not accepted: it is sent again after `retry_s` seconds, or given up if that is None.

    Does nothing if the message has been delivered, or leased again, since this lease.
    """
    again: dict[str, Any] = {"state": "given_up"} if retry_s is None else {"not_before": func.now() + seconds(retry_s)}
    is_leased = (deliveries.c.attempts == delivery.attempts, deliveries.c.state == "waiting")
    is_noted = _note(connection, delivery.delivery_id, *is_leased, error=error, **again)
    if is_noted and retry_s is None:
        totals.add(connection, [(totals.WEBHOOKS, "", "given_up", 1.0)])


def delete_old(connection: Connection, older_than_s: float) -> int:
    """Delete deliveries that were sent or given up longer ago; returns how many."""
    old = (deliveries.c.state != "waiting", deliveries.c.created_at < func.now() - seconds(older_than_s))
    return connection.execute(delete(deliveries).where(*old)).rowcount


def _note(connection: Connection, delivery_id: int, *conditions: ColumnElement[bool], **values: Any) -> bool:
    chosen = update(deliveries).where(deliveries.c.id == delivery_id, *conditions)
    return bool(connection.execute(chosen.values(values)).rowcount)


def _unknown(webhook_id: int) -> NotFound:
    return NotFound(f"there is no webhook {webhook_id}")


_COLUMNS: Sequence[Any] = (webhooks.c.id.label("webhook_id"), archives.c.name.label("archive"))
_SELECT = select(*_COLUMNS, *(webhooks.c[name] for name in ("owner", "url", "kinds", "created_at"))).outerjoin_from(
    webhooks, archives, archives.c.id == webhooks.c.archive_id
)

# A webhook is not told of what ended before it was there: results are written again when pictures are removed.
_ANNOUNCE = text("""
    INSERT INTO deliveries (webhook_id, job_id, finished_at)
    SELECT w.id, j.id, j.finished_at FROM jobs j
    JOIN webhooks w ON (w.archive_id IS NULL OR w.archive_id = j.archive_id) AND j.kind = ANY (w.kinds)
    WHERE j.id = :job_id AND j.finished_at >= w.created_at
    ON CONFLICT DO NOTHING
""")
