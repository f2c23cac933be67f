"""Text as words that can be searched."""

from __future__ import annotations

WORDS_VERSION = 1
