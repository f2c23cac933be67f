"""Isolation: one part of a loop that fails holds up no other part, tick after tick.

A part is one binding, one job's result, one schedule, … An error of a part is recorded with its reason
(stores/maintenance/faults.py), and the part is postponed with a growing delay. This is the border at which any error is
caught, beside the runner of shards: what a part reads comes from outside, and no list of errors is complete.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from typing import ParamSpec, TypeVar

from sqlalchemy import Engine

from ragllava.errors import DeviceLost, FetchNeeded, LeaseLost, RagllavaError, ShardInterrupted
from ragllava.stores.database import in_transaction
from ragllava.stores.maintenance import faults

log = logging.getLogger(__name__)
P = ParamSpec("P")
T = TypeVar("T")

# They concern the whole process, not one part. FetchNeeded is not a fault.
PASSED_ON = (DeviceLost, LeaseLost, ShardInterrupted, FetchNeeded)

_MOST_TRANSIENT_S = 60.0  # between two attempts when a service may be back soon
_MOST_IN_A_ROW = 20
_MOST_S = 600.0  # between two attempts of anything else: perhaps the reason is outside, as a full disk


class LeftToAnother(Exception):
    """Raised by the work of a part that another process does at this moment: it neither succeeded nor failed."""


class Isolation:
    """The parts of one loop. Make it at the start of each pass."""

    def __init__(self, engine: Engine, room: str, subjects: Iterable[str]) -> None:
        """`subjects` are all parts that exist or have work now; faults of others are removed."""
        self._engine = engine
        self._room = room
        self._faults = in_transaction(engine, faults.postponed, room)
        if gone := self._faults.keys() - set(subjects):
            in_transaction(engine, faults.clear, room, sorted(gone))

    def has_failed(self, subject: str) -> bool:
        """Whether the last attempt of this part failed: it may fail again, and slowly, so let others go first."""
        return subject in self._faults

    def is_postponed(self, subject: str) -> bool:
        """Whether the last attempt of this part failed and the next one is not due yet."""
        return self._faults.get(subject, False)

    def run(self, subject: str, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T | None:
        """The result of one part, None when it failed, or was left to another process; then its fault stays as it is.

        Passes on only what concerns the whole process. Raises ServiceUnavailable when the database is away, so that
        the fault cannot be recorded either.
        """
        try:
            result = work(*args, **kwargs)
        except PASSED_ON:
            raise
        except LeftToAnother:
            return None
        except Exception as error:  # noqa: BLE001 - the border of a part
            self._record(subject, error)
            return None
        if subject in self._faults:
            in_transaction(self._engine, faults.clear, self._room, [subject])
        return result

    def _record(self, subject: str, error: Exception) -> None:
        reason = reason_of(error)
        is_transient = isinstance(error, RagllavaError) and error.retryable
        log.warning(
            reason,
            exc_info=None if isinstance(error, RagllavaError) else error,
            extra={"action": "part_postponed", "room": self._room, "subject": subject},
        )
        most_s = _MOST_TRANSIENT_S if is_transient else _MOST_S
        in_transaction(self._engine, faults.record, self._room, subject, reason, most_s)


class Failures:
    """The parts of one maintenance task that failed, with the reason; the task goes on with the others.

    Nothing is recorded in the database: the report of the task has them.
    """

    def __init__(self) -> None:
        self.reasons: dict[str, str] = {}
        self._in_a_row = 0
        self._any_succeeded = False
        self._retryable: RagllavaError | None = None

    def run(self, part: str, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T | None:
        """The result of one part, None when it failed. After many failures in a row no part is to blame, and the last
        error is passed on."""
        try:
            result = work(*args, **kwargs)
        except PASSED_ON:
            raise
        except Exception as error:
            self._in_a_row += 1
            if self._in_a_row > _MOST_IN_A_ROW:
                raise
            if isinstance(error, RagllavaError) and error.retryable:
                self._retryable = error
            self.reasons[part] = reason_of(error)
            log.warning(
                self.reasons[part],
                exc_info=None if isinstance(error, RagllavaError) else error,
                extra={"action": "part_failed", "part": part},
            )
            return None
        self._in_a_row = 0
        self._any_succeeded = True
        return result

    def require_success(self) -> None:
        """Raise the error of a service that was away for all parts: then the whole task is tried again."""
        if self._retryable is not None and not self._any_succeeded:
            raise self._retryable

    def sentence(self) -> str | None:
        """`3 parts failed, as blob 1a2b: …`; None without a failure."""
        if not self.reasons:
            return None
        part, reason = next(iter(self.reasons.items()))
        number = len(self.reasons)
        return f"{number:,} part{'s' if number > 1 else ''} failed, as {part}: {reason}"


def reason_of(error: Exception) -> str:
    """The message of an error; of one that is not ours, with its type."""
    if isinstance(error, RagllavaError):
        return str(error)
    return f"{type(error).__name__}: {str(error) or 'no message'}"
