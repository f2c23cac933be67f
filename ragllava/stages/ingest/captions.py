"""Captions and metadata of pictures in caption files: CSV, Excel, JSON lines, JSON, Parquet, and what programs write.

Of a caption file, one column names the picture, one holds its caption, and all others are its metadata
(ragllava/metadata.py). Cells of a CSV stay text, also where they look like a number. caption_documents.py has the forms
of other programs.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain, islice
from pathlib import Path, PurePath
from typing import Any
from urllib.parse import urlsplit

from ragllava.errors import InvalidInput, UsageError
from ragllava.imaging.embedded import is_default_caption
from ragllava.metadata import Metadata, clean_caption, clean_key, clean_metadata, is_cut, merge_metadata, picture_name
from ragllava.picture_names import FileName, match_names, split_page
from ragllava.records import FileFormat
from ragllava.source_files import PageCaption
from ragllava.stages.ingest.caption_documents import EXIFTOOL_NAME, exiftool_values, headerless, is_exiftool, unfold
from ragllava.stages.record_files.layouts import Layout, Record, Rejected, checked_records, named
from ragllava.stages.record_files.opening import EXTENSIONS, format_by_extension, opened_records

MAX_CAPTION_FILE_BYTES = 256 * 2**20  # of a caption file that lies in a packed file or a bucket

IMAGE_COLUMNS = (
    *("image", "file", "filename", "file_name", "path", "source", "name"),
    *("file_path", "filepath", "image_path", "image_file", "image_filename", "image_name", "img", "img_path"),
    *("img_name", "sourcefile", "key", "url", "image_url", "img_url", "image_id"),
)
CAPTION_COLUMNS = (
    *("caption", "captions", "text", "description", "comment", "sentence", "title"),
    *("caption_abstract", "imagedescription", "usercomment", "xpcomment"),
)

_ENDINGS = frozenset({*EXTENSIONS, ".txt", ".token"})
_SAMPLE = 200  # records, by which the columns are chosen
_FILE_NAME = re.compile(r".*\.[A-Za-z][A-Za-z0-9]{1,4}(?:#(?:page=)?\d+)?")
_SENTENCE_NUMBER = re.compile(r"(.+\.\w{2,5})#\d{1,2}")  # of Flickr30k: a.jpg#3
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")


@dataclass(frozen=True, slots=True)
class Description:
    """What is said about a picture beside it. `caption` None: nothing; empty: that it has none any more.

    `pages` is what is said about single pages, if it is a document.
    """

    caption: str | None = None
    metadata: Metadata | None = None
    is_cut: bool = field(default=False, compare=False)  # the caption was longer
    pages: Mapping[int, Description] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return self.caption is not None or self.metadata is not None or bool(self.pages)

    @property
    def page_captions(self) -> dict[int, PageCaption] | None:
        """`pages` as a SourceFile has them."""
        return {page: PageCaption(said.caption, said.metadata) for page, said in self.pages.items()} or None


NOTHING = Description()


def described(text: str, metadata: Metadata | None = None) -> Description:
    """The description with a clean caption."""
    return Description(clean_caption(text) or "", metadata, is_cut(text))


def first_description(*sources: Description) -> Description:
    """What counts of several sources, the strongest first: the first caption that is not empty, and all metadata."""
    spoken = [source for source in sources if source.caption is not None]
    chosen = next((source for source in spoken if source.caption), spoken[0] if spoken else NOTHING)
    metadata: Metadata = {}
    pages: dict[int, Description] = {}
    for source in reversed(sources):
        metadata |= source.metadata or {}
        pages |= source.pages
    return replace(chosen, metadata=metadata or None, pages=pages)


class Captions:
    """The descriptions of caption files, by the names of the pictures; `notes` are remarks on the file."""

    def __init__(self, descriptions: Mapping[str, Description | str], notes: Iterable[str] = ()) -> None:
        """`descriptions` maps the pictures' names, with forward slashes, to what is clean; a text is a caption."""
        self._descriptions = {
            picture_name(name): Description(said) if isinstance(said, str) else said
            for name, said in descriptions.items()
        }
        self._used: set[str] = set()
        self._ambiguous: set[str] = set()
        self.notes = tuple(notes)

    def __len__(self) -> int:
        return len(self._descriptions)

    def items(self) -> Iterable[tuple[str, Description]]:
        """The pictures' names with their descriptions, in the order of the caption file."""
        return self._descriptions.items()

    def assign(self, sources: Sequence[str], paths: Sequence[str] | None = None) -> list[Description]:
        """The description of each of `sources`, the names of all files offered (SourceFile.source); or NOTHING.

        picture_names.py says which belongs to which; `paths` are the whole paths of the files, each of which ends in
        its name. The descriptions of pages (`album.pdf#page=3`) belong to the file of their document.
        """
        names = list(self._descriptions)
        spelled = [picture_name(source) for source in sources]
        whole = spelled if paths is None else [picture_name(path) for path in paths]
        files = [
            FileName(name, path if path.endswith(name) else name) for name, path in zip(spelled, whole, strict=True)
        ]
        matches = match_names(names, files)
        self._used.update(names[number] for number in matches.captions.values())
        self._ambiguous.update(names[number] for number in matches.ambiguous)
        pages = self._assign_pages([name for number, name in enumerate(names) if number not in matches.taken], files)
        described = [
            self._descriptions[names[matches.captions[number]]] if number in matches.captions else NOTHING
            for number in range(len(files))
        ]
        return [
            replace(said, pages=pages[number]) if number in pages else said for number, said in enumerate(described)
        ]

    def _assign_pages(self, names: Sequence[str], files: Sequence[FileName]) -> dict[int, dict[int, Description]]:
        """By the number of a file, the descriptions of its pages; `names` are those that belong to no file."""
        rows: dict[str, dict[int, str]] = {}
        for name in names:
            document, page = split_page(name)
            if page:
                rows.setdefault(document, {})[page] = name
        if not rows:
            return {}
        documents = list(rows)
        matches = match_names(documents, files)
        self._used.update(name for number in matches.captions.values() for name in rows[documents[number]].values())
        self._ambiguous.update(name for number in matches.ambiguous for name in rows[documents[number]].values())
        return {
            file: {page: self._descriptions[name] for page, name in rows[documents[number]].items()}
            for file, number in matches.captions.items()
        }

    def unused(self) -> list[str]:
        """The names whose descriptions were not assigned to any file so far, in the order of the caption file."""
        return [name for name in self._descriptions if name not in self._used]

    def ambiguous(self) -> list[str]:
        """Those of the unused names that fit several files."""
        return [name for name in self.unused() if name in self._ambiguous]


