"""The pictures that questions are asked with: read from where a caller may point to, and stored by content.

An address is one of these:

- `data:image/…;base64,…`, the picture itself;
- `file-…`, a file that was uploaded through the HTTP API, if the caller may see it;
- `s3://bucket/key`, below a prefix that is bound to the archive;
- `https://…`, only of hosts that RAGLLAVA_API_PICTURE_HOSTS names (remote_pictures.py);
- a path within a folder, only where the caller's own machine reads it.

The bytes are not looked at here: a worker decodes them, in a child process. They are announced and put before the
question is inserted, as those of an archive (stores/archives/blobs.py); if no question comes, the tick removes them
(stores/access/asked_pictures.py).
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import copy_context
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import unquote

from sqlalchemy import Connection, Engine

from ragllava.errors import ObjectMissing, SettingsError, UsageError
from ragllava.stages.answer.question_files import StorePicture
from ragllava.stages.answer.remote_pictures import RemotePictures, may_fetch
from ragllava.stores.access import asked_pictures
from ragllava.stores.access.uploads import Upload
from ragllava.stores.archives import archive, blobs
from ragllava.stores.archives.blobs import NewBlob
from ragllava.stores.buckets import bindings
from ragllava.stores.database import in_transaction
from ragllava.stores.objects import ObjectStore, content_key

MAX_PICTURE_BYTES = 20 * 2**20
MAX_REMOTE = 100  # pictures of other hosts in one question file
MAX_REMOTE_S = 60.0  # in which all of them are waited for

_FETCHED_AT_ONCE = 4
_HELD_AHEAD = 2 * _FETCHED_AT_ONCE  # pictures in memory
_THREADS = 8
# Pictures of a file that are noted in one transaction: many, because each transaction adds up all bytes of the caller;
# but few bytes, because two such parts are in memory: one is read, and the one before it is put.
_NOTED_AT_ONCE = 1_000
_NOTED_BYTES = 16 * 2**20
_LET_GO_AT_ONCE = 1_000
_MEDIA_TYPE = "application/octet-stream"  # until a worker has decoded it
_FILE_ID = re.compile(r"file-[0-9a-f]{24}")

FindUpload = Callable[[str], Upload]
# Called in the transaction that notes what a caller stores; raises QuotaExceeded when that is too much.
CountBytes = Callable[[Connection], None]


@dataclass
class AskedPictures:
    """Where the questions to one archive may have their pictures from.

    `upload` finds a file by its id and raises NotFound; None: files have no ids here. `folder` is that of the question
    file, within which paths lead to pictures; None: no path does. `count_bytes` is called when the caller has
    content that it had not stored before; None: it has no quota.
    """

    engine: Engine
    objects: ObjectStore
    archive: str
    remote: RemotePictures
    upload: FindUpload | None = None
    folder: Path | None = None
    count_bytes: CountBytes | None = None
    _stored: set[str] = field(default_factory=set, init=False)
    _fetched: int = field(default=0, init=False)
    _fetching_s: float = field(default=0.0, init=False)
    _fetchers: ThreadPoolExecutor | None = field(default=None, init=False)
    _ahead: dict[str, Future[bytes]] = field(default_factory=dict, init=False)

    def store(self, address: str) -> str:
        """The sha256 (hex) of the picture at an address; its bytes are in the object store afterwards.

        Raises UsageError for what is not there, too large, or not to be read from here, QuotaExceeded; FetchNeeded
        inside `fetching_nothing`.
        """
        return self.store_bytes(self._read(address))

    def check(self, address: str) -> str:
        """As `store`, but stores nothing."""
        return _checked(self._read(address))

    def store_bytes(self, data: bytes) -> str:
        """As `store`, for the bytes of a picture."""
        sha256 = _checked(data)
        if sha256 not in self._stored:
            put_pictures(self.engine, self.objects, {sha256: data}, self.count_bytes)
            self._stored.add(sha256)
        return sha256

    @contextmanager
    def storing(self) -> Iterator[StorePicture]:
        """`store` for the pictures of a file: threads put them meanwhile, and all are there when the block has ended.

        Raises QuotaExceeded, and ServiceUnavailable, at the latest then.
        """
        with ThreadPoolExecutor(_THREADS, thread_name_prefix="asked pictures") as threads:
            running: list[Future[None]] = []
            waiting: dict[str, bytes] = {}
            waiting_bytes = 0

            def put_waiting() -> None:
                nonlocal waiting_bytes
                missing = _note(self.engine, waiting, self.count_bytes)
                _wait_for(running)
                for sha256 in missing:
                    running.append(threads.submit(copy_context().run, _put, self.objects, sha256, waiting[sha256]))
                waiting.clear()
                waiting_bytes = 0

            def store(address: str) -> str:
                nonlocal waiting_bytes
                data = self._read(address)
                sha256 = _checked(data)
                if sha256 not in self._stored:
                    self._stored.add(sha256)
                    waiting[sha256] = data
                    waiting_bytes += len(data)
                    if len(waiting) >= _NOTED_AT_ONCE or waiting_bytes >= _NOTED_BYTES:
                        put_waiting()
                return sha256

            self._fetchers = ThreadPoolExecutor(_FETCHED_AT_ONCE, thread_name_prefix="remote pictures")
            try:
                yield store
            finally:  # what is left belongs to lines that came to nothing
                self._fetchers.shutdown(wait=False, cancel_futures=True)
                self._fetchers = None
            put_waiting()
            _wait_for(running)

    def fetch_ahead(self, address: str) -> None:
        """Begin to fetch a picture of another host that will soon be stored, inside `storing`; others are passed over.

        What is wrong with it is raised when it is stored.
        """
        is_remote = address.partition(":")[0].lower() in ("http", "https")
        if not is_remote or self._fetchers is None or address in self._ahead or not may_fetch():
            return
        has_room = len(self._ahead) < _HELD_AHEAD  # those of lines that are rejected are never taken
        if has_room and self._fetched + len(self._ahead) < MAX_REMOTE and self._fetching_s <= MAX_REMOTE_S:
            self._ahead[address] = self._fetchers.submit(self.remote.fetch, address, MAX_PICTURE_BYTES)

    def _read(self, address: str) -> bytes:
        scheme = address.partition(":")[0].lower() if ":" in address[:10] else ""
        if scheme == "data":
            return _decoded(address)
        if scheme == "s3":
            return self._read_bound(address)
        if scheme in ("http", "https"):
            return self._fetch(address)
        if self.upload is not None and _FILE_ID.fullmatch(address):
            return self._read_upload(self.upload(address))
        return self._read_file(address)

    def _fetch(self, address: str) -> bytes:
        self._fetched += 1
        if self._fetched > MAX_REMOTE:
            raise UsageError(f"a question file has pictures of other hosts in at most {MAX_REMOTE} lines")
        if self._fetching_s > MAX_REMOTE_S:
            raise UsageError(f"the pictures of other hosts took more than {MAX_REMOTE_S:g} s; send them with the file")
        began = time.monotonic()
        try:
            ahead = self._ahead.pop(address, None)
            return self.remote.fetch(address, MAX_PICTURE_BYTES) if ahead is None else ahead.result()
        finally:
            self._fetching_s += time.monotonic() - began

    def _read_bound(self, address: str) -> bytes:
        bucket, _, key = address[len("s3://") :].partition("/")
        key = unquote(key)
        if bindings.has_dots(key) or not in_transaction(self.engine, _is_bound, self.archive, bucket, key):
            raise UsageError(f"{address[:200]} is below no prefix that is bound to the archive {self.archive}")
        try:
            return self.objects.read_external(bucket, key, MAX_PICTURE_BYTES).data
        except (ObjectMissing, SettingsError):
            raise UsageError(f"{address[:200]} does not exist, or cannot be read") from None

    def _read_upload(self, upload: Upload) -> bytes:
        if upload.size_bytes > MAX_PICTURE_BYTES:
            raise _too_large(upload.size_bytes)
        try:
            with self.objects.open_stream(upload.object_key) as stream:
                return stream.read(MAX_PICTURE_BYTES + 1)
        except ObjectMissing:
            raise UsageError(f"the file {upload.file_id} has expired") from None

    def _read_file(self, address: str) -> bytes:
        if self.folder is None:
            raise UsageError(f"{address[:80]!r} is not the address of a picture: use data:, the id of a file, or s3://")
        folder = self.folder.resolve()
        path = (folder / address).resolve()
        if not path.is_relative_to(folder):
            raise UsageError(f"{address[:200]} is not within the folder of the question file")
        return read_picture_file(path)


def _wait_for(running: list[Future[None]]) -> None:
    """Until all have ended, and forget them. Raises what one of them has raised."""
    while running:
        running.pop().result()


def put_pictures(
    engine: Engine, objects: ObjectStore, pictures: Mapping[str, bytes], count_bytes: CountBytes | None = None
) -> None:
    """Put pictures, by their sha256, into the store, lent to the session's caller. Raises QuotaExceeded, and then has
    put nothing."""
    for sha256 in _note(engine, pictures, count_bytes):
        _put(objects, sha256, pictures[sha256])


def _note(engine: Engine, pictures: Mapping[str, bytes], count_bytes: CountBytes | None) -> set[str]:
    """Note these contents as the caller's, in one transaction; returns those to put. Raises QuotaExceeded."""
    if not pictures:
        return set()
    noted = [NewBlob(sha256, len(data), _MEDIA_TYPE) for sha256, data in pictures.items()]
    return in_transaction(engine, _announce, noted, count_bytes)


