"""Reading question files that have pictures of other hosts: in threads of their own, for a host may be slow."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from ragllava.errors import ServiceUnavailable
from ragllava.jobs.isolation import Isolation

log = logging.getLogger(__name__)

_AT_ONCE = 4


class SlowReads:
    """Batches, or inboxes, of one process that are being read, or wait until fewer are."""

    def __init__(self) -> None:
        self._places = threading.BoundedSemaphore(_AT_ONCE)
        self._subjects: set[str] = set()
        self._deciding = threading.Lock()

    def has(self, subject: str) -> bool:
        """Whether the reading of this subject has begun and not ended."""
        return subject in self._subjects

    def begin(self, subject: str, isolation: Isolation, read: Callable[[], object]) -> None:
        """Read it as soon as there is a place. The thread ends with its process; a later tick begins again."""
        self._subjects.add(subject)
        arguments, name = (subject, isolation, read), f"read {subject}"
        threading.Thread(target=self._read, args=arguments, name=name, daemon=True).start()

    def begin_if_free(self, subject: str, isolation: Isolation, read: Callable[[], object]) -> bool:
        """As `begin`, if this subject is not being read and there is a place now; returns whether it has begun."""
        with self._deciding:
            if self.has(subject) or len(self._subjects) >= _AT_ONCE:
                return False
            self.begin(subject, isolation, read)
            return True

    def _read(self, subject: str, isolation: Isolation, read: Callable[[], object]) -> None:
        try:
            with self._places:
                isolation.run(subject, read)
        except ServiceUnavailable as error:
            log.warning(str(error), extra={"action": "not_read", "subject": subject})
        finally:
            self._subjects.discard(subject)