@dataclass(frozen=True, slots=True)
class Columns:
    """The columns that a user names; None: those that are known are tried."""

    image: str | None = None
    caption: str | None = None


def read_captions(path: str | Path, columns: Columns | None = None) -> Captions:
    """Read a caption file: CSV (comma, semicolon, tab or bar), Excel, JSON lines, JSON or Parquet, also as `.gz`.

    One column names the picture (IMAGE_COLUMNS), another one holds the caption (CAPTION_COLUMNS). Several captions of
    one picture are joined, different values of one column become a list, and an empty row is skipped. Raises UsageError
    if the file cannot be read at all and InvalidInput with the lines that are wrong.
    """
    path = Path(path)
    if PurePath(path.name.lower().removesuffix(".gz")).suffix not in _ENDINGS:
        raise UsageError(
            f"{path}: a caption file ends in .csv, .tsv, .txt, .json, .jsonl, .parquet or .xlsx, which may be packed "
            "as .gz"
        )
    return parse_captions(str(path), path, columns)


def parse_captions(name: str, source: Path | bytes, columns: Columns | None = None) -> Captions:
    """As `read_captions`; `source` may be the content of a caption file `name` with one of the known extensions."""
    notes: list[str] = []
    rows: dict[str, list[Description]] = {}
    for image, description in caption_rows(name, source, columns, notes):
        rows.setdefault(image, []).append(description)
    merged = {image: merge_descriptions(parts) for image, parts in rows.items()}
    return Captions({image: description for image, description in merged.items() if description}, notes)


