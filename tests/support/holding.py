"""Calls of a server that are held up, as by a database or a provider that is silent."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import pytest

from tests.support.waiting import wait_for


@contextmanager
def holding(
    monkeypatch: pytest.MonkeyPatch,
    place: type | ModuleType,
    method: str,
    ask: Callable[[], int],
    *,
    asked: int,
    held: int,
) -> Iterator[list[Future[int]]]:
    """Inside, `held` of so many requests, each made by `ask`, wait before a method of the server. Then they go on."""
    release, entered = threading.Event(), list[str]()
    work = getattr(place, method)

    def wait_first(*args: Any, **kwargs: Any) -> Any:
        entered.append(threading.current_thread().name)
        assert release.wait(120)
        return work(*args, **kwargs)

    monkeypatch.setattr(place, method, wait_first)
    with ThreadPoolExecutor(asked) as threads:
        try:
            running = [threads.submit(ask) for _ in range(asked)]
            wait_for("the requests to be held", lambda: len(entered) >= held, 60)
            yield running
        finally:
            release.set()
