"""Attempts to learn something from an OpenID Connect provider: one at a time, and none for a while after a failure.

Who needs the answer waits while another thread asks for it, unless an attempt has just failed: then the provider is
taken for silent, and nobody waits for the next attempt but the thread that makes it. Pauses begin with a second and
double with each further failure. A minute after the last attempt, the provider is not taken for silent any more.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from time import monotonic

from ragllava.errors import ServiceUnavailable

LONGEST_PAUSE_S = 30.0
NOTHING_KNOWN_PAUSE_S = 10.0  # the longest one while every caller needs the answer
_FIRST_PAUSE_S = 1.0
_SILENT_S = 60.0


@dataclass(frozen=True, slots=True)
class _Past:
    """What attempts have shown. Replaced as a whole, so that no thread sees the end of one without its outcome."""

    problem: ServiceUnavailable | None = None
    answered_at: float = float("-inf")  # when the last answer was asked for
    ended_at: float = float("-inf")
    failures: int = 0  # since the last answer


class Attempts:
    """The attempts to fetch one thing from a provider."""

    def __init__(self) -> None:
        """No attempt was made yet."""
        self._running = threading.Lock()
        self._past = _Past()

    @property
    def problem(self) -> ServiceUnavailable | None:
        """What went wrong at the last one; None: nothing, or there was none. Read it before what attempts store: who
        reads None finds what the last one has stored."""
        return self._past.problem

    @property
    def is_running(self) -> bool:
        """Whether a thread asks the provider now."""
        return self._running.locked()

    @property
    def is_silent(self) -> bool:
        """Whether the provider has just failed, so that nobody waits for the attempt of another thread."""
        past = self._past
        return past.problem is not None and monotonic() - past.ended_at < _SILENT_S

    @property
    def answer_age_s(self) -> float:
        """Seconds since the last answer was asked for; infinite if there was none."""
        return monotonic() - self._past.answered_at

    def may_begin(self, longest_s: float) -> bool:
        """Whether the pause is over: `longest_s` after an answer, and at most that after a failure."""
        past, pause_s = self._past, longest_s
        if past.failures:
            pause_s = min(longest_s, _FIRST_PAUSE_S * 2.0 ** min(past.failures - 1, 20))
        return monotonic() - past.ended_at >= pause_s

    @contextmanager
    def turn(self, *, waits: bool) -> Iterator[bool]:
        """Gives whether the caller may ask the provider inside the `with`.

        It may not while another thread asks. With `waits`, it waits for that thread, unless the provider is silent;
        then the other thread has asked, and the caller need not.
        """
        past = self._past
        is_mine = self._running.acquire(blocking=waits and not self.is_silent)
        try:
            yield is_mine and past is self._past
        finally:
            if is_mine:
                self._running.release()

    @contextmanager
    def noted(self) -> Iterator[None]:
        """Around an attempt, which stores what it learns. ServiceUnavailable goes no further: it is the `problem`."""
        began_at, past = monotonic(), self._past
        problem: ServiceUnavailable | None = ServiceUnavailable("the attempt to ask it has broken off")
        try:
            yield
            problem = None
        except ServiceUnavailable as error:
            problem = error
        finally:
            answered_at, failures = (began_at, 0) if problem is None else (past.answered_at, past.failures + 1)
            self._past = _Past(problem, answered_at, monotonic(), failures)
