"""Attempts to learn something from an OpenID Connect provider: one at a time, and none for a while after a failure.

Who needs the answer waits while another thread asks for it, unless an attempt has just failed: then the provider is
taken for silent, and nobody waits for the next attempt but the thread that makes it. Pauses begin with a second and
double with each further failure. After a minute without an attempt, a failure says nothing any more.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from time import monotonic

from ragllava.errors import ServiceUnavailable

LONGEST_PAUSE_S = 30.0
NOTHING_KNOWN_PAUSE_S = 10.0  # the longest one while every caller needs the answer
_FIRST_PAUSE_S = 1.0
_SILENT_S = 60.0


class Attempts:
    """Those for one thing. `problem` is what went wrong at the last one; None: nothing, or there was none."""

    def __init__(self) -> None:
        """None was made."""
        self.problem: ServiceUnavailable | None = None
        self._running = threading.Lock()
        self._answered_at = self._ended_at = float("-inf")
        self._failures = 0  # since the last answer
        self._ended = 0

    @property
    def is_running(self) -> bool:
        """Whether a thread asks the provider now."""
        return self._running.locked()

    @property
    def is_silent(self) -> bool:
        """Whether the provider has just failed, so that nobody waits for the attempt of another thread."""
        return self.problem is not None and monotonic() - self._ended_at < _SILENT_S

    @property
    def answer_age_s(self) -> float:
        """Seconds since the last answer was asked for; infinite if there was none."""
        return monotonic() - self._answered_at

    def may_begin(self, longest_s: float) -> bool:
        """Whether the pause is over: `longest_s` after an answer, and at most that after a failure."""
        pause_s = longest_s
        if self._failures:
            pause_s = min(longest_s, _FIRST_PAUSE_S * 2.0 ** min(self._failures - 1, 20))
        return monotonic() - self._ended_at >= pause_s

    @contextmanager
    def turn(self, *, waits: bool) -> Iterator[bool]:
        """Whether the caller may ask the provider, inside: nobody else asks, nor has asked while it waited for that. It
        waits only if it `waits`, and the provider is not silent."""
        ended = self._ended
        is_mine = self._running.acquire(blocking=waits and not self.is_silent)
        try:
            yield is_mine and ended == self._ended
        finally:
            if is_mine:
                self._running.release()

    @contextmanager
    def noted(self) -> Iterator[None]:
        """Around an attempt, which stores what it learns. ServiceUnavailable goes no further: it is the `problem`."""
        began_at = monotonic()
        problem: ServiceUnavailable | None = ServiceUnavailable("the attempt to ask it has broken off")
        try:
            yield
            problem, self._answered_at = None, began_at
        except ServiceUnavailable as error:
            problem = error
        finally:
            self._failures = 0 if problem is None else self._failures + 1
            self._ended_at = monotonic()
            self._ended += 1
            self.problem = problem  # last: who reads that there is none finds the rest
