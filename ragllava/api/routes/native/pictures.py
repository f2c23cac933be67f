"""The pictures of an archive: upload, list, show, read, delete."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import Field
from starlette.responses import Response

from ragllava.api.bodies import close_files, read_form
from ragllava.api.route import Answer, Body, Call, NoBody, NoQuery, Query, Routes
from ragllava.api.routes.native.archives import RemovalObject, RemovalQuery, removal_object
from ragllava.api.routes.native.picture_forms import MAX_FORM_BYTES, PicturesForm, ingest_form
from ragllava.api.routes.native.shared import Id, Json, Line, LongText, made_file, page_of
from ragllava.client import AccessRole, IngestJob, ListedImage, PictureView, StoredContent
from ragllava.errors import NotFound

routes = Routes("Pictures")

# Ids are never given twice, and another picture under the same name gets an id of its own.
_CACHED = "private, max-age=604800, immutable"
# What browsers show without running anything in it; other pictures are downloaded.
SHOWN_TYPES = ("image/jpeg", "image/png", "image/webp", "image/gif", "image/bmp", "image/avif")


class PrefixBody(Body):
    """`address` is `s3://bucket/prefix/`; `name` is what the lists of jobs call it."""

    address: Line
    name: Line | None = None


class IngestObject(Answer):
    """A job that adds pictures: how many, and what became of the captions and of files that are no pictures."""

    object: Literal["ingest"] = "ingest"
    job: int
    files: int
    captions: int
    captions_without_file: list[str]
    passed_over: dict[str, int]
    notes: list[str]


class PictureQuery(Query):
    """Which pictures; `after` is the `last_id` of the page before."""

    after: Id = 0
    limit: Annotated[int, Field(ge=1, le=1_000)] = 100


class ListedPicture(Answer):
    """A line of the list of pictures; width and height in pixels."""

    object: Literal["picture"] = "picture"
    image_id: int
    source: str
    sha256: str
    caption: str | None
    width: int
    height: int
    media_type: str
    created_at: datetime


class PictureList(Answer):
    """A page of pictures, by id."""

    object: Literal["list"] = "list"
    data: list[ListedPicture]
    first_id: int | None
    last_id: int | None
    has_more: bool


class PictureObject(Answer):
    """All that an archive knows of a picture. `questions` are the newest ones whose answer rests on it."""

    object: Literal["picture"] = "picture"
    image_id: int
    archive: str
    source: str
    sha256: str
    caption: str | None
    metadata: Json | None
    width: int
    height: int
    media_type: str
    size_bytes: int
    retired: bool
    created_at: datetime
    updated_at: datetime
    indexes: list[Json]
    questions: list[Json]


class NewCaption(Body):
    """A caption, and the one that it replaces (null: none), so that nobody's change is overwritten unseen."""

    caption: LongText
    expected: LongText | None


class CaptionObject(Answer):
    """A picture and the caption that it has now."""

    object: Literal["picture"] = "picture"
    image_id: int
    caption: str | None


@routes.post(
    "/v1/archives/{archive}/pictures",
    needs=AccessRole.WRITE,
    body=PicturesForm,
    upload=MAX_FORM_BYTES,
    answer=IngestObject,
    status=202,
    archive_in="path:archive",
)
async def upload_pictures(call: Call[NoQuery, NoBody]) -> IngestObject:
    """Add pictures to an archive, in a job: files of a multipart form, also zip and tar files with pictures.

    The file of the field `captions` (CSV, JSON lines, JSON, Parquet, Excel) has captions and metadata by file name; so
    has the field `descriptions` for a few. Every file ends as stored, duplicate or rejected in the job. With
    `Idempotency-Key`, a repetition makes no second job; without, it stores nothing twice.
    """
    name = await call.run(call.archive, call.path("archive"))
    form, files = await read_form(call.request, PicturesForm, MAX_FORM_BYTES)
    try:
        return _ingest_object(await call.run(ingest_form, call, name, form, files))
    finally:
        await close_files(files)


@routes.post(
    "/v1/archives/{archive}/ingest",
    needs=AccessRole.WRITE,
    body=PrefixBody,
    answer=IngestObject,
    status=202,
    archive_in="path:archive",
)
def ingest_prefix(call: Call[NoQuery, PrefixBody]) -> IngestObject:
    """Add the pictures that lie below `s3://bucket/prefix/` now, in a job, with the captions of caption files there.

    The prefix is one that is bound to the archive or within such a one, or is opened by RAGLLAVA_API_BUCKETS. With
    `Idempotency-Key`, a repetition makes no second job.
    """
    name, body = call.archive(call.path("archive")), call.body
    with call.client.access.admitted(call.principal):
        return _ingest_object(
            call.client.archives.ingest_prefix(body.address, name, name=body.name, idempotency_key=call.idempotency_key)
        )


@routes.get(
    "/v1/archives/{archive}/pictures",
    needs=AccessRole.READ,
    query=PictureQuery,
    answer=PictureList,
    archive_in="path:archive",
)
def list_pictures(call: Call[PictureQuery, NoBody]) -> PictureList:
    """The pictures of an archive by id, without those that are retired."""
    limit = call.query.limit
    rows = call.client.pictures.list(call.archive(call.path("archive")), after=call.query.after, limit=limit + 1)
    return page_of(PictureList, list(map(_listed, rows[:limit])), len(rows) > limit, "image_id")


