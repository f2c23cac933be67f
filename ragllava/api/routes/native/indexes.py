"""Indexes of archives, reindexing, and the files and pictures of an archive that no question can find."""

from __future__ import annotations

from typing import Literal

from ragllava.api.route import Answer, Body, Call, NoBody, NoQuery, Routes
from ragllava.api.routes.native.buckets import QueuedJob
from ragllava.api.routes.native.shared import Json, JsonList, json_list, json_of
from ragllava.client import AccessRole, ReindexRequest, Selection

routes = Routes("Indexes")


class NewReindexing(Body):
    """Which pictures are embedded again. With `switch`, a new index that passed its gate is used at once."""

    only: Selection = Selection.MISSING
    switch: bool = True


class IndexObject(Answer):
    """An index, as `ragllava index show --json` has it."""

    object: Literal["index"] = "index"
    index: Json


@routes.get("/v1/archives/{archive}/indexes", needs=AccessRole.READ, answer=JsonList, archive_in="path:archive")
def list_indexes(call: Call[NoQuery, NoBody]) -> JsonList:
    """The indexes of an archive, by age."""
    return json_list(call.client.archives.indexes.list(call.archive(call.path("archive"))))


@routes.post(
    "/v1/archives/{archive}/reindex",
    needs=AccessRole.ADMIN,
    body=NewReindexing,
    answer=QueuedJob,
    status=202,
    archive_in="path:archive",
)
def reindex_archive(call: Call[NoQuery, NewReindexing]) -> QueuedJob:
    """Embed pictures of an archive again, in a job."""
    name = call.archive(call.path("archive"))
    request = ReindexRequest(name, call.body.only, switch=call.body.switch, idempotency_key=call.idempotency_key)
    with call.client.access.admitted(call.principal):
        return QueuedJob(job=call.client.archives.reindex(request))


@routes.get("/v1/indexes/{index_id}", needs=AccessRole.READ, answer=IndexObject, archive_in="path:index_id")
def show_index(call: Call[NoQuery, NoBody]) -> IndexObject:
    """One index: its archive, its retriever, its vectors, and the figures of its gate."""
    return IndexObject(index=json_of(call.client.archives.indexes.get(call.number("index_id"))))


@routes.post(
    "/v1/indexes/{index_id}/switch", needs=AccessRole.ADMIN, answer=QueuedJob, status=202, archive_in="path:index_id"
)
def switch_index(call: Call[NoQuery, NoBody]) -> QueuedJob:
    """Queue a job that adds what this index lacks and then answers from it."""
    with call.client.access.admitted(call.principal):
        return QueuedJob(job=call.client.archives.indexes.switch(call.number("index_id")))


@routes.get("/v1/archives/{archive}/gaps", needs=AccessRole.READ, answer=JsonList, archive_in="path:archive")
def list_gaps(call: Call[NoQuery, NoBody]) -> JsonList:
    """The pictures that no question can find, each with the reason."""
    return json_list(call.client.archives.gaps(call.archive(call.path("archive"))))


@routes.get("/v1/archives/{archive}/rejected", needs=AccessRole.READ, answer=JsonList, archive_in="path:archive")
def list_rejected(call: Call[NoQuery, NoBody]) -> JsonList:
    """The files whose latest ingest was rejected, each with the reason."""
    return json_list(call.client.archives.rejected(call.archive(call.path("archive"))))
