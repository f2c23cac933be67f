"""Requests that somebody waits for: what the answer workers compute at once, and its result.

Every function works in the caller's transaction. A request belongs to a job of its own with this only input. Its body
goes with its outcome, so that no caption of it outlives the request.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from sqlalchemy import Connection, delete, func, insert, select, update

from ragllava.records import RequestStatus
from ragllava.stores.database import equals_any, lock_rows, record, seconds
from ragllava.stores.schema import jobs, requests

_DELETED_AT_ONCE = 1_000


class Operation(StrEnum):
    """What a request asks for."""

    SEARCH = "search"  # images of an archive
    SCORE = "score"  # relevances of pairs
    TIME = "time"  # how long questions take


class Fault(StrEnum):
    """Why a request has no result, where its worker knows it; the queue ends others without a code."""

    OF_REQUEST = "of_request"  # it asks for what cannot be done


@dataclass(frozen=True, slots=True)
class Request:
    """A request without its outcome."""

    operation: Operation
    body: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a request ended; status None: it has not. `reason` is a sentence, of one without a result; `code` says whose
    fault that is."""

    status: RequestStatus | None
    result: dict[str, Any] | None
    reason: str | None
    code: Fault | None = None


def insert_request(connection: Connection, job_id: int, operation: Operation, body: Mapping[str, Any]) -> None:
    """Write the only input of a job."""
    values = {"job_id": job_id, "operation": operation.value, "body": dict(body)}
    connection.execute(insert(requests).values(values))


def load_request(connection: Connection, job_id: int) -> Request | None:
    """The request of a job; None when it has an outcome."""
    columns = [requests.c.operation, requests.c.body]
    query = select(*columns).where(requests.c.job_id == job_id, requests.c.body.is_not(None))
    row = connection.execute(query).one_or_none()
    return None if row is None else record(Request, row)


def finish_request(connection: Connection, job_id: int, result: Mapping[str, Any]) -> None:
    """Store the result."""
    _end(connection, job_id, status=RequestStatus.DONE, result=dict(result))


def fail_request(connection: Connection, job_id: int, reason: str) -> None:
    """Store why there is none: the request asks for what cannot be done."""
    _end(connection, job_id, status=RequestStatus.FAILED, reason=reason, code=Fault.OF_REQUEST)


def load_outcome(connection: Connection, job_id: int) -> Outcome:
    """How the request of a job ended."""
    columns = [requests.c.status, requests.c.result, requests.c.reason, requests.c.code]
    return record(Outcome, connection.execute(select(*columns).where(requests.c.job_id == job_id)).one())


def delete_old(connection: Connection, older_than_s: float) -> int:
    """Delete requests that ended longer ago, with their jobs; returns how many. Nobody waits for them any more.

    Only those whose end was seen to (`result`): what finishes jobs must not find them gone. There are few requests at
    any time, and many other jobs, so that it begins with the requests.
    """
    of_request = select(jobs.c.result.is_not(None) & (jobs.c.finished_at < func.now() - seconds(older_than_s)))
    is_old = of_request.where(jobs.c.id == requests.c.job_id).limit(1).correlate(requests).scalar_subquery()
    old = connection.scalars(
        select(requests.c.job_id).where(is_old).order_by(requests.c.job_id).limit(_DELETED_AT_ONCE)
    )
    of_old = equals_any(jobs.c.id, old)
    lock_rows(connection, jobs, of_old)
    return connection.execute(delete(jobs).where(of_old)).rowcount


def _end(connection: Connection, job_id: int, **values: object) -> None:
    connection.execute(update(requests).where(requests.c.job_id == job_id).values(body=None, **values))
