"""Captions of pictures: caption files (CSV, JSONL, JSON, Parquet) and sidecar text files.

A caption is one line of plain text of at most MAX_CAPTION characters; `clean_caption` enforces that for every source.
"""

from __future__ import annotations

import codecs
import posixpath
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path, PurePath

from ragllava.errors import UsageError
from ragllava.records import FileFormat
from ragllava.stages.record_files import EXTENSIONS, Layout, Record, Rejected, check_all, opened_records

MAX_CAPTION = 2_000  # characters
MAX_SIDECAR_BYTES = 65_536  # read of a sidecar; its caption is the first line

IMAGE_COLUMNS = ("image", "file", "filename", "file_name", "path", "source", "name")
CAPTION_COLUMNS = ("caption", "text", "description")

_EXTENSIONS = EXTENSIONS | {".txt": FileFormat.CSV, ".json": FileFormat.JSONL, ".pq": FileFormat.PARQUET}
_LAYOUT = Layout(
    content="caption",
    example='{"image": …, "caption": …}',
    required=(IMAGE_COLUMNS, CAPTION_COLUMNS),
    skips_empty_rows=True,
    is_lenient=True,
)
_BOMS = ((codecs.BOM_UTF8, "utf-8"), (codecs.BOM_UTF16_LE, "utf-16-le"), (codecs.BOM_UTF16_BE, "utf-16-be"))


class Captions:
    """The captions of caption files, by the names of the pictures."""

    def __init__(self, captions: Mapping[str, str]) -> None:
        """`captions` maps the pictures' names, with forward slashes, to clean captions."""
        self._captions = {_normalized(name): caption for name, caption in captions.items()}
        self._used: set[str] = set()

    def __len__(self) -> int:
        return len(self._captions)

    def items(self) -> Iterable[tuple[str, str]]:
        """The pictures' names with their captions, in the order of the caption file."""
        return self._captions.items()

    def assign(self, sources: Sequence[str]) -> list[str | None]:
        """A caption or None for each of `sources`, the names of all files offered (SourceFile.source).

        A caption belongs to the file of exactly its name. If there is no such file, it belongs to the file of the same
        base name, if only one such caption and only one file without caption have this base name.
        """
        keys = [_normalized(source) for source in sources]
        exact = set(keys) & self._captions.keys()
        by_base_name = _by_base_name(self._captions.keys() - exact)
        base_names = Counter(posixpath.basename(key) for key in keys if key not in exact)
        assigned: list[str | None] = []
        for key in keys:
            base_name = posixpath.basename(key)
            name = key if key in exact else by_base_name.get(base_name) if base_names[base_name] == 1 else None
            if name is not None:
                self._used.add(name)
            assigned.append(None if name is None else self._captions[name])
        return assigned

    def unused(self) -> list[str]:
        """The names whose captions were not assigned to any file so far, in the order of the caption file."""
        return [name for name in self._captions if name not in self._used]


def clean_caption(text: str) -> str | None:
    """`text` on one line, without characters that Postgres rejects, cut to MAX_CAPTION; None if nothing is left."""
    storable = text.replace("\x00", " ").encode("utf-8", "replace").decode("utf-8").lstrip("\ufeff")
    return " ".join(storable.split())[:MAX_CAPTION].rstrip() or None


def sidecar_caption(data: bytes) -> str | None:
    """The caption of a sidecar text file: its first line that is not empty; the others may be translations."""
    lines = decode_text(data[:MAX_SIDECAR_BYTES]).splitlines()
    return next((caption for caption in map(clean_caption, lines) if caption is not None), None)


def decode_text(data: bytes) -> str:
    """Text by its byte order mark, else UTF-8, else Windows-1252, which can decode any bytes."""
    for mark, encoding in _BOMS:
        if data.startswith(mark):
            return data[len(mark) :].decode(encoding, "replace")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        if error.start > len(data) - 4 and len(data) >= MAX_SIDECAR_BYTES:  # a character cut by the limit
            return data[: error.start].decode("utf-8")
        return data.decode("cp1252", "replace")


def read_captions(path: str | Path) -> Captions:
    """Read a caption file: CSV (comma, semicolon, tab or bar), JSONL, a JSON list, or Parquet.

    One column names the picture (IMAGE_COLUMNS), another one holds the caption (CAPTION_COLUMNS). Several captions of
    one picture are joined; a row without caption is skipped. Raises UsageError if the file cannot be read at all and
    InvalidInput with the lines that are wrong.
    """
    path = Path(path)
    if path.suffix.lower() not in _EXTENSIONS:
        raise UsageError(f"{path}: a caption file ends in .csv, .tsv, .txt, .json, .jsonl or .parquet")
    return parse_captions(str(path), path)


def parse_captions(name: str, source: Path | bytes) -> Captions:
    """As `read_captions`; `source` may be the content of a caption file `name` with one of the known extensions."""
    with opened_records(source, name, _LAYOUT, format=_EXTENSIONS[PurePath(name).suffix.lower()]) as (_, records):
        rows = check_all(name, records, _image_and_caption)
    captions: dict[str, list[str]] = {}
    for image, text in rows:
        parts = captions.setdefault(_normalized(image), [])
        if (caption := clean_caption(text)) is not None and caption not in parts:
            parts.append(caption)
    return Captions({image: " ".join(parts)[:MAX_CAPTION] for image, parts in captions.items() if parts})


def _image_and_caption(record: Record) -> tuple[str, str]:
    image, caption = (record.value[key] for key in _columns(tuple(record.value)))
    if isinstance(image, int) and not isinstance(image, bool):
        image = str(image)
    if not isinstance(image, str) or not image.strip():
        raise Rejected("invalid_image", "the name of the picture must be text and not empty")
    if caption is None:
        caption = ""
    if not isinstance(caption, str):
        raise Rejected("invalid_caption", f"the caption of {image[:200]!r} must be text")
    return image, caption


@lru_cache(maxsize=256)  # most files have the same keys in all records
def _columns(keys: tuple[str, ...]) -> list[str]:
    """The keys of the picture and of the caption. Raises Rejected."""
    names = {key.strip().lower(): key for key in keys}
    return [names[column] for column in _LAYOUT.pick(names)]


def _normalized(name: str) -> str:
    """One spelling for names of the same file: forward slashes, no leading ./"""
    return posixpath.normpath(name.strip().replace("\\", "/")).lstrip("/")


def _by_base_name(keys: Iterable[str]) -> dict[str, str]:
    """The keys by their last part, without those that share it."""
    keys = list(keys)
    count = Counter(map(posixpath.basename, keys))
    return {posixpath.basename(key): key for key in keys if count[posixpath.basename(key)] == 1}