def read_beside(name: str, source: Path | bytes) -> Captions:
    """A caption file that lies beside pictures, and that nobody has named: it may be something else, or partly wrong.

    Rows that are wrong are passed over and counted in the notes; so is the whole file if it has no column with the
    names of pictures. It needs no captions: its columns are metadata then.
    """
    notes: list[str] = []
    rows: dict[str, list[Description]] = {}
    wrong: list[str] = []
    layout = _layout(Columns(), needs_caption=False)
    try:
        with opened_records(source, name, layout, format=_format(name), notes=notes) as (_, records):
            for image, description in _described_rows(records, layout, Columns(), wrong):
                rows.setdefault(image, []).append(description)
    except InvalidInput as error:
        return Captions({}, [f"{name}: not used: {error.errors[0].message}"])
    except UsageError as error:
        return Captions({}, [str(error)])
    if wrong:
        notes.append(f"{len(wrong):,} rows were passed over; the first is {wrong[0]}")
    merged = {image: merge_descriptions(parts) for image, parts in rows.items()}
    return Captions({image: part for image, part in merged.items() if part}, [f"{name}: {note}" for note in notes])


def caption_rows(
    name: str, source: Path | bytes, columns: Columns | None = None, notes: list[str] | None = None
) -> Iterator[tuple[str, Description]]:
    """The picture's name and the description of each row of a caption file, read piece by piece; as `parse_captions`.

    Several rows of one picture are merged by the caller (`merge_descriptions`).
    """
    columns = columns or Columns()
    layout = _layout(columns)
    with opened_records(source, name, layout, format=_format(name), notes=notes) as (_, all_records):
        sample, records = _sampled(all_records)
        rows = _Rows(sample, layout, columns)
        yield from (row for row in checked_records(name, records, rows.read) if row is not None)


def merge_descriptions(parts: Iterable[Description]) -> Description:
    """One description of several rows for one picture: different captions are joined, different values listed."""
    captions: dict[str, None] = {}
    metadata: Metadata | None = None
    was_said, was_cut = False, False
    for part in parts:
        was_said |= part.caption is not None
        was_cut |= part.is_cut
        if part.caption:
            captions[part.caption] = None
        metadata = merge_metadata(metadata, part.metadata)
    joined = " ".join(captions)
    caption = clean_caption(joined) or "" if was_said else None
    return Description(caption, metadata, was_cut or is_cut(joined))


def _format(name: str) -> FileFormat | None:
    """By the extension; lines of text may be of any format, or one of other programs."""
    suffix = PurePath(name.lower().removesuffix(".gz")).suffix
    return FileFormat.CSV if suffix in (".txt", ".token") else format_by_extension(name)


def _layout(columns: Columns, *, needs_caption: bool = True) -> Layout:
    image = (clean_key(columns.image),) if columns.image else IMAGE_COLUMNS
    caption = (clean_key(columns.caption),) if columns.caption else CAPTION_COLUMNS
    return Layout(
        content="caption",
        example='{"image": …, "caption": …}',
        required=(image, caption) if needs_caption else (image,),
        optional=() if needs_caption else (caption,),
        may_be_empty=True,
        advice="; --image-column and --caption-column name others",
        unfold=unfold,
        headerless=None if columns.image or columns.caption else headerless,
    )


def _sampled(records: Iterable[Record]) -> tuple[list[Record], Iterator[Record]]:
    """The first records, and all of them."""
    remaining = iter(records)
    sample = list(islice(remaining, _SAMPLE))
    return sample, chain(sample, remaining)


def _described_rows(
    records: Iterable[Record], layout: Layout, columns: Columns, wrong: list[str]
) -> Iterator[tuple[str, Description]]:
    """The rows that are right; `wrong` gets a sentence for each of the others."""
    sample, records = _sampled(records)
    rows = _Rows(sample, layout, columns)
    for record in records:
        try:
            if record.problem:
                raise record.problem
            row = rows.read(record)
        except Rejected as rejected:
            wrong.append(f"line {record.line}: {rejected.message}")
        else:
            if row is not None:
                yield row


