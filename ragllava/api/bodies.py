"""Reading what clients send, within limits of size and time."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any, TypeVar

from pydantic import BaseModel
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect, Request

from ragllava.api.errors import InvalidRequest
from ragllava.api.route import Body, Endpoint, NoBody, Query
from ragllava.errors import TooLarge

M = TypeVar("M", bound=BaseModel)

_PIECE_S = 30.0  # between two pieces of a body
_DISCARDED_BYTES = 64 * 2**20  # of a body that is too long
_DISCARDING_S = 5.0
_IN_MEMORY_BYTES = 64 * 2**10  # of each file of a form; what is longer lies on disk
_MAX_FIELDS = 40
_MAX_FIELD_BYTES = 64 * 2**10


async def read_query(request: Request, route: Endpoint, *, is_form: bool = False) -> Query:
    """The query as its model; a name that is repeated, or ends with [], is a list. Raises ValidationError.

    With `is_form`, a browser has made it of a form: an empty field was not filled in.
    """
    values: dict[str, Any] = {}
    for name in request.query_params:
        given = [value for value in request.query_params.getlist(name) if value or not is_form]
        if not given:
            continue
        is_list = len(given) > 1 or name.endswith("[]")
        values[name.removesuffix("[]")] = given if is_list else given[0]
    return route.query.model_validate(values)


async def read_body(request: Request, route: Endpoint) -> Body:
    """The JSON body as its model. Raises TooLarge, InvalidRequest, ValidationError, ClientDisconnect."""
    data = bytearray()
    async for piece in limited(request, route.max_body_bytes):
        data += piece
    if route.body is NoBody:
        return NoBody()  # DELETE and cancel come with a JSON content type and nothing in it
    if not data:
        raise InvalidRequest("the request has no body; send a JSON object")
    return route.body.model_validate_json(bytes(data))


async def read_form(request: Request, model: type[M], max_bytes: int) -> tuple[M, dict[str, UploadFile]]:
    """A multipart body: its fields as their model, and its files, which lie on disk. The caller closes the files.

    Raises as `read_body`.
    """
    fields, files = await read_fields(request, max_bytes)
    try:
        return model.model_validate(fields), files
    except BaseException:
        await close_files(files)
        raise


async def read_fields(request: Request, max_bytes: int) -> tuple[dict[str, Any], dict[str, UploadFile]]:
    """As `read_form`, with the fields as they come.

    `expires_after[seconds]` is the key `seconds` of the field `expires_after`, and `reasons[]` adds to a list.
    """
    if not request.headers.get("content-type", "").lower().startswith("multipart/form-data"):
        raise InvalidRequest("the body must be multipart/form-data")
    pieces = limited(request, max_bytes)
    parser = MultiPartParser(
        request.headers, pieces, max_files=1_000, max_fields=_MAX_FIELDS, max_part_size=_MAX_FIELD_BYTES
    )
    parser.spool_max_size = _IN_MEMORY_BYTES
    try:
        form = await parser.parse()
    except MultiPartException as error:
        raise InvalidRequest(f"the body is not valid multipart/form-data: {error.message}") from None
    except KeyError:
        raise InvalidRequest("the content type of the body names no boundary") from None
    fields: dict[str, Any] = {}
    files: dict[str, UploadFile] = {}
    for name, value in form.multi_items():
        if isinstance(value, UploadFile):
            files[name if name not in files else f"{name}.{len(files)}"] = value
        else:
            _put(fields, name, value)
    return fields, files


async def close_files(files: dict[str, UploadFile]) -> None:
    """Remove the files of a form from the disk."""
    for file in files.values():
        await file.close()


async def limited(request: Request, max_bytes: int) -> AsyncGenerator[bytes, None]:
    """The body piece by piece. Raises TooLarge as soon as it is too long, whatever its header says."""
    announced = request.headers.get("content-length", "0")
    pieces = request.stream()
    if announced.isdigit() and int(announced) > max_bytes:
        await _discard(pieces)
        raise _too_large(max_bytes)
    size = 0
    while True:
        try:
            piece = await asyncio.wait_for(anext(pieces), _PIECE_S)
        except StopAsyncIteration:
            return
        except TimeoutError:
            raise ClientDisconnect from None
        size += len(piece)
        if size > max_bytes:
            await _discard(pieces)
            raise _too_large(max_bytes)
        yield piece


async def _discard(pieces: AsyncIterator[bytes]) -> None:
    """Read what a client still sends, within limits: it may look at the answer only when it has sent everything."""
    size = 0
    with contextlib.suppress(TimeoutError, ClientDisconnect):
        async with asyncio.timeout(_DISCARDING_S):
            async for piece in pieces:
                size += len(piece)
                if size > _DISCARDED_BYTES:
                    return


def _too_large(max_bytes: int) -> TooLarge:
    return TooLarge(f"the body may have at most {max_bytes:,} bytes")


def _put(fields: dict[str, Any], name: str, value: str) -> None:
    outer, bracket, inner = name.partition("[")
    if not bracket:
        fields[name] = value
    elif inner == "]":
        listed = fields.setdefault(outer, [])
        if isinstance(listed, list):
            listed.append(value)
    elif isinstance(fields.setdefault(outer, {}), dict):
        fields[outer][inner.rstrip("]")] = value
