"""A Redis list that an object store appends its events to (MinIO's target `redis` in format `access`).

Every function raises ServiceUnavailable when Redis is unavailable.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from ragllava.errors import ServiceUnavailable

_TIMEOUT_S = 5.0


def first_entries(url: str, name: str, limit: int) -> list[bytes]:
    """Up to `limit` entries from the front of the list, which are not removed."""
    with _client(url, name) as client:
        return list(client.lrange(name, 0, limit - 1))


def remove_entries(url: str, name: str, entries: Sequence[bytes]) -> None:
    """Remove one occurrence of each of these entries: another process may have read the same ones."""
    with _client(url, name) as client, client.pipeline(transaction=True) as pipeline:
        for entry in entries:
            pipeline.lrem(name, 1, entry)  # they are at the front, so LREM finds each of them immediately
        pipeline.execute()


@contextmanager
def _client(url: str, name: str) -> Iterator[Any]:
    import redis

    try:
        with redis.Redis.from_url(url, socket_timeout=_TIMEOUT_S, socket_connect_timeout=_TIMEOUT_S) as client:
            yield client
    except redis.RedisError as error:
        raise ServiceUnavailable(f"Redis, list {name}: {error}") from error
