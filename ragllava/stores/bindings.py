"""Bound buckets: which part of a bucket feeds an archive, with pictures or with question files."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Any


class BindingRole(StrEnum):
    """What lies under a bound prefix."""

    PICTURES = "pictures"
    INBOX = "inbox"


@dataclass(frozen=True, slots=True)
class Binding:
    """A prefix of a bucket that belongs to an archive.

    `options` of an inbox: `outbox` (`s3://bucket/prefix/`), `answer` (AnswerOptions.as_json(), or absent) and
    `skip_invalid` (absent: true).
    """

    binding_id: int
    archive_id: int
    archive: str
    role: BindingRole
    bucket: str
    prefix: str
    options: dict[str, Any]
