"""Calls of a server that are held up, as by a database or a provider that is silent."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest

from tests.support.waiting import wait_for


@dataclass
class Hold:
    """What takes the place of a method: each call of it waits until `release` is set."""

    release: threading.Event = field(default_factory=threading.Event)
    entered: list[str] = field(default_factory=list)

    def __call__(self, *_args: Any, **_kwargs: Any) -> bool:
        self.entered.append(threading.current_thread().name)
        assert self.release.wait(60)
        return True


@contextmanager
def holding(
    monkeypatch: pytest.MonkeyPatch, place: type, method: str, ask: Callable[[], int], *, asked: int, held: int
) -> Iterator[list[Future[int]]]:
    """Inside, `held` of so many requests, each made by `ask`, wait in a method of the server. They end afterwards."""
    hold = Hold()
    monkeypatch.setattr(place, method, hold)
    with ThreadPoolExecutor(asked) as threads:
        try:
            running = [threads.submit(ask) for _ in range(asked)]
            wait_for("the requests to be held", lambda: len(hold.entered) >= held, 30)
            yield running
        finally:
            hold.release.set()
