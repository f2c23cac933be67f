"""Included by a real worker, it steps the clock of its process back by an hour with each look."""

from __future__ import annotations

import itertools
import time

_steps = itertools.count()
_true_time = time.time


def _stepping_back() -> float:
    return _true_time() - 3600.0 * next(_steps)


time.time = _stepping_back
