"""Forms with pictures, of the API and of the console: their files and what is said about them, as one ingest job."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from typing import Any

from starlette.datastructures import UploadFile

from ragllava.api.errors import InvalidRequest
from ragllava.api.route import Body, Call
from ragllava.api.routes.native.shared import Json, Line, LongText
from ragllava.client import IngestJob

MAX_FORM_BYTES = 2 * 2**30
# While pictures go into the object store, up to 82 MB of them are in memory.
_FEW_AT_ONCE = threading.BoundedSemaphore(2)
_CAPTION_FILES = ("captions",)  # fields whose file has captions
_CAPTIONS_NAME = "captions.jsonl"
_LONGEST_PART = 200  # bytes of one part of a file's name


class PicturesForm(Body):
    """The fields beside the files. `descriptions` is JSON: the caption, or caption and metadata, by file name."""

    name: Line | None = None
    descriptions: LongText | None = None


def ingest_form(call: Call[Any, Any], name: str, form: PicturesForm, files: Mapping[str, UploadFile]) -> IngestJob:
    """Queue the files of a form for an archive. They lie on disk until the client has put them into the object store.

    Raises InvalidRequest for a name that cannot be that of a file, and for a form without a picture.
    """
    pictures = {field: file for field, file in files.items() if field.partition(".")[0] not in _CAPTION_FILES}
    if not pictures:
        raise InvalidRequest("the form has no file with a picture", "file")
    call.client.access.admit_bytes(call.principal, sum(file.size or 0 for file in files.values()))
    with TemporaryDirectory(prefix="ragllava-api-", ignore_cleanup_errors=True) as folder:
        root = Path(folder) / "pictures"
        for file in pictures.values():
            _save(file, root, _file_name(file))
        captions = _captions(Path(folder), form, files)
        with call.client.access.admitted(call.principal), _FEW_AT_ONCE:
            return call.client.archives.ingest(
                root,
                name,
                captions,
                upload=True,
                name=form.name,
                idempotency_key=call.idempotency_key,
            )


def _captions(folder: Path, form: PicturesForm, files: Mapping[str, UploadFile]) -> Path | None:
    """The caption file of the form, or one made of its descriptions."""
    given = [file for field, file in files.items() if field.partition(".")[0] in _CAPTION_FILES]
    if len(given) + (form.descriptions is not None) > 1:
        raise InvalidRequest("give one caption file, or descriptions, not both", "descriptions")
    if given:
        name = PurePosixPath(_file_name(given[0])).name
        return _save(given[0], folder / "captions", name)
    if form.descriptions is None:
        return None
    path = folder / _CAPTIONS_NAME
    path.write_text("".join(json.dumps(row) + "\n" for row in _rows(form.descriptions)), encoding="utf-8")
    return path


def _rows(descriptions: str) -> list[Json]:
    try:
        given = json.loads(descriptions)
    except (ValueError, RecursionError):
        given = None
    if not isinstance(given, dict) or not all(isinstance(said, str | dict) for said in given.values()):
        raise InvalidRequest(
            'descriptions must be a JSON object of captions by file name, {"a.jpg": "a boat"}, or of objects with '
            "caption and metadata",
            "descriptions",
        )
    return [_row(name, said) for name, said in given.items()]


def _row(name: str, said: str | Json) -> Json:
    if isinstance(said, str):
        return {"file": name, "caption": said}
    metadata = said.get("metadata") or {}
    if not isinstance(metadata, dict):
        raise InvalidRequest(f"the metadata of {name[:80]!r} must be an object", "descriptions")
    return {**metadata, "file": name, "caption": said.get("caption") or ""}


def _save(file: UploadFile, root: Path, name: str) -> Path:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists():
        raise InvalidRequest(f"two files are called {name!r}; each needs a name of its own", "file")
    with path.open("wb") as copy:
        shutil.copyfileobj(file.file, copy, 2**20)
    return path


def _file_name(file: UploadFile) -> str:
    """The name that the client gives, perhaps with folders. Raises InvalidRequest for one that leads elsewhere."""
    name = (file.filename or "").replace("\\", "/")
    parts = name.split("/")
    is_bad = any(part in ("", ".", "..") or len(part.encode(errors="replace")) > _LONGEST_PART for part in parts)
    if is_bad or not name.isprintable() or len(parts) > 20 or not _is_utf8(name):
        raise InvalidRequest(f"{name[:80]!r} cannot be the name of a file; use a relative path such as 2019/boat.jpg")
    return name


def _is_utf8(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True