def _put(objects: ObjectStore, sha256: str, data: bytes) -> None:
    objects.put(content_key(sha256), data, _MEDIA_TYPE)


def _announce(connection: Connection, new: Sequence[NewBlob], count_bytes: CountBytes | None) -> set[str]:
    """Returns the hashes to put. What the caller has stored already passes, even if its quota is used up."""
    hashes = [blob.sha256 for blob in new]
    has_more = count_bytes is not None and not asked_pictures.are_counted(connection, hashes)
    missing = blobs.announce_blobs(connection, new)
    asked_pictures.lend(connection, hashes)
    if count_bytes is not None and has_more:
        count_bytes(connection)
    return missing


def let_pictures_go(engine: Engine, objects: ObjectStore) -> int:
    """End the loans of pictures whose time is over, and remove what nothing else refers to; returns how many ended."""
    ended, unreferenced = in_transaction(engine, _end_loans)
    for sha256 in unreferenced:
        in_transaction(engine, blobs.delete_blob, sha256, objects.delete_content)
    return ended


def _end_loans(connection: Connection) -> tuple[int, list[str]]:
    ended = asked_pictures.end_loans(connection, _LET_GO_AT_ONCE)
    return len(ended), blobs.mark_deleting(connection, asked_pictures.LENT_S, among=ended) if ended else []


