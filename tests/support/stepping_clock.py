"""Included by a real worker, it sets the clock of its process back by an hour, some seconds after the start."""

from __future__ import annotations

import time

_SECONDS = 5.0
_true_time = time.time
_started = time.monotonic()


def _stepping_back() -> float:
    return _true_time() - (3600.0 if time.monotonic() - _started > _SECONDS else 0.0)


time.time = _stepping_back
