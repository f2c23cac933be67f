"""What a listing of files notices beside the files that it offers: caption files, and files that it passes over."""

from __future__ import annotations

import posixpath
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

_CAPTION_FILE = re.compile(
    r"(?:captions\.(?:csv|tsv|jsonl|ndjson|json|parquet|xlsx)|metadata\.(?:csv|tsv|jsonl|ndjson|parquet))(?:\.gz)?",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class CaptionFile:
    """A caption file beside pictures: the displayed name of its folder, empty or with a slash at its end, its own
    name, and where its content is."""

    folder: str
    name: str
    source: Path | bytes

    @property
    def depth(self) -> int:
        """The number of folders that it lies in."""
        return self.folder.count("/")


@dataclass(slots=True)
class Listing:
    """Counts and remarks of a listing. `passed_over` counts files by their kind, `cut` captions that are too long,
    `listed_captions` those of caption files beside the pictures, and `without_file` those of them that fit no file."""

    passed_over: Counter[str] = field(default_factory=Counter)
    cut: int = 0
    listed_captions: int = 0
    without_file: int = 0
    notes: list[str] = field(default_factory=list)
    caption_files: list[CaptionFile] = field(default_factory=list)

    def pass_over(self, names: Iterable[str]) -> None:
        """Count files that are not offered, by their extension."""
        for name in names:
            base = posixpath.basename(name)
            self.passed_over[posixpath.splitext(base)[1].lower() or base] += 1

    def passed_kinds(self) -> str:
        """`212 .mp4, 40 .pdf`, the most frequent first."""
        counted = sorted(self.passed_over.items(), key=lambda item: (-item[1], item[0]))
        kinds = [f"{number:,} {kind}" for kind, number in counted[:10]]
        more = len(self.passed_over) - len(kinds)
        return ", ".join(kinds) + (f" and files of {more} other kinds" if more else "")


def is_caption_file(name: str) -> bool:
    """Whether a file of this name, with or without folders, holds captions of the pictures beside it."""
    return _CAPTION_FILE.fullmatch(posixpath.basename(name)) is not None
