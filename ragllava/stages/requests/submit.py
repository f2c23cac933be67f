"""Make a request: an urgent job of one input."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sqlalchemy import Connection

from ragllava.jobs import control
from ragllava.jobs.control import NewJob
from ragllava.records import JobKind, Priority
from ragllava.stores.jobs import requests
from ragllava.stores.jobs.requests import Operation


def submit_request(
    connection: Connection, operation: Operation, body: Mapping[str, Any], archive_id: int | None
) -> int:
    """Create the job; returns its id. Without an archive, only who may see all archives can make it."""
    new = NewJob(JobKind.REQUEST, archive_id, {"operation": operation.value}, 1, 1, priority=Priority.URGENT)
    job_id, _ = control.create(connection, new)
    requests.insert_request(connection, job_id, operation, body)
    return job_id