def _checked(data: bytes) -> str:
    """The sha256 (hex) of a picture. Raises UsageError for none, and for too many bytes."""
    if not data:
        raise UsageError("the picture is empty")
    if len(data) > MAX_PICTURE_BYTES:
        raise _too_large(len(data))
    return hashlib.sha256(data).hexdigest()


def read_picture_file(path: Path) -> bytes:
    """The bytes of a file. Raises UsageError for one that cannot be read, or is too large."""
    try:
        if not path.is_file():
            raise UsageError(f"there is no file {path}")
        if path.stat().st_size > MAX_PICTURE_BYTES:
            raise _too_large(path.stat().st_size)
        return path.read_bytes()
    except (OSError, ValueError) as error:
        raise UsageError(f"{path} cannot be read: {error}") from None


def _decoded(address: str) -> bytes:
    """The bytes of a data: address. Raises UsageError."""
    head, comma, data = address.partition(",")
    if not comma or not head.lower().endswith(";base64"):
        raise UsageError("a data: address must be data:image/…;base64,…")
    if len(data) > 2 * MAX_PICTURE_BYTES:
        raise UsageError(f"a picture may have at most {MAX_PICTURE_BYTES:,} bytes")
    try:
        return base64.b64decode(data, validate=True)
    except (binascii.Error, ValueError):
        raise UsageError("the picture is not valid base64") from None


def _too_large(size_bytes: int) -> UsageError:
    return UsageError(f"a picture may have at most {MAX_PICTURE_BYTES:,} bytes, and this one has {size_bytes:,}")


def _is_bound(connection: Connection, archive_name: str, bucket: str, key: str) -> bool:
    """Whether an object is below a prefix from which the archive has its pictures."""
    archive_id = archive.get_archive(connection, archive_name).archive_id
    return bindings.covers(connection, bucket, key, pictures_of=archive_id)
