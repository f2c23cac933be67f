"""Rest for the workers that run in threads of the tests: until something in this process has written to a database.

A worker that looks at its tables all the time takes half a processor from the server and the browser beside it.
"""

from __future__ import annotations

import re
import threading
import time
from typing import Any

from sqlalchemy import Connection, Engine, event

_SHORTEST_S = 0.02
_LONGEST_S = 0.2  # what other processes write, and what is due at a time, is seen then
# What each request notes about itself is nobody's work.
_OTHERS = r"(?!audit\b|api_|sign_in)"
_WRITES = re.compile(
    rf"\b(?:INSERT\s+INTO\s+{_OTHERS}|DELETE\s+FROM\s+{_OTHERS}|UPDATE\s+{_OTHERS}\w+(?:\s+AS\s+\w+)?\s+SET\b)",
    re.IGNORECASE,
)
_HAS_WRITTEN = "has_written"

_resting: set[threading.Event] = set()


class Rest:
    """The pauses of one worker."""

    def __init__(self) -> None:
        self._woken = threading.Event()

    def take(self) -> None:
        """Return after a change in a database, also one since the last rest, or after a while."""
        time.sleep(_SHORTEST_S)
        _resting.add(self._woken)
        try:
            self._woken.wait(_LONGEST_S)
        finally:
            self._woken.clear()

    def disturb(self) -> None:
        """Let the rest end now, or the next one if there is none."""
        self._woken.set()

    def close(self) -> None:
        """No change disturbs it any more."""
        _resting.discard(self._woken)


# No listener to "rollback": it would look at connections that broke, which SQLAlchemy forbids. A change that was rolled
# back wakes workers at the next commit of its connection, which does no harm.
@event.listens_for(Engine, "after_cursor_execute")
def _note(connection: Connection, cursor: Any, statement: str, *_facts: object) -> None:
    if cursor.rowcount and _WRITES.search(statement):
        connection.info[_HAS_WRITTEN] = True


@event.listens_for(Engine, "commit")
def _disturb_all(connection: Connection) -> None:
    if connection.info.pop(_HAS_WRITTEN, False):
        for woken in tuple(_resting):
            woken.set()
