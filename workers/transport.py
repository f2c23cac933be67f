"""Kombu's Redis transport, which neither a list entry that is no message nor a Redis that refuses commands ends.

Kombu lets such errors through, and Celery ends the worker: whoever can write to the queue could end all of them, as
often as they are started again, and so does a Redis that is full, cannot write to its disk, or is a replica.
"""

from __future__ import annotations

import logging
from typing import Any

from kombu.transport import redis
from redis.exceptions import ResponseError

log = logging.getLogger(__name__)

# What parsing raises: wrong JSON and encodings (ValueError), other types, and parts that are missing.
_UNREADABLE = (ValueError, TypeError, LookupError, AttributeError)


class QoS(redis.QoS):  # type: ignore[misc]
    """Does without the restoring of unacknowledged messages while Redis refuses it: our messages are acknowledged
    before they are processed."""

    def restore_visible(self, *args: Any, **options: Any) -> None:
        """As kombu's; a refusal is one line in the log."""
        try:
            super().restore_visible(*args, **options)
        except ResponseError as error:
            log.warning(f"Redis refuses: {error}", extra={"action": "broker_refuses"})


class Channel(redis.Channel):  # type: ignore[misc]
    """Drops what cannot be read. A shard whose message was dropped is sent again."""

    QoS = QoS

    def _brpop_read(self, **options: Any) -> bool:
        try:
            return bool(super()._brpop_read(**options))
        except _UNREADABLE as error:
            log.warning(f"{type(error).__name__}: {error}", extra={"action": "message_unreadable"})
            return True


class Transport(redis.Transport):  # type: ignore[misc]
    """What `redis://` and `rediss://` mean in our processes (workers/app.py).

    A refusal (OutOfMemoryError, ReadOnlyError, NoPermissionError, MISCONF, …) is an error of the connection, after
    which Celery connects again. It may pass at any time, whatever it is.
    """

    Channel = Channel
    connection_errors = (*redis.Transport.connection_errors, ResponseError)
