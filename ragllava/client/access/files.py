"""Files of the HTTP API: stored as streams, listed, read, deleted."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import BinaryIO

from sqlalchemy import Connection

from ragllava.client.access.access import Access
from ragllava.client.connections import Namespace, forwarded
from ragllava.errors import ObjectMissing, QuotaExceeded, TooLarge
from ragllava.stages.answer.asked_pictures import CountBytes
from ragllava.stores.access import uploads
from ragllava.stores.access.keys import Principal
from ragllava.stores.access.uploads import NewUpload, Upload, new_file_id, unknown_file
from ragllava.stores.objects import ObjectStream

MAX_FILE_BYTES = 512 * 2**20
_RETRY_S = 15 * 60.0


class _Measured:
    """A stream that hashes what is read from it and counts its lines."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self._digest = hashlib.sha256()
        self._newlines = 0
        self._last = b"\n"

    def read(self, size: int = -1) -> bytes:
        data = self._stream.read(size)
        self._digest.update(data)
        self._newlines += data.count(b"\n")
        self._last = data[-1:] or self._last
        return data

    @property
    def sha256(self) -> str:
        return self._digest.hexdigest()

    @property
    def lines(self) -> int:
        return self._newlines + (self._last != b"\n")


class Files(Namespace):
    """Files. Each method raises NotFound for a file that is not there, or that the caller may not see."""

    get = forwarded(uploads.get_upload)

    def create(
        self,
        principal: Principal,
        stream: BinaryIO,
        size_bytes: int,
        *,
        filename: str,
        purpose: str,
        expires_s: float | None,
        is_retry: bool = False,
    ) -> Upload:
        """Store a file, of which no more than a few MiB are in memory at a time.

        With `is_retry`, the same file that its owner has sent a moment ago is returned again. Raises TooLarge, and
        QuotaExceeded when its owner may not store so much more; an error of the stream leaves nothing behind but bytes
        that nothing refers to.
        """
        access = Access(self._connections)
        if size_bytes > MAX_FILE_BYTES:
            raise TooLarge(f"a file may have at most {MAX_FILE_BYTES:,} bytes, and this one has {size_bytes:,}")
        access.admit_bytes(principal, size_bytes)
        file_id = new_file_id()
        key, measured = f"uploads/{file_id}", _Measured(stream)
        self._connections.objects.put_stream(key, measured, size_bytes)  # type: ignore[arg-type] # it only reads
        new = NewUpload(
            file_id=file_id,
            owner=principal.owner,
            archives=principal.archives,
            filename=filename,
            purpose=purpose,
            size_bytes=size_bytes,
            lines=measured.lines,
            sha256=measured.sha256,
            object_key=key,
            expires_s=expires_s,
        )
        try:
            upload = self._do(_insert, new, is_retry, access.count_bytes(principal))
        except QuotaExceeded:
            self._connections.objects.delete(key)
            raise
        if upload.file_id != file_id:
            self._connections.objects.delete(key)
        return upload

    @contextmanager
    def reading(self, upload: Upload) -> Iterator[ObjectStream]:
        """The bytes of a file, piece by piece."""
        try:
            with self._connections.objects.open_stream(upload.object_key) as stream:
                yield stream
        except ObjectMissing:
            raise unknown_file(upload.file_id) from None

    def delete(self, file_id: str) -> None:
        """Delete a file: the row first, so that nobody finds a file without bytes."""
        upload = self.get(file_id)
        self._do(uploads.delete_upload, file_id)
        self._connections.objects.delete(upload.object_key)

    def first_line(self, upload: Upload, most_bytes: int) -> bytes:
        """The beginning of a file up to the end of its first line that is not empty."""
        with self.reading(upload) as stream:
            data = stream.read(most_bytes)
        return next((line for line in data.splitlines() if line.strip()), b"")

    list = forwarded(uploads.list_uploads)


def _insert(connection: Connection, new: NewUpload, is_retry: bool, count_bytes: CountBytes) -> Upload:
    repeated = uploads.find_repeated(connection, new, _RETRY_S) if is_retry else None
    if repeated is not None:
        return repeated
    upload = uploads.insert_upload(connection, new)
    count_bytes(connection)
    return upload
