"""Captions and metadata of pictures: caption files (CSV, JSONL, JSON, Parquet) and sidecar text files.

Of a caption file, one column names the picture, one holds its caption, and all others are its metadata
(ragllava/metadata.py). Cells of a CSV stay text, also where they look like a number.
"""

from __future__ import annotations

import codecs
import posixpath
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path, PurePath
from typing import Any

from ragllava.errors import UsageError
from ragllava.metadata import Metadata, clean_caption, clean_metadata, merge_metadata, picture_name
from ragllava.records import FileFormat
from ragllava.stages.record_files import EXTENSIONS, Layout, Record, Rejected, checked_records, opened_records

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
    reads_others=True,
)
_BOMS = ((codecs.BOM_UTF8, "utf-8"), (codecs.BOM_UTF16_LE, "utf-16-le"), (codecs.BOM_UTF16_BE, "utf-16-be"))


@dataclass(frozen=True, slots=True)
class Description:
    """What is said about a picture beside it; None: nothing."""

    caption: str | None = None
    metadata: Metadata | None = None

    def __bool__(self) -> bool:
        return self.caption is not None or self.metadata is not None


NOTHING = Description()


class Captions:
    """The descriptions of caption files, by the names of the pictures."""

    def __init__(self, descriptions: Mapping[str, Description | str]) -> None:
        """`descriptions` maps the pictures' names, with forward slashes, to what is clean; a text is a caption."""
        self._descriptions = {
            picture_name(name): Description(said) if isinstance(said, str) else said
            for name, said in descriptions.items()
        }
        self._used: set[str] = set()

    def __len__(self) -> int:
        return len(self._descriptions)

    def items(self) -> Iterable[tuple[str, Description]]:
        """The pictures' names with their descriptions, in the order of the caption file."""
        return self._descriptions.items()

    def assign(self, sources: Sequence[str]) -> list[Description]:
        """The description of each of `sources`, the names of all files offered (SourceFile.source); or NOTHING.

        A description belongs to the file of exactly its name. If there is no such file, it belongs to the file of the
        same base name, if only one such description and only one file without description have this base name.
        """
        keys = [picture_name(source) for source in sources]
        exact = set(keys) & self._descriptions.keys()
        by_base_name = _by_base_name(self._descriptions.keys() - exact)
        base_names = Counter(posixpath.basename(key) for key in keys if key not in exact)
        assigned: list[Description] = []
        for key in keys:
            base_name = posixpath.basename(key)
            name = key if key in exact else by_base_name.get(base_name) if base_names[base_name] == 1 else None
            if name is not None:
                self._used.add(name)
            assigned.append(NOTHING if name is None else self._descriptions[name])
        return assigned

    def unused(self) -> list[str]:
        """The names whose descriptions were not assigned to any file so far, in the order of the caption file."""
        return [name for name in self._descriptions if name not in self._used]


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
    one picture are joined, different values of one column become a list, and an empty row is skipped. Raises UsageError
    if the file cannot be read at all and InvalidInput with the lines that are wrong.
    """
    path = Path(path)
    if path.suffix.lower() not in _EXTENSIONS:
        raise UsageError(f"{path}: a caption file ends in .csv, .tsv, .txt, .json, .jsonl or .parquet")
    return parse_captions(str(path), path)


def parse_captions(name: str, source: Path | bytes) -> Captions:
    """As `read_captions`; `source` may be the content of a caption file `name` with one of the known extensions."""
    rows: dict[str, list[Description]] = {}
    for image, description in caption_rows(name, source):
        rows.setdefault(image, []).append(description)
    described = {image: merge_descriptions(parts) for image, parts in rows.items()}
    return Captions({image: description for image, description in described.items() if description})


def caption_rows(name: str, source: Path | bytes) -> Iterator[tuple[str, Description]]:
    """The picture's name and the description of each row of a caption file, read piece by piece; as `parse_captions`.

    Several rows of one picture are merged by the caller (`merge_descriptions`).
    """
    with opened_records(source, name, _LAYOUT, format=_EXTENSIONS[PurePath(name).suffix.lower()]) as (_, records):
        yield from checked_records(name, records, _checked)


def merge_descriptions(parts: Iterable[Description]) -> Description:
    """One description of several rows for one picture: different captions are joined, different values listed."""
    captions: dict[str, None] = {}
    metadata: Metadata | None = None
    for part in parts:
        if part.caption is not None:
            captions[part.caption] = None
        metadata = merge_metadata(metadata, part.metadata)
    return Description(clean_caption(" ".join(captions)), metadata)


def _checked(record: Record) -> tuple[str, Description]:
    """The picture's name, its caption and its metadata."""
    image_column, caption_column = _columns(tuple(record.value))
    others: dict[str, Any] = dict(record.value)
    image, caption = others.pop(image_column), others.pop(caption_column)
    if isinstance(image, int) and not isinstance(image, bool):
        image = str(image)
    if not isinstance(image, str) or not image.strip():
        raise Rejected("invalid_image", "the name of the picture must be text and not empty")
    if caption is None:
        caption = ""
    if not isinstance(caption, str):
        raise Rejected("invalid_caption", f"the caption of {image[:200]!r} must be text")
    return picture_name(image), Description(clean_caption(caption), clean_metadata(others))


@lru_cache(maxsize=256)  # most files have the same keys in all records
def _columns(keys: tuple[str, ...]) -> list[str]:
    """The keys of the picture and of the caption. Raises Rejected."""
    names = {key.strip().lower(): key for key in keys}
    return [names[column] for column in _LAYOUT.pick(names)]


def _by_base_name(keys: Iterable[str]) -> dict[str, str]:
    """The keys by their last part, without those that share it."""
    keys = list(keys)
    count = Counter(map(posixpath.basename, keys))
    return {posixpath.basename(key): key for key in keys if count[posixpath.basename(key)] == 1}
