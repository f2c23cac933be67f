"""The files that are offered to an archive, what is said about them, and how each ended. Frozen records."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from ragllava.errors import Rejection, RejectionClass


class FileStatus(StrEnum):
    """How a file of an ingest job ended."""

    STORED = "stored"
    DUPLICATE = "duplicate"  # the archive holds the same bytes already
    UPDATED = "updated"  # so it does, and the caption or the metadata of the picture are others now
    REJECTED = "rejected"
    DEAD = "dead"
    CANCELLED = "cancelled"


@dataclass(frozen=True, slots=True)
class PageCaption:
    """What is said about one page of a document. `caption` None: nothing; empty: that it has none."""

    caption: str | None = None
    metadata: dict[str, Any] | None = None

    def over(self, caption: str | None, metadata: dict[str, Any] | None) -> PageCaption:
        """This over what is said about the whole document."""
        own = self.caption if self.caption is not None else caption
        return PageCaption(own, (metadata or {}) | (self.metadata or {}) or None)


@dataclass(frozen=True, slots=True)
class SourceFile:
    """One file offered to an archive, before anybody has looked inside.

    `source` is the name shown to people: the path relative to what the user gave, `photos.zip/a.png` for a member.
    `uri` says where the bytes are: `file:///abs/path`, `zip:///abs/a.zip!member`, `tar:///abs/a.tar!member` or
    `s3://bucket/key`. `caption` and `metadata` are what is given beside the file; an empty caption says that it has
    none any more; `pages` is what is said about single pages, if it is a document. `rejected` says why the
    listing itself refused the file.
    """

    source: str
    uri: str
    caption: str | None = None
    rejected: Rejection | None = None
    metadata: dict[str, Any] | None = None
    pages: dict[int, PageCaption] | None = None

    def said_about(self, page: int) -> PageCaption:
        """The caption and metadata that were given for a page of the document; page 0: the file is a picture."""
        return said_about_page(page, self.caption, self.metadata, self.pages)


def said_about_page(
    page: int, caption: str | None, metadata: dict[str, Any] | None, pages: Mapping[int, PageCaption] | None
) -> PageCaption:
    """What is said about a page, over what is said about its document. A picture is its own first page."""
    return (pages or {}).get(page or 1, PageCaption()).over(caption, metadata)


@dataclass(frozen=True, slots=True)
class FileOutcome:
    """How one file of an ingest job ended; `reason` is a sentence for a person, `rejection_class` for the metrics."""

    file_no: int
    status: FileStatus
    reason: str | None = None
    image_id: int | None = None
    rejection_class: RejectionClass | None = None

    @classmethod
    def of_rejected(cls, file_no: int, rejection: Rejection) -> FileOutcome:
        """The outcome of a file that is rejected."""
        return cls(file_no, FileStatus.REJECTED, rejection.reason, rejection_class=rejection.rejection_class)