class _Rows:
    """Reads the rows of one file, of whose columns the first records decide which names the picture.

    A file may have several columns of known names: `image` with numbers beside `file_name`, `text` without any text
    beside `description`. Of those for pictures, the first counts that holds names of files; of those for captions, the
    first that holds anything.
    """

    def __init__(self, sample: Sequence[Record], layout: Layout, columns: Columns) -> None:
        values: dict[str, list[Any]] = {}
        for record in sample:
            for name, value in record.value.items():
                values.setdefault(clean_key(name), []).append(value)
        self._layout = layout
        self._is_exiftool = is_exiftool(values) and not columns.caption
        image_columns = (EXIFTOOL_NAME,) if self._is_exiftool else IMAGE_COLUMNS
        self._images = _by_preference(image_columns, values, _holds_file_names, columns.image)
        self._captions = _by_preference(CAPTION_COLUMNS, values, _holds_anything, columns.caption)

    def read(self, record: Record) -> tuple[str, Description] | None:
        """The picture's name and its description; None for a row without any picture. Raises Rejected."""
        keys: dict[str, str] = {}
        for name in record.value:
            keys.setdefault(clean_key(name), name)
        if _was_not_downloaded(record.value, keys):
            return None
        image_key = next((key for key in self._images if key in keys), None)
        caption_key = next((key for key in self._captions if key in keys), None)
        if image_key is None:
            self._layout.pick(record.value)
            raise Rejected("missing_column", f"no name of a picture is among {named(record.value)}")
        others = dict(record.value)
        image = _picture(others.pop(keys[image_key]), image_key)
        if self._is_exiftool:
            captions, metadata = exiftool_values(others)
            text = next((text for text in captions if not is_default_caption(text)), "")
            return image, described(text, clean_metadata(metadata))
        if caption_key is None:
            self._layout.pick(record.value)  # raises if a caption is required
            return image, Description(None, clean_metadata(others))
        text = _caption(others.pop(keys[caption_key]), image)
        return image, described(text, clean_metadata(others))


def _by_preference(
    usual: tuple[str, ...],
    values: Mapping[str, Sequence[Any]],
    fits: Callable[[Sequence[Any]], bool],
    chosen: str | None,
) -> tuple[str, ...]:
    """The usual columns, the one first that is in the file and fits best; or the one that the user chose."""
    if chosen is not None:
        return (clean_key(chosen),)
    best = next((key for key in usual if key in values and fits(values[key])), None)
    return usual if best is None else (best, *(key for key in usual if key != best))


def _holds_file_names(values: Sequence[Any]) -> bool:
    texts = [value.strip() for value in values if isinstance(value, str) and value.strip()]
    names = [text for text in texts if _FILE_NAME.fullmatch(text) and not _URL.match(text)]
    return len(names) * 2 > len(texts)


def _holds_anything(values: Sequence[Any]) -> bool:
    return any(value.strip() if isinstance(value, str) else value for value in values)


def _was_not_downloaded(value: Mapping[str, Any], keys: Mapping[str, str]) -> bool:
    """Whether a row of img2dataset has no picture."""
    return "key" in keys and "status" in keys and value[keys["status"]] not in ("success", None)


def _picture(value: Any, column: str) -> str:
    if isinstance(value, int) and not isinstance(value, bool):
        value = f"{value:012d}" if column == "image_id" else str(value)
    if not isinstance(value, str) or not value.strip():
        raise Rejected("invalid_image", "the name of the picture must be text and not empty")
    name = value.strip()
    if _URL.match(name):
        address = urlsplit(name)
        page = f"#{address.fragment}" if split_page(name)[1] else ""
        name = f"{address.netloc}{address.path}{page}" if address.path.strip("/") else name
    return picture_name(numbered[1] if (numbered := _SENTENCE_NUMBER.fullmatch(name)) else name)


def _caption(value: Any, image: str) -> str:
    """The caption as text; of several, in a list, all of them."""
    texts = value if isinstance(value, list) else [value]
    parts = ["" if text is None else text for text in texts]
    if not all(isinstance(part, str) for part in parts):
        raise Rejected("invalid_caption", f"the caption of {image[:200]!r} must be text")
    return " ".join(dict.fromkeys(parts))