@routes.get(
    "/v1/archives/{archive}/pictures/{image_id}",
    needs=AccessRole.READ,
    answer=PictureObject,
    archive_in="path:archive",
)
def show_picture(call: Call[NoQuery, NoBody]) -> PictureObject:
    """One picture: caption, metadata, indexes, and the answers that rest on it."""
    view = _view(call)
    names = [name for name in PictureObject.model_fields if name not in {"object", "indexes", "questions"}]
    return PictureObject(
        **{name: getattr(view, name) for name in names},
        indexes=[{"id": index_id, "state": state} for index_id, state in view.indexes],
        questions=[
            {
                "job": asked.job_id,
                "custom_id": asked.custom_id,
                "question": asked.question,
                "answer": asked.answer,
                "relevance": asked.relevance,
            }
            for asked in view.questions
        ],
    )


@routes.get(
    "/v1/archives/{archive}/pictures/{image_id}/content",
    needs=AccessRole.READ,
    streams="*/*",
    archive_in="path:archive",
)
def read_picture(call: Call[NoQuery, NoBody]) -> Response:
    """The bytes of a picture as they were ingested; also parts of them (`Range`), and 304 for the `ETag` given."""
    return send_picture(call, content_of(call))


def send_picture(call: Call[Any, Any], content: StoredContent) -> Response:
    """These bytes, or 304."""
    etag = f'"{content.sha256}"'
    if _has(call, etag):
        return Response(status_code=304, headers={"etag": etag, "cache-control": _CACHED})
    is_shown = content.media_type in SHOWN_TYPES
    return made_file(
        lambda path: call.client.pictures.save(content.sha256, path),
        "picture",
        content.media_type if is_shown else "application/octet-stream",
        etag=etag,
        cache_control=_CACHED,
        content_disposition="inline" if is_shown else "attachment",
    )


@routes.get(
    "/v1/archives/{archive}/pictures/{image_id}/thumbnail",
    needs=AccessRole.READ,
    streams="image/jpeg",
    archive_in="path:archive",
)
def read_thumbnail(call: Call[NoQuery, NoBody]) -> Response:
    """A JPEG of a picture, its longer side at most 256 pixels; 404 when the picture cannot be read.

    It is made at the first request, and kept. Caches may keep it without asking again.
    """
    return send_thumbnail(call, content_of(call))


def send_thumbnail(call: Call[Any, Any], content: StoredContent) -> Response:
    """The thumbnail of these bytes, or 304. Raises NotFound."""
    etag = f'"{content.sha256}-thumbnail"'
    headers = {"etag": etag, "cache-control": _CACHED}
    if _has(call, etag):
        return Response(status_code=304, headers=headers)
    data = call.client.pictures.thumbnail(content.sha256)
    if data is None:
        raise NotFound(f"the picture {call.number('image_id')} cannot be read")
    return Response(data, headers=headers, media_type="image/jpeg")


@routes.patch(
    "/v1/archives/{archive}/pictures/{image_id}",
    needs=AccessRole.WRITE,
    body=NewCaption,
    answer=CaptionObject,
    archive_in="path:archive",
)
def edit_picture(call: Call[NoQuery, NewCaption]) -> CaptionObject:
    """Replace the caption of a picture, also in the search by words; no index is built again.

    An empty one removes what was said beside the picture, and the caption inside the file counts again. 409 when the
    caption is no longer `expected`, and when a bound bucket gives it: change it in the bucket. A later ingest of the
    same file with a caption replaces it.
    """
    name, image_id = call.archive(call.path("archive")), call.number("image_id")
    body = call.body
    caption = call.client.pictures.set_caption(name, image_id, body.caption, expected=body.expected)
    return CaptionObject(image_id=image_id, caption=caption)


@routes.delete(
    "/v1/archives/{archive}/pictures/{image_id}",
    needs=AccessRole.WRITE,
    query=RemovalQuery,
    answer=RemovalObject,
    status=202,
    archive_in="path:archive",
)
def remove_picture(call: Call[RemovalQuery, NoBody]) -> RemovalObject:
    """Erase a picture from every place where it is stored; answers that rest on it keep their texts."""
    view = _view(call)
    removal = call.client.archives.remove_pictures(view.archive, [str(view.image_id)], dry_run=call.query.dry_run)
    return removal_object(removal)


def _view(call: Call[Any, NoBody]) -> PictureView:
    """By its id alone: a picture may be called as another one's id."""
    name, image_id = call.archive(call.path("archive")), call.number("image_id")
    return call.client.pictures.get(name, image_id)


def content_of(call: Call[Any, Any]) -> StoredContent:
    """The bytes of the picture, without all else that is known of it."""
    return call.client.pictures.content(call.archive(call.path("archive")), call.number("image_id"))


def _has(call: Call[Any, Any], etag: str) -> bool:
    given = call.request.headers.get("if-none-match", "")
    return given.strip() == "*" or etag in [part.strip().removeprefix("W/") for part in given.split(",")]


def _listed(image: ListedImage) -> ListedPicture:
    names = [name for name in ListedPicture.model_fields if name != "object"]
    return ListedPicture(**{name: getattr(image, name) for name in names})


def _ingest_object(job: IngestJob) -> IngestObject:
    return IngestObject(
        job=job.job_id,
        files=job.total,
        captions=job.captions + job.beside.listed_captions,
        captions_without_file=list(job.unused_captions[:100]),
        passed_over=dict(job.beside.passed_over),
        notes=list(job.beside.notes),
    )
