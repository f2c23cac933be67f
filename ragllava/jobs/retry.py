"""The retry rule: what happens to a shard after a failed attempt (docs/reliability.md D5). No database here."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from ragllava.settings import Settings

MAX_BACKOFF_S = 60.0
_LOST_ALONE = 2  # times as many attempts for a lone input whose workers vanish


@dataclass(frozen=True, slots=True)
class Limits:
    """How often a shard may fail without progress before it is halved, or dead when it holds one input only.

    A worker can vanish with a healthy input, as when its machine restarts, so a lone input may lose as many again.
    """

    max_attempts: int
    max_transient_attempts: int
    backoff_s: float

    @classmethod
    def of(cls, settings: Settings) -> Limits:
        """The limits that the settings give."""
        return cls(settings.max_attempts, settings.max_transient_attempts, settings.retry_backoff_s)


class NextStep(StrEnum):
    """What to do with a shard whose attempt failed."""

    WAIT = "wait"  # try it again after `backoff_s`; the attempt is not counted
    TRY_AGAIN = "try_again"  # at once, all of it
    SPLIT = "split"  # in two halves, so that an input that kills its workers ends alone
    GIVE_UP = "give_up"  # its last open input is dead
    CANCEL = "cancel"
    FINISH = "finish"  # it failed after its last input had an outcome


def next_step(
    limits: Limits,
    *,
    attempts: int,
    transient_attempts: int,
    open_inputs: int,
    is_transient: bool = False,
    is_lost: bool = False,
    is_cancelled: bool = False,
) -> NextStep:
    """The rule. `attempts` includes the failed one, `transient_attempts` does not; both count since the last progress.

    `open_inputs` counts the inputs of the shard without an outcome. `is_transient`: a service did not answer, so no
    input is to blame until that has happened `max_transient_attempts` times. `is_lost`: the worker vanished.
    """
    if is_transient and transient_attempts + 1 < limits.max_transient_attempts:
        return NextStep.WAIT
    if is_cancelled:
        return NextStep.CANCEL
    if not open_inputs:
        return NextStep.FINISH
    is_alone = open_inputs == 1
    if attempts < limits.max_attempts * (_LOST_ALONE if is_alone and is_lost else 1):
        return NextStep.TRY_AGAIN
    return NextStep.GIVE_UP if is_alone else NextStep.SPLIT


def backoff_s(limits: Limits, transient_attempts: int) -> float:
    """How long to wait for a service after so many earlier transient failures."""
    return min(MAX_BACKOFF_S, limits.backoff_s * 2.0**transient_attempts)
