"""The retry rule as a table."""

from __future__ import annotations

import pytest

from ragllava.jobs.retry import Limits, NextStep, backoff_s, next_step

LIMITS = Limits(max_attempts=2, max_transient_attempts=3, backoff_s=2.0)


@pytest.mark.parametrize(
    ("attempts", "transient_attempts", "open_inputs", "is_transient", "is_cancelled", "step"),
    [
        # A service did not answer.
        (1, 0, 5, True, False, NextStep.WAIT),
        (1, 1, 5, True, False, NextStep.WAIT),
        (1, 2, 5, True, False, NextStep.TRY_AGAIN),  # the third time counts as an attempt
        (2, 2, 5, True, False, NextStep.SPLIT),
        (2, 2, 1, True, False, NextStep.GIVE_UP),
        (1, 0, 5, True, True, NextStep.WAIT),  # the next tick cancels it
        # Anything else, or a lease that ran out.
        (1, 0, 5, False, False, NextStep.TRY_AGAIN),
        (1, 0, 1, False, False, NextStep.TRY_AGAIN),
        (2, 0, 5, False, False, NextStep.SPLIT),
        (2, 0, 2, False, False, NextStep.SPLIT),
        (2, 0, 1, False, False, NextStep.GIVE_UP),
        (1, 0, 0, False, False, NextStep.FINISH),
        (2, 0, 0, False, False, NextStep.FINISH),
        # The job was cancelled meanwhile.
        (1, 0, 5, False, True, NextStep.CANCEL),
        (2, 0, 1, False, True, NextStep.CANCEL),
        (1, 2, 5, True, True, NextStep.CANCEL),
        (1, 0, 0, False, True, NextStep.CANCEL),
    ],
)
def test_what_happens_after_a_failed_attempt(
    attempts: int, transient_attempts: int, open_inputs: int, is_transient: bool, is_cancelled: bool, step: NextStep
) -> None:
    assert step == next_step(
        LIMITS,
        attempts=attempts,
        transient_attempts=transient_attempts,
        open_inputs=open_inputs,
        is_transient=is_transient,
        is_cancelled=is_cancelled,
    )


def test_the_wait_for_a_service_doubles_up_to_a_minute() -> None:
    assert [backoff_s(LIMITS, attempts) for attempts in range(7)] == [2.0, 4.0, 8.0, 16.0, 32.0, 60.0, 60.0]


@pytest.mark.parametrize(
    ("attempts", "open_inputs", "step"),
    [
        (1, 5, NextStep.TRY_AGAIN),
        (2, 5, NextStep.SPLIT),
        (3, 1, NextStep.TRY_AGAIN),
        (4, 1, NextStep.GIVE_UP),
    ],
)
def test_a_lone_input_may_lose_twice_as_many_workers(attempts: int, open_inputs: int, step: NextStep) -> None:
    assert step == next_step(LIMITS, attempts=attempts, transient_attempts=0, open_inputs=open_inputs, is_lost=True)
