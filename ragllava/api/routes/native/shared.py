"""What several modules of the native API share: texts that can be stored, lists, files that are sent once."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, Field, StringConstraints
from starlette.responses import FileResponse
from starlette.types import Receive, Scope, Send

from ragllava.api.route import Answer, Call
from ragllava.errors import NotFound
from ragllava.json_records import to_json

A = TypeVar("A", bound=Answer)

MAX_ID = 2**63 - 1  # of the database's bigint
_SANDBOX = {"content-security-policy": "default-src 'none'; sandbox"}


def storable(text: str) -> str:
    """The database stores no NUL. Raises ValueError."""
    if "\x00" in text:
        raise ValueError("must not contain the character NUL")
    return text


Id = Annotated[int, Field(ge=0, le=MAX_ID)]
Line = Annotated[str, StringConstraints(min_length=1, max_length=500), AfterValidator(storable)]
LongText = Annotated[str, StringConstraints(max_length=100_000), AfterValidator(storable)]
Where = LongText | dict[str, Any] | None
Json = dict[str, Any]


class JsonList(Answer):
    """A whole list."""

    object: Literal["list"] = "list"
    data: list[Json]


def json_of(record: Any) -> Json:
    """A record as JSON, in the form that `--json` of the commands has."""
    value: Json = to_json(record.as_json() if hasattr(record, "as_json") else record)
    return value


def json_list(listed: Iterable[Any]) -> JsonList:
    """All records of a list as JSON."""
    return JsonList(data=list(map(json_of, listed)))


def page_of(form: type[A], data: list[Any], has_more: bool, key: str = "id") -> A:
    """A page of a list, whose `data` have their ids under `key`; the ids of an empty page are null."""
    first, last = (getattr(data[0], key), getattr(data[-1], key)) if data else (None, None)
    return form(data=data, first_id=first, last_id=last, has_more=has_more)  # type: ignore[call-arg] # of each list


def text_in_path(call: Call[Any, Any], name: str) -> str:
    """A part of the path that names something. Raises NotFound for one that cannot exist."""
    value = call.path(name)
    if "\x00" in value or len(value) > 500:
        raise NotFound(f"there is no {name.removesuffix('_id')} {value[:40]!r}")
    return value


class OwnedFile(FileResponse):
    """A file that was made for this answer, in a folder that goes with it, also when the client goes away."""

    def __init__(self, folder: TemporaryDirectory[str], path: Path, media_type: str, **headers: str) -> None:
        """`headers` are named with underscores. It is sent so that no browser runs what may be in it."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        super().__init__(path, headers=_SANDBOX | named, media_type=media_type)
        self._folder = folder

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._folder.cleanup()


def made_file(write: Callable[[Path], object], name: str, media_type: str, **headers: str) -> OwnedFile:
    """The answer with the file that `write` makes at the path it is given; on disk, however large it is.

    If `write` returns a text, it identifies the bytes of the file.
    """
    folder = TemporaryDirectory(prefix="ragllava-api-", ignore_cleanup_errors=True)
    try:
        path = Path(folder.name) / name
        tag = write(path)
    except BaseException:
        folder.cleanup()
        raise
    etag = {"etag": f'"{tag}"'} if isinstance(tag, str) else {}
    return OwnedFile(folder, path, media_type, **headers, **etag)
