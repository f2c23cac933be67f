"""Uploads that go on while the sub-batch they belong to is embedded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import Future, wait

from ragllava.stages.resources import Resources
from ragllava.stores.archives.blobs import NewBlob


class Uploads:
    """The uploads of one shard; close it at the shard's end, however that comes.

    Bytes before rows (docs/reliability.md D13): who writes the rows that name content waits for `done` first, in the
    same thread.
    """

    def __init__(self, resources: Resources) -> None:
        self._resources = resources
        self._running: set[Future[str]] = set()

    def start(self, blobs: Sequence[NewBlob], contents: Mapping[str, bytes]) -> list[Future[str]]:
        """Begin to put announced content (by hash) into the object store."""
        put = self._resources.objects.put_content
        started = [self._resources.threads.submit(put, contents[blob.sha256], blob.media_type) for blob in blobs]
        self._running = {upload for upload in self._running if not upload.done()}.union(started)
        return started

    def close(self) -> None:
        """Drop what has not begun and wait for the rest, so that nothing is put after the shard's end."""
        for upload in self._running:
            upload.cancel()
        wait(self._running)


def done(uploads: Sequence[Future[str]]) -> None:
    """Wait for uploads; raises ServiceUnavailable when one failed. The others go on."""
    for upload in uploads:
        upload.result()
