"""Names and captions of erased images in sentences and reports: each is replaced by `(erased)`."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

ERASED = "(erased)"

_SHORTEST = 4  # characters of a name that is searched for in sentences about anything
_PER_PATTERN = 500
_WORD = re.compile(r"\w+")


class Scrubber:
    """Replaces names and texts, whole values and what stands alone in a sentence: `a.png` is not part of `aa.png`."""

    def __init__(self, names: Iterable[str], *, shortest: int = _SHORTEST) -> None:
        """Names of fewer than `shortest` characters are replaced only where they are a whole value."""
        self._names = {name for name in names if name}
        searched = sorted((name for name in self._names if len(name) >= shortest), key=len, reverse=True)
        # Also valid in Postgres, which `patterns` are given to.
        self.patterns = [
            rf"(?<![\w/])(?:{'|'.join(map(re.escape, searched[start : start + _PER_PATTERN]))})(?!\w)"
            for start in range(0, len(searched), _PER_PATTERN)
        ]
        self._compiled = [re.compile(pattern) for pattern in self.patterns]
        # A text that has a name has all its words. Most texts have none of these, and are not searched any further.
        self._words = {max(_WORD.findall(name), key=len, default="") for name in searched}

    def text(self, value: str) -> str:
        """The text without the names."""
        if value in self._names:
            return ERASED
        if "" not in self._words and self._words.isdisjoint(_WORD.findall(value)):
            return value
        for pattern in self._compiled:
            value = pattern.sub(ERASED, value)
        return value

    def json(self, value: Any) -> Any:
        """A JSON value without the names, in keys and in values."""
        if isinstance(value, str):
            return self.text(value)
        if isinstance(value, list):
            return [self.json(item) for item in value]
        if isinstance(value, dict):
            return {self.text(key): self.json(item) for key, item in value.items()}
        return value
