"""Progress lines among what a command prints on standard error: a slow machine gets some, a fast one none."""

from __future__ import annotations

import re

_PROGRESS_LINE = re.compile(r"^.+, \d[^\n]* so far\n", re.MULTILINE)


def without_progress(err: str) -> str:
    """Standard error without them."""
    return _PROGRESS_LINE.sub("", err)
