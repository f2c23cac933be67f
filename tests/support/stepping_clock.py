"""Included by a real worker, it sets the clock of its process back by an hour at the signal SIGRTMIN, and says so.

Workers and Celery have uses of their own for the others.
"""

from __future__ import annotations

import os
import signal
import threading
import time

_true_time = time.time
_is_set_back = threading.Event()


def _stepping_back() -> float:
    return _true_time() - (3600.0 if _is_set_back.is_set() else 0.0)


def _set_back(*_signal: object) -> None:
    _is_set_back.set()
    os.write(2, b"the clock is set back\n")


signal.signal(signal.SIGRTMIN, _set_back)
time.time = _stepping_back
