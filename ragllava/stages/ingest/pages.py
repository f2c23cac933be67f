"""Pages of documents as pictures: a PDF, or a TIFF of several pages.

A page is a picture of its own, named after its document: `scans/album.pdf#page=3`, with a uri that ends in the same
way. It is stored as the PNG that imaging/decode.py draws; the document itself is not stored. The pages of a document
have its caption and metadata, and over them their own. The document is one file of the ingest job and has one outcome,
after its last page.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace

from ragllava.errors import ImageRejected
from ragllava.imaging.sandbox import DecoderPool
from ragllava.source_files import FileOutcome, FileStatus, said_about_page
from ragllava.stages.ingest.reading import ReadFile
from ragllava.stores.archives.archive import PAGE_MARK
from ragllava.stores.archives.ingest_files import PendingFile


@dataclass(frozen=True, slots=True)
class Part:
    """A picture of an input file: the file itself, or the page `page` of the `pages` that it has."""

    file_no: int
    page: int = 0
    pages: int = 0

    @property
    def is_last(self) -> bool:
        """Whether the file has no further picture."""
        return self.page == self.pages

    def named(self, file: PendingFile) -> PendingFile:
        """The file under the name of this picture, with what is said about it."""
        said = said_about_page(self.page, file.caption, file.metadata, file.pages)
        mark = f"{PAGE_MARK}{self.page}" if self.page else ""
        return replace(
            file, source=file.source + mark, uri=file.uri + mark, caption=said.caption, metadata=said.metadata
        )

    def missing(self, file: PendingFile) -> list[int]:
        """The pages that something is said about, and that the file does not have."""
        return [page for page in sorted(file.pages or {}) if page > max(self.pages, 1)]


PartContent = tuple[Part, bytes | ImageRejected]

_SHOWN = 10


def split_pages(contents: Iterable[ReadFile], decoder: DecoderPool) -> Iterator[PartContent]:
    """The pictures of the files: each page of a document, and every other file as it is."""
    for number, content in contents:
        try:
            pages = decoder.count_pages(content) if isinstance(content, bytes) else 0
        except ImageRejected as rejection:
            yield Part(number), rejection
            continue
        if isinstance(content, ImageRejected) or not pages:
            yield Part(number), content
            continue
        for page in range(1, pages + 1):
            yield Part(number, page, pages), decoder.page(content, page)


@dataclass(slots=True)
class DocumentOutcomes:
    """The outcomes of the pages of documents until each document has its own.

    Adding an outcome again, when a transaction is repeated, changes nothing.
    """

    _pages: dict[int, dict[int, FileOutcome]] = field(default_factory=dict)

    def add(self, part: Part, outcome: FileOutcome, missing: Sequence[int] = ()) -> FileOutcome | None:
        """The outcome of the part's file, if this is its last part; with a note about the `missing` pages."""
        if part.page:
            outcomes = self._pages.setdefault(part.file_no, {})
            outcomes[part.page] = outcome
            if not part.is_last:
                return None
            outcome = _of_document(part, [outcomes[page] for page in sorted(outcomes)])
        if not missing or outcome.status is FileStatus.REJECTED:
            return outcome
        listed = ", ".join(map(str, missing[:_SHOWN])) + (", …" if len(missing) > _SHOWN else "")
        note = f"captions name {'page' if len(missing) == 1 else 'pages'} {listed}, which it does not have"
        return replace(outcome, reason=f"{outcome.reason}; {note}" if outcome.reason else note)


def _of_document(last: Part, outcomes: Sequence[FileOutcome]) -> FileOutcome:
    by_status = {status: [o for o in outcomes if o.status is status] for status in FileStatus}
    rejected = by_status[FileStatus.REJECTED]
    note = f"{last.pages} pages" if last.pages > 1 else "1 page"
    if rejected:
        note += f", {len(rejected)} of them rejected: {rejected[0].reason}"
    for status in (FileStatus.STORED, FileStatus.UPDATED, FileStatus.DUPLICATE, FileStatus.REJECTED):
        if by_status[status]:
            first = next((o.image_id for o in outcomes if o.image_id is not None), None)
            why = rejected[0].rejection_class if status is FileStatus.REJECTED else None
            return FileOutcome(last.file_no, status, note, first, why)
    raise ValueError("a document without an outcome of a page")
