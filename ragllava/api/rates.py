"""How many requests a caller may send in a minute: counted in this process."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable

from ragllava.errors import QuotaExceeded

_MOST_CALLERS = 10_000  # of whom a bucket is kept


class Rates:
    """A bucket for each caller, which holds a minute's requests and fills up steadily. For one thread."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """`clock` returns seconds."""
        self._clock = clock
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()  # requests that are left, when counted

    def admit(self, owner: str, per_minute: int) -> None:
        """Count a request. Raises QuotaExceeded when a caller has none left; 0: no limit."""
        if not per_minute:
            return
        now = self._clock()
        left, counted_at = self._buckets.pop(owner, (float(per_minute), now))
        left = min(float(per_minute), left + (now - counted_at) * per_minute / 60)
        self._buckets[owner] = (left - 1, now) if left >= 1 else (left, now)
        while len(self._buckets) > _MOST_CALLERS:
            self._buckets.popitem(last=False)
        if left < 1:
            raise QuotaExceeded(
                f"this caller may send {per_minute:,} requests a minute; wait", (1 - left) * 60 / per_minute
            )
