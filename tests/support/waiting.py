"""The one loop with which tests wait for something that happens in another thread or process."""

from __future__ import annotations

import time
from collections.abc import Callable

POLL_S = 0.02
_PAUSES = 9.0  # times what a look has computed: looking must not slow down what is waited for
_LONGEST_PAUSE_S = 0.5  # what lasts for a moment only must not be slept over


def wait_for(event: str, condition: Callable[[], bool], timeout_s: float = 120.0) -> None:
    """Call `condition` until it returns True; fail with the name of the event after `timeout_s` seconds."""
    deadline = time.monotonic() + timeout_s
    before = time.thread_time()
    while not condition():
        assert time.monotonic() < deadline, f"waited {timeout_s:g} s in vain for: {event}"
        time.sleep(min(_LONGEST_PAUSE_S, max(POLL_S, _PAUSES * (time.thread_time() - before))))
        before = time.thread_time()
