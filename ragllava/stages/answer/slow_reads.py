"""Reading question files that have pictures of other hosts: in threads of their own, for a host may be slow."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

from ragllava.errors import ServiceUnavailable
from ragllava.jobs.isolation import Isolation

log = logging.getLogger(__name__)

_AT_ONCE = 4
_KEPT_S = 120.0  # the turn of a subject that found no place: twice as long as the tick takes to ask for it again


class SlowReads:
    """Batches, or inboxes, of one process that are being read, or wait until fewer are."""

    def __init__(self) -> None:
        self._places = threading.BoundedSemaphore(_AT_ONCE)
        self._subjects: set[str] = set()
        self._deciding = threading.Lock()
        self._queue: dict[str, float] = {}  # subjects that found no place, in turn; when they asked last

    def has(self, subject: str) -> bool:
        """Whether the reading of this subject has begun and not ended."""
        return subject in self._subjects

    def begin(self, subject: str, isolation: Isolation, read: Callable[[], object]) -> None:
        """Read it as soon as there is a place. The thread ends with its process; a later tick begins again."""
        self._subjects.add(subject)
        arguments, name = (subject, isolation, read), f"read {subject}"
        threading.Thread(target=self._read, args=arguments, name=name, daemon=True).start()

    def begin_if_free(self, subject: str, isolation: Isolation, read: Callable[[], object]) -> bool:
        """As `begin`, if this subject is not being read and there is a place now; returns whether it has begun.

        Subjects that found no place before this one come first, if they ask again soon.
        """
        with self._deciding:
            if self.has(subject):
                return False
            if len(self._subjects) + self._before(subject) >= _AT_ONCE:
                self._queue[subject] = time.monotonic()
                return False
            self._queue.pop(subject, None)
            self.begin(subject, isolation, read)
            return True

    def _before(self, subject: str) -> int:
        """How many others are to have a place before this subject."""
        oldest = time.monotonic() - _KEPT_S
        self._queue = {name: asked for name, asked in self._queue.items() if asked > oldest}
        names = list(self._queue)
        return names.index(subject) if subject in self._queue else len(names)

    def _read(self, subject: str, isolation: Isolation, read: Callable[[], object]) -> None:
        try:
            with self._places:
                isolation.run(subject, read)
        except ServiceUnavailable as error:
            log.warning(str(error), extra={"action": "not_read", "subject": subject})
        finally:
            self._subjects.discard(subject)
