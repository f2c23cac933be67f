"""`/v1/files`, as OpenAI's clients use it: upload, list, show, read, delete."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Annotated, Literal

import anyio
from pydantic import Field
from starlette.datastructures import UploadFile
from starlette.responses import StreamingResponse

from ragllava.api.bodies import close_files, read_form
from ragllava.api.errors import InvalidRequest
from ragllava.api.route import Answer, Body, Call, NoBody, NoQuery, Query, Routes
from ragllava.api.routes.native.shared import page_of
from ragllava.client import AccessRole, Page, Upload

routes = Routes("Files")

MAX_FORM_BYTES = 513 * 2**20  # a file of 512 MiB, and what surrounds it
_DEFAULT_S = {"batch": 30 * 86_400.0}  # after which files of these purposes are deleted
_PIECE_BYTES = 256 * 2**10
_MAX_NAME = 255


class ExpiresAfter(Body):
    """When a file is deleted."""

    anchor: Literal["created_at"]
    seconds: Annotated[int, Field(ge=3_600, le=2_592_000)]


class UploadForm(Body):
    """The fields beside the field `file`."""

    purpose: Literal["batch", "vision", "user_data"]
    expires_after: ExpiresAfter | None = None


class FileQuery(Query):
    """Which files."""

    after: str | None = None
    limit: Annotated[int, Field(ge=1, le=10_000)] = 10_000
    order: Literal["asc", "desc"] = "desc"
    purpose: Annotated[str, Field(max_length=64)] | None = None


class FileObject(Answer):
    """A stored file; times are in seconds since 1970."""

    id: str
    object: Literal["file"] = "file"
    bytes: int
    created_at: int
    expires_at: int | None
    filename: str
    purpose: str
    status: Literal["processed"] = "processed"


class FileList(Answer):
    """A page of files."""

    object: Literal["list"] = "list"
    data: list[FileObject]
    first_id: str | None
    last_id: str | None
    has_more: bool


class DeletedFile(Answer):
    """What deleting a file answers."""

    id: str
    object: Literal["file"] = "file"
    deleted: Literal[True] = True


@routes.post("/v1/files", needs=AccessRole.ASK, body=UploadForm, upload=MAX_FORM_BYTES, answer=FileObject)
async def create_file(call: Call[NoQuery, NoBody]) -> FileObject:
    """Store a file, such as the questions of a batch, from the multipart field `file`.

    Files of the purpose `batch` are deleted after 30 days unless `expires_after` says something else.
    """
    form, files = await read_form(call.request, UploadForm, MAX_FORM_BYTES)
    try:
        file = files.get("file")
        if file is None:
            raise InvalidRequest("the form has no field file with a file", "file")
        return file_object(await call.run(_store, call, form, file))
    finally:
        await close_files(files)


@routes.get("/v1/files", needs=AccessRole.READ, query=FileQuery, answer=FileList)
def list_files(call: Call[FileQuery, NoBody]) -> FileList:
    """The files that the caller may see, the newest first."""
    query = call.query
    page = Page(query.limit, query.after, ascending=query.order == "asc")
    found, has_more = call.client.files.list(page, query.purpose)
    return page_of(FileList, [file_object(upload) for upload in found], has_more)


@routes.get("/v1/files/{file_id}", needs=AccessRole.READ, answer=FileObject, archive_in="path:file_id")
def show_file(call: Call[NoQuery, NoBody]) -> FileObject:
    """One file."""
    return file_object(call.client.files.get(call.path("file_id")))


@routes.get(
    "/v1/files/{file_id}/content",
    needs=AccessRole.READ,
    streams="application/octet-stream",
    archive_in="path:file_id",
)
async def read_file(call: Call[NoQuery, NoBody]) -> StreamingResponse:
    """The bytes of a file."""
    upload = await call.run(call.client.files.get, call.path("file_id"))
    pieces = _pieces(call, upload)
    first = await anext(pieces, b"")  # an object that is missing is an error before anything was sent
    headers = {"content-length": str(upload.size_bytes), "content-disposition": "attachment"}
    return StreamingResponse(_joined(first, pieces), headers=headers, media_type="application/octet-stream")


@routes.delete("/v1/files/{file_id}", needs=AccessRole.ASK, answer=DeletedFile, archive_in="path:file_id")
def delete_file(call: Call[NoQuery, NoBody]) -> DeletedFile:
    """Delete a file. A batch that was made of it goes on."""
    file_id = call.path("file_id")
    call.client.files.delete(file_id)
    return DeletedFile(id=file_id)


def file_object(upload: Upload) -> FileObject:
    """A file as clients see it."""
    return FileObject(
        id=upload.file_id,
        bytes=upload.size_bytes,
        created_at=int(upload.created_at.timestamp()),
        expires_at=int(upload.expires_at.timestamp()) if upload.expires_at else None,
        filename=upload.filename,
        purpose=upload.purpose,
    )


def _store(call: Call[NoQuery, NoBody], form: UploadForm, file: UploadFile) -> Upload:
    size = file.size or 0
    expires_s = float(form.expires_after.seconds) if form.expires_after else _DEFAULT_S.get(form.purpose)
    return call.client.files.create(
        call.principal,
        file.file,
        size,
        filename=(file.filename or "file").replace("\x00", "")[:_MAX_NAME],
        purpose=form.purpose,
        expires_s=expires_s,
        is_retry=call.is_retry,
    )


async def _pieces(call: Call[NoQuery, NoBody], upload: Upload) -> AsyncIterator[bytes]:
    reading = call.client.files.reading(upload)
    stream = await call.run(reading.__enter__)
    try:
        while piece := await call.run(stream.read, _PIECE_BYTES):
            yield piece
    finally:
        with anyio.CancelScope(shield=True):  # also when the client has gone
            await call.run(reading.__exit__, None, None, None)


async def _joined(first: bytes, others: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    yield first
    async for piece in others:
        yield piece
