"""Parts of buckets that feed an archive: bind, list, unbind, scan."""

from __future__ import annotations

from typing import Literal

from ragllava.api.route import Answer, Body, Call, NoBody, NoQuery, Query, Routes
from ragllava.api.routes.native.shared import Json, JsonList, Line
from ragllava.client import AccessRole, BindingRole, TaskName

routes = Routes("Buckets")


class NewBinding(Body):
    """`address` is `s3://bucket/prefix/`. The objects below it become pictures, or are question files (`inbox`), whose
    results go to `outbox`. Unless `scan` is false, what is there is ingested at once.

    Of an inbox, `answer` has the options of its jobs, `priority` theirs; without `skip_invalid`, a file with an invalid
    line becomes no job."""

    address: Line
    role: BindingRole = BindingRole.PICTURES
    outbox: Line | None = None
    answer: Json | None = None
    skip_invalid: bool = True
    priority: Literal["low", "normal", "high"] = "normal"
    scan: bool = True

    @property
    def options(self) -> Json:
        """Those that are stored with the binding. Raises UsageError."""
        if not self.outbox:
            return {}
        of_inbox: Json = {"outbox": self.outbox, "skip_invalid": self.skip_invalid, "priority": self.priority}
        return of_inbox | ({"answer": self.answer} if self.answer else {})


class BindingObject(Answer):
    """A bound part of a bucket, and the job that ingests what is there."""

    object: Literal["binding"] = "binding"
    address: str
    role: str
    archive: str
    job: int | None = None


class AddressQuery(Query):
    """Which binding."""

    address: Line


class QueuedJob(Answer):
    """A job was made."""

    object: Literal["queued"] = "queued"
    job: int


@routes.post(
    "/v1/archives/{archive}/bindings",
    needs=AccessRole.WRITE,
    body=NewBinding,
    answer=BindingObject,
    status=201,
    archive_in="path:archive",
)
def create_binding(call: Call[NoQuery, NewBinding]) -> BindingObject:
    """Let a part of a bucket feed an archive, now and when it changes; only what RAGLLAVA_API_BUCKETS opens."""
    name, body = call.archive(call.path("archive")), call.body
    with call.client.access.admitted(call.principal):
        made = call.client.archives.bind(name, body.address, body.role, body.options)
        job = call.client.schedules.run_task(TaskName.SCAN, name) if body.scan else None
    return BindingObject(address=made.address, role=made.role.value, archive=name, job=job)


@routes.get("/v1/archives/{archive}/bindings", needs=AccessRole.READ, answer=JsonList, archive_in="path:archive")
def list_bindings(call: Call[NoQuery, NoBody]) -> JsonList:
    """The parts of buckets that feed an archive, with counts of their objects."""
    bindings = call.client.archives.bindings(call.archive(call.path("archive")))
    return JsonList(data=[binding.as_json() for binding in bindings])


@routes.delete(
    "/v1/archives/{archive}/bindings",
    needs=AccessRole.WRITE,
    query=AddressQuery,
    answer=BindingObject,
    archive_in="path:archive",
)
def delete_binding(call: Call[AddressQuery, NoBody]) -> BindingObject:
    """Remove a binding; the pictures that it brought stay."""
    name = call.archive(call.path("archive"))
    removed = call.client.archives.unbind(name, call.query.address)
    return BindingObject(address=removed.address, role=removed.role.value, archive=name)


@routes.post(
    "/v1/archives/{archive}/scan", needs=AccessRole.WRITE, answer=QueuedJob, status=202, archive_in="path:archive"
)
def scan_archive(call: Call[NoQuery, NoBody]) -> QueuedJob:
    """Compare the bound buckets with what is stored of them, and repair the differences, in a job."""
    name = call.archive(call.path("archive"))
    with call.client.access.admitted(call.principal):
        return QueuedJob(job=call.client.schedules.run_task(TaskName.SCAN, name))
