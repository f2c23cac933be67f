"""A Redis list that an object store appends its events to (MinIO's target `redis` in format `access`)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ragllava.errors import ServiceUnavailable

if TYPE_CHECKING:
    import redis

_TIMEOUT_S = 5.0


def first_entries(url: str, name: str, limit: int) -> list[bytes]:
    """Up to `limit` entries from the front of the list; they stay there. Raises ServiceUnavailable."""
    import redis

    try:
        with _client(url) as client:
            return list(client.lrange(name, 0, limit - 1))
    except redis.RedisError as error:
        raise ServiceUnavailable(f"Redis, list {name}: {error}") from error


def remove_entries(url: str, name: str, entries: Sequence[bytes]) -> None:
    """Remove these entries, each once: another process may have read the same ones. Raises ServiceUnavailable."""
    import redis

    try:
        with _client(url) as client, client.pipeline(transaction=True) as pipeline:
            for entry in entries:
                pipeline.lrem(name, 1, entry)  # they stand in front, so each is found at once
            pipeline.execute()
    except redis.RedisError as error:
        raise ServiceUnavailable(f"Redis, list {name}: {error}") from error


def _client(url: str) -> redis.Redis:
    import redis

    return redis.Redis.from_url(url, socket_timeout=_TIMEOUT_S, socket_connect_timeout=_TIMEOUT_S)
