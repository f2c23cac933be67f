"""Kombu's Redis transport, for which a list entry that is no message is one line in the log.

Kombu lets the error through, and Celery ends the worker: whoever can write to the queue could end all of them, as often
as they are started again.
"""

from __future__ import annotations

import logging
from typing import Any

from kombu.transport import redis

log = logging.getLogger(__name__)

# What parsing raises: wrong JSON and encodings (ValueError), other types, and parts that are missing.
_UNREADABLE = (ValueError, TypeError, LookupError, AttributeError)


class Channel(redis.Channel):  # type: ignore[misc]
    """Drops what cannot be read. A shard whose message was dropped is sent again."""

    def _brpop_read(self, **options: Any) -> bool:
        try:
            return bool(super()._brpop_read(**options))
        except _UNREADABLE as error:
            log.warning(f"{type(error).__name__}: {error}", extra={"action": "message_unreadable"})
            return True


class Transport(redis.Transport):  # type: ignore[misc]
    """What `redis://` and `rediss://` mean in our processes (workers/app.py)."""

    Channel = Channel
