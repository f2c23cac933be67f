"""Archives: create, list, show, search, rename, remove."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Literal

from pydantic import Field

from ragllava.api.route import Answer, Body, Call, NoBody, NoQuery, Query, Routes
from ragllava.api.routes.native.shared import Json, Line, LongText
from ragllava.client import AccessRole, ArchiveSummary, FoundImage, Removal, Retrieval

routes = Routes("Archives")

_URL_CHARACTERS = 1_000  # percent-encoded, a character has up to 12 bytes, and a header at most 16 KiB
MAX_PICTURE_BODY_BYTES = 32 * 2**20  # a picture of 20 MiB as base64


class NewArchive(Body):
    """A name of 1 to 63 of the characters a-z, 0-9, `.`, `_` and `-`, that begins with a letter or a digit."""

    name: Line


class IndexOfArchive(Answer):
    """An index and how many images it holds."""

    id: int
    retriever: str
    state: str
    images: int


class ArchiveObject(Answer):
    """An archive without its retired images; `size_bytes` of the picture files."""

    object: Literal["archive"] = "archive"
    name: str
    images: int
    without_caption: int
    size_bytes: int
    active_index: int | None
    indexes: list[IndexOfArchive]
    last_ingest_at: datetime | None
    created_at: datetime


class ArchiveList(Answer):
    """All archives that the caller may see, by name."""

    object: Literal["list"] = "list"
    data: list[ArchiveObject]


class SearchQuery(Query):
    """`q` is what to look for; `where` is a condition on metadata, as text. Both fit into the header of a request."""

    q: Annotated[LongText, Field(min_length=1, max_length=_URL_CHARACTERS)]
    limit: Annotated[int, Field(ge=1, le=1_000)] = 20
    retrieval: Retrieval = Retrieval.HYBRID
    where: Annotated[LongText, Field(max_length=_URL_CHARACTERS)] | None = None


class PictureAddress(Body):
    """An address as in a part of a chat message."""

    url: str = Field(min_length=1)


class PictureSearch(Body):
    """A picture, by its address, and perhaps a text `q`; the others as in a search by text. Not by `caption`."""

    image_url: Annotated[str, Field(min_length=1)] | PictureAddress
    q: LongText = ""
    limit: Annotated[int, Field(ge=1, le=1_000)] = 20
    retrieval: Retrieval = Retrieval.HYBRID
    where: LongText | None = None


class FoundObject(Answer):
    """A picture that a search found. `retrieval_score` is the cosine, `caption_score` BM25; ranks count from 0."""

    image_id: int
    source: str
    caption: str | None
    found_by: str
    picture_rank: int | None
    retrieval_score: float
    caption_rank: int | None
    caption_score: float | None
    metadata: Json | None


class FoundList(Answer):
    """The pictures that were found, the best first."""

    object: Literal["list"] = "list"
    data: list[FoundObject]


class RemovalQuery(Query):
    """With `dry_run`, nothing is removed."""

    dry_run: bool = False


class RemovalObject(Answer):
    """What is being removed, or would be; a maintenance worker does it. `removal_id` is null after a dry run."""

    object: Literal["removal"] = "removal"
    subject: str
    counts: dict[str, int]
    removal_id: int | None


@routes.get("/v1/archives", needs=AccessRole.READ, answer=ArchiveList)
def list_archives(call: Call[NoQuery, NoBody]) -> ArchiveList:
    """All archives that the caller may see, by name."""
    found = [found for found in call.client.archives.list() if call.principal.may_see(found.archive.archive_id)]
    return ArchiveList(data=list(map(archive_object, found)))


@routes.post("/v1/archives", needs=AccessRole.WRITE, body=NewArchive, answer=ArchiveObject, status=201, of_all=True)
def create_archive(call: Call[NoQuery, NewArchive]) -> ArchiveObject:
    """Create an empty archive; 409 if there is one of this name. A key that is bound to archives creates none."""
    call.client.archives.create(call.body.name)
    return archive_object(call.client.archives.get(call.body.name))


@routes.get("/v1/archives/{archive}", needs=AccessRole.READ, answer=ArchiveObject, archive_in="path:archive")
def show_archive(call: Call[NoQuery, NoBody]) -> ArchiveObject:
    """One archive in numbers."""
    return archive_object(call.client.archives.get(call.archive(call.path("archive"))))


@routes.post(
    "/v1/archives/{archive}/rename",
    needs=AccessRole.ADMIN,
    body=NewArchive,
    answer=ArchiveObject,
    of_all=True,
)
def rename_archive(call: Call[NoQuery, NewArchive]) -> ArchiveObject:
    """Give an archive another name; all that belongs to it stays with it."""
    call.client.archives.rename(call.archive(call.path("archive")), call.body.name)
    return archive_object(call.client.archives.get(call.body.name))


@routes.delete(
    "/v1/archives/{archive}",
    needs=AccessRole.ADMIN,
    query=RemovalQuery,
    answer=RemovalObject,
    status=202,
    archive_in="path:archive",
)
def remove_archive(call: Call[RemovalQuery, NoBody]) -> RemovalObject:
    """Erase an archive with its pictures, indexes, jobs, labels, bindings and schedules; 400 while it has open jobs."""
    name = call.archive(call.path("archive"))
    return removal_object(call.client.archives.remove(name, dry_run=call.query.dry_run))


@routes.get(
    "/v1/archives/{archive}/search",
    needs=AccessRole.ASK,
    query=SearchQuery,
    answer=FoundList,
    archive_in="path:archive",
)
async def search_archive(call: Call[SearchQuery, NoBody]) -> FoundList:
    """The pictures that fit a text best: the first stage alone, without reranker and answer; by an answer worker."""
    query = call.query
    name = await call.run(call.archive, call.path("archive"))
    found = await call.wait(
        call.client.requests.search,
        name,
        query.q,
        limit=query.limit,
        retrieval=query.retrieval,
        where=query.where,
        timeout_s=call.settings.api_answer_timeout_s,
    )
    return FoundList(data=list(map(_found_object, found)))


@routes.post(
    "/v1/archives/{archive}/search",
    needs=AccessRole.ASK,
    body=PictureSearch,
    answer=FoundList,
    max_body_bytes=MAX_PICTURE_BODY_BYTES,
    archive_in="path:archive",
)
async def search_by_picture(call: Call[NoQuery, PictureSearch]) -> FoundList:
    """The pictures that are most like one that is sent; with a text, in turns with those that fit it.

    `image_url` is an address as in questions: `data:`, the id of a file, `s3://`, or `https://` of an allowed host.
    """
    body = call.body
    name = await call.run(call.archive, call.path("archive"))
    found = await call.wait(
        call.client.requests.search,
        name,
        body.q,
        limit=body.limit,
        retrieval=body.retrieval,
        where=body.where,
        # By a call of its own: a thread that fetches pictures does not wait for a worker as well.
        picture=await call.run(_stored_picture, call, name),
        timeout_s=call.settings.api_answer_timeout_s,
    )
    return FoundList(data=list(map(_found_object, found)))


def _stored_picture(call: Call[NoQuery, PictureSearch], archive: str) -> str:
    """The picture of a search of which all else is right."""
    body, client = call.body, call.client
    client.requests.check_search(
        archive, limit=body.limit, retrieval=body.retrieval, where=body.where, with_picture=True
    )
    sent = body.image_url if isinstance(body.image_url, str) else body.image_url.url
    return client.questions.store_picture(sent, archive, client.access.count_bytes(call.principal))


def archive_object(summary: ArchiveSummary) -> ArchiveObject:
    """An archive as clients see it."""
    return ArchiveObject(
        name=summary.archive.name,
        images=summary.images,
        without_caption=summary.without_caption,
        size_bytes=summary.size_bytes,
        active_index=summary.archive.active_index_id,
        indexes=[
            IndexOfArchive(
                id=size.index.index_id, retriever=size.index.retriever, state=size.index.state, images=size.images
            )
            for size in summary.indexes
        ],
        last_ingest_at=summary.last_ingest_at,
        created_at=summary.archive.created_at,
    )


def removal_object(removal: Removal) -> RemovalObject:
    """A removal as clients see it."""
    return RemovalObject(subject=removal.subject, counts=removal.counts, removal_id=removal.erasure_id)


def _found_object(found: FoundImage) -> FoundObject:
    return FoundObject(
        image_id=found.image.image_id,
        source=found.image.source,
        caption=found.image.caption,
        found_by=found.origin.value,
        picture_rank=found.picture_rank,
        retrieval_score=found.retrieval_score,
        caption_rank=found.caption_rank,
        caption_score=found.caption_score,
        metadata=found.metadata,
    )
