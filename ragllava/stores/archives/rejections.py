"""How often files were rejected, by the class of the reason: a counter of the metrics.

A reason is a sentence for people. A label needs a few fixed values, so each reason belongs to one class, by its words.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum

from sqlalchemy import Connection

from ragllava.records import JobKind
from ragllava.stores.maintenance import totals


class RejectionClass(StrEnum):
    """What is the matter with a file that an ingest rejects."""

    DAMAGED = "damaged"
    TOO_LARGE = "too_large"  # bytes, pixels, pages, or what decoding it takes
    NO_PICTURE = "no_picture"
    UNSUPPORTED = "unsupported"  # a format or a packing that is not read, or that is encrypted
    UNREADABLE = "unreadable"  # missing, forbidden, or no regular file
    PACKED = "packed"  # a member that a zip or tar file should not have
    OTHER = "other"


# The first class with a phrase that the reason contains. What names a packed file comes before what is said of it.
_PHRASES: tuple[tuple[RejectionClass, tuple[str, ...]], ...] = (
    (
        RejectionClass.UNSUPPORTED,
        ("password", "encrypted", "pip install", "are not accepted", "RAW file of a camera ("),
    ),
    (
        RejectionClass.UNSUPPORTED,
        ("is packed with method", "files cannot be read; unpack it", "not one that can be read"),
    ),
    (RejectionClass.PACKED, ("zip bomb", "another member of the same name", " file; unpack it first")),
    (RejectionClass.PACKED, ("file (../ or an absolute path)", "inside the tar file")),
    (RejectionClass.PACKED, ("link or device inside the zip file",)),
    (RejectionClass.DAMAGED, ("damaged", "the file is empty", "crashed", "has no size", "nested too deeply")),
    (RejectionClass.DAMAGED, ("not finite numbers", "is not base64")),
    (RejectionClass.TOO_LARGE, ("allowed", "decoding it takes more", "is larger than")),
    (RejectionClass.NO_PICTURE, ("not a picture", "not the picture", "the document is not")),
    (
        RejectionClass.UNREADABLE,
        ("disappeared", "cannot be read", "symbolic link", "not a regular file", "there is no "),
    ),
)


def class_of(reason: str) -> RejectionClass:
    """The class of a reason that an ImageRejected or a listing gives."""
    for rejection, phrases in _PHRASES:
        if any(phrase in reason for phrase in phrases):
            return rejection
    return RejectionClass.OTHER


def count_rejections(connection: Connection, numbers: Mapping[RejectionClass, int]) -> None:
    """Add files that were rejected now to the counters."""
    totals.add(connection, [(totals.REJECTED, JobKind.INGEST, name.value, number) for name, number in numbers.items()])
