"""Attempts to ask a provider, as the threads beside them see them."""

from __future__ import annotations

from typing import Any

from ragllava.client.access.attempts import NOTHING_KNOWN_PAUSE_S, Attempts
from ragllava.errors import ServiceUnavailable


class Watched(Attempts):
    """Notes at each of its changes what another thread would see then: whether it may ask, and what went wrong."""

    seen: list[tuple[bool, str]] | None = None

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value)
        if self.seen is not None:
            self.seen.append((self.may_begin(NOTHING_KNOWN_PAUSE_S), str(self.problem)))


def fail() -> None:
    raise ServiceUnavailable("it is starting")


def test_who_finds_a_pause_finds_its_reason() -> None:
    attempts = Watched()
    seen: list[tuple[bool, str]] = []
    attempts.seen = seen
    with attempts.turn(waits=True) as is_ours, attempts.noted():
        assert is_ours
        fail()
    assert {why for may_ask, why in seen if not may_ask} == {"it is starting"}
