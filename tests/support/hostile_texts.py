"""Texts that try to break pages: scripts, letters that turn the direction, very long ones, control characters."""

from __future__ import annotations

HOSTILE = (
    "<script>window.pwned = 1</script>",
    '"><img src=x onerror="window.pwned = 1">',
    "'; window.pwned = 1; //",
    "javascript:window.pwned=1",
    "{{ 7 * 7 }} ${7*7} <%= 7 %>",
    "</title></textarea></style><svg onload=window.pwned=1>",
    "\u202egnp.exe\u202c \u2066left alone",
    "\u05e9\u05dc\u05d5\u05dd \u0645\u0631\u062d\u0628\u0627 (abc) 123",
    "W" * 2_000,
    "bell\x07 escape\x1b[31m delete\x7f",
    "&lt;b&gt; &amp;amp; &#x3c;script&#x3e;",
    "%3Cscript%3E?next=//evil.example#x",
)
"""Postgres stores all of them; with a NUL it stores none."""

HOSTILE_NAME = "<img src=x onerror=window.pwned=1>\u202efdp.csv"
