"""An object store in which something happens before each put."""

from __future__ import annotations

from collections.abc import Callable
from typing import BinaryIO

from ragllava.settings import Settings
from ragllava.stores.objects import ObjectStore


class WatchedStore(ObjectStore):
    """Calls `before_put(key)` before each put, which may raise."""

    before_put: Callable[[str], None]

    def put_stream(
        self, key: str, stream: BinaryIO, size_bytes: int, media_type: str = "application/octet-stream"
    ) -> None:
        self.before_put(key)
        super().put_stream(key, stream, size_bytes, media_type)


def watched_store(settings: Settings, before_put: Callable[[str], None]) -> WatchedStore:
    store = WatchedStore(settings)
    store.before_put = before_put
    return store
