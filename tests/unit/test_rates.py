"""How many requests a caller may send in a minute, by a clock that the test sets."""

from __future__ import annotations

import pytest

from ragllava.api.rates import Rates
from ragllava.errors import QuotaExceeded


def test_a_bucket_holds_a_minute_of_requests_and_fills_up_steadily() -> None:
    now_s = 0.0
    rates = Rates(lambda: now_s)

    def admitted() -> int:
        """How many of ten requests pass."""
        count = 0
        for _ in range(10):
            try:
                rates.admit("ann", 3)
            except QuotaExceeded:
                continue
            count += 1
        return count

    assert admitted() == 3
    with pytest.raises(QuotaExceeded, match="3 requests a minute") as refused:
        rates.admit("ann", 3)
    assert refused.value.retry_after_s == pytest.approx(20.0)
    rates.admit("bob", 3)  # has a bucket of its own
    rates.admit("ann", 0)  # without a limit
    now_s = 19.0
    assert admitted() == 0
    now_s = 41.0
    assert admitted() == 2
    now_s = 10_000.0
    assert admitted() == 3, "a bucket holds no more"
