"""Text from outside made harmless for terminals and logs.

A caption, a file name, a question or a message of a store may contain control characters: a terminal would execute them
(move the cursor, change the title, fill the clipboard), and those of bidirectional text reorder what is shown.
"""

from __future__ import annotations

import re

# C0 except tab and line feed, DEL, C1, marks of bidirectional text, line separators, lone surrogates.
_CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def visible(text: str) -> str:
    """`text` with its control characters as backslash escapes; tabs and line feeds stay."""
    return _CONTROLS.sub(lambda match: match[0].encode("unicode_escape").decode("ascii"), text)


def visible_json(text: str) -> str:
    """The same for JSON text, which stays JSON of the same values."""
    return _CONTROLS.sub(lambda match: f"\\u{ord(match[0]):04x}", text)
