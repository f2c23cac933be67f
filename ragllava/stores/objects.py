"""Bytes in an S3 bucket: pictures under their hash, everything else under a named key (docs/reliability.md D13).

Only this module and `s3_client.py` import the minio SDK, and they use plain S3 only. Content is addressed by its hash:
an object under `sha256/…` is verified against its address whenever it is read. An ETag is never used as a hash: after a
multipart upload it is not one.
"""

from __future__ import annotations

import hashlib
import re
import shutil
import threading
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO

from minio.deleteobjects import DeleteObject
from minio.error import MinioException, S3Error, ServerError
from minio.helpers import check_bucket_name, check_object_name
from urllib3.exceptions import HTTPError

from ragllava.errors import (
    ObjectCorrupt,
    ObjectMissing,
    ObjectRefused,
    ObjectTooLarge,
    RagllavaError,
    ServiceUnavailable,
    SettingsError,
    UsageError,
)
from ragllava.settings import Settings
from ragllava.stores import s3_client
from ragllava.whole_files import file_sha256

MAX_KEY_BYTES = 1_024  # the limit of S3, in UTF-8
MAX_EXTERNAL_BYTES = 512 * 2**20  # read at once from another bucket, unless the caller sets a lower limit
THUMBNAILS = "thumbnails/"  # their folder; each has the hash of its picture

_PIECE_BYTES = 2**20
_CONTENT_KEY = re.compile(r"sha256/[0-9a-f]{2}/[0-9a-f]{2}/([0-9a-f]{64})")
_THUMBNAIL_KEY = re.compile(r"thumbnails/[0-9a-f]{2}/[0-9a-f]{2}/([0-9a-f]{64})")
_METADATA = "x-amz-meta-"
_MISSING = ("NoSuchKey", "NoSuchBucket", "ResourceNotFound")
_DENIED = ("AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch")
# Of the answers 400 to 499, those after which the same request may succeed.
_TRANSIENT_STATUS = (408, 409, 425, 429)
_TRANSIENT = (
    "RequestTimeout",
    "RequestTimeTooSkewed",
    "SlowDown",
    "OperationAborted",
    "ExpiredToken",
    "IncompleteBody",
)
_BUCKET_EXISTS = ("BucketAlreadyOwnedByYou", "BucketAlreadyExists")


@dataclass(frozen=True, slots=True)
class ObjectInfo:
    """An object without its bytes. `metadata` holds the user's own entries, names in lower case; a listing has none."""

    key: str
    size_bytes: int
    etag: str  # differs when the bytes differ, but is not a hash of them
    modified_at: datetime
    metadata: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ExternalContent:
    """The bytes of an object in another bucket, and the ETag of exactly these bytes."""

    data: bytes
    etag: str


def content_key(sha256: str) -> str:
    """The key of content by its hash (64 hex digits), spread over folders to keep each of them small."""
    return f"sha256/{sha256[:2]}/{sha256[2:4]}/{sha256}"


def content_hash(key: str) -> str | None:
    """The hash in the key of content; None for other keys."""
    match = _CONTENT_KEY.fullmatch(key)
    return match[1] if match else None


def thumbnail_key(sha256: str) -> str:
    """The key of the thumbnail of the picture with this hash."""
    return f"{THUMBNAILS}{sha256[:2]}/{sha256[2:4]}/{sha256}"


def thumbnail_hash(key: str) -> str | None:
    """The hash of the picture of which the object `key` is the thumbnail; None for other keys."""
    match = _THUMBNAIL_KEY.fullmatch(key)
    return match[1] if match else None


class ObjectStore:
    """RagLLaVA's own bucket, and access to other buckets. One for each process; thread-safe.

    Nothing is sent before the first call. Every method raises ServiceUnavailable when the store does not answer
    within its timeouts and three retries, SettingsError when it denies the access key, and ObjectRefused for a request
    that cannot succeed: a name that S3 does not allow, or another permanent error of the store.
    """

    def __init__(self, settings: Settings) -> None:
        """Raises SettingsError when the endpoint or a key is not set."""
        self._client = s3_client.make_client(settings)
        self.bucket = settings.s3_bucket
        self._endpoint = settings.s3_endpoint
        self._has_bucket = False
        self._bucket_lock = threading.Lock()

    def ensure_bucket(self) -> None:
        """Create the bucket unless it exists; the server is asked once. Safe to call concurrently."""
        with self._bucket_lock:
            if self._has_bucket:
                return
            with self._errors("the bucket"):
                try:
                    if not self._client.bucket_exists(self.bucket):
                        self._client.make_bucket(self.bucket)
                except S3Error as error:
                    if error.code not in _BUCKET_EXISTS:
                        raise
            self._has_bucket = True

    def put_content(self, data: bytes, media_type: str) -> str:
        """Store bytes under their hash and return it (hex). Storing the same bytes again changes nothing."""
        sha256 = hashlib.sha256(data).hexdigest()
        self.put(content_key(sha256), data, media_type)
        return sha256

    def get_content(self, sha256: str) -> bytes:
        """The bytes with this hash, verified. Raises ObjectMissing or ObjectCorrupt."""
        data = self.get(content_key(sha256))
        actual = hashlib.sha256(data).hexdigest()
        if actual != sha256:
            raise _damaged(sha256, actual)
        return data

    def fetch_content(self, sha256: str, file: Path) -> None:
        """Write the bytes with this hash into a file, verified. Raises ObjectMissing or ObjectCorrupt."""
        self.fetch(content_key(sha256), file)
        actual = file_sha256(file)
        if actual != sha256:
            raise _damaged(sha256, actual)

    def delete_content(self, sha256: str) -> None:
        """Remove the bytes with this hash, if they exist, and before them their thumbnail."""
        self.delete(thumbnail_key(sha256))
        self.delete(content_key(sha256))

    def put(self, key: str, data: bytes, media_type: str = "application/octet-stream") -> None:
        """Store bytes under `key`; an existing object is replaced atomically."""
        self.put_stream(key, BytesIO(data), len(data), media_type)

    def put_stream(
        self, key: str, stream: BinaryIO, size_bytes: int, media_type: str = "application/octet-stream"
    ) -> None:
        """Store `size_bytes` bytes of a stream; large streams are uploaded in parts.

        When the stream ends early or its `read` raises, that error is passed on and nothing is stored.
        """
        self.ensure_bucket()
        self._put(self.bucket, key, stream, size_bytes, media_type)

    def _put(self, bucket: str, key: str, stream: BinaryIO, size_bytes: int, media_type: str) -> None:
        _check_names(bucket, key)
        with self._errors(key):
            self._client.put_object(bucket, key, stream, size_bytes, content_type=media_type)

    def get(self, key: str) -> bytes:
        """All bytes under `key`. Raises ObjectMissing."""
        with self.open_stream(key) as stream:
            return stream.read()

    def open_stream(self, key: str) -> AbstractContextManager[ObjectStream]:
        """Read an object piece by piece. Entering it may raise ObjectMissing, a read ServiceUnavailable."""
        return self._stream(self.bucket, key)

    def open_external(self, bucket: str, key: str) -> AbstractContextManager[ObjectStream]:
        """As `open_stream`, of any bucket."""
        return self._stream(bucket, key)

    def fetch(self, key: str, file: Path) -> None:
        """Write the bytes under `key` into a file. Raises ObjectMissing, ServiceUnavailable."""
        with self.open_stream(key) as stream, file.open("wb") as copy:
            shutil.copyfileobj(stream, copy)

    def read_external(self, bucket: str, key: str, max_bytes: int = MAX_EXTERNAL_BYTES) -> ExternalContent:
        """An object in any bucket that the access key may read (`s3://bucket/key`).

        Raises ObjectMissing, and ObjectTooLarge for an object of more than `max_bytes` (never read in full).
        """
        with self._stream(bucket, key) as stream:
            data = stream.read(max_bytes + 1)
        if len(data) > max_bytes:
            raise _too_large(bucket, key, max_bytes)
        return ExternalContent(data, stream.etag)

    def fetch_external(self, bucket: str, key: str, file: Path, max_bytes: int = MAX_EXTERNAL_BYTES) -> None:
        """As `read_external`, piece by piece into a file."""
        with self._stream(bucket, key) as stream, file.open("wb") as copy:
            while piece := stream.read(_PIECE_BYTES):
                copy.write(piece)
                if copy.tell() > max_bytes:
                    raise _too_large(bucket, key, max_bytes)

    def put_external(self, address: str, data: bytes, media_type: str = "application/octet-stream") -> None:
        """Store bytes at `s3://bucket/key`; ObjectMissing when that bucket does not exist."""
        self.put_external_stream(address, BytesIO(data), len(data), media_type)

    def put_external_stream(
        self, address: str, stream: BinaryIO, size_bytes: int, media_type: str = "application/octet-stream"
    ) -> None:
        """As `put_external`, for a stream of `size_bytes` bytes."""
        bucket, _, key = address.removeprefix("s3://").partition("/")
        if not address.startswith("s3://") or not bucket or not key:
            raise UsageError(f"{address!r} is not an address of the form s3://bucket/key")
        _check_names(bucket, key)
        # Checked first, because SeaweedFS creates a missing bucket.
        if not self.bucket_exists(bucket):
            raise ObjectMissing(f"object store {self._endpoint}: there is no bucket {bucket}")
        self._put(bucket, key, stream, size_bytes, media_type)

    def put_into(self, bucket: str, key: str, stream: BinaryIO, size_bytes: int) -> None:
        """As `put_external_stream`, into a bucket that exists."""
        self._put(bucket, key, stream, size_bytes, "application/octet-stream")

    def bucket_exists(self, bucket: str) -> bool:
        """Whether the bucket exists."""
        _check_names(bucket)
        with self._errors(bucket):
            return bool(self._client.bucket_exists(bucket))

    def make_bucket(self, bucket: str) -> bool:
        """Create a bucket; False if it exists already. Raises UsageError for an invalid bucket name."""
        if self.bucket_exists(bucket):
            return False
        with self._errors(bucket):
            try:
                self._client.make_bucket(bucket)
            except S3Error as error:
                if error.code not in _BUCKET_EXISTS:
                    raise
                return False
        return True

    def stat_external(self, bucket: str, key: str) -> ObjectInfo:
        """An object of any bucket without its bytes. Raises ObjectMissing."""
        _check_names(bucket, key)
        with self._errors(key):
            stat = self._client.stat_object(bucket, key)
        metadata = {
            name.lower().removeprefix(_METADATA): value
            for name, value in stat.metadata.items()
            if name.lower().startswith(_METADATA)
        }
        return ObjectInfo(key, stat.size, stat.etag.strip('"'), stat.last_modified, metadata)

    def list_external(self, bucket: str, prefix: str) -> Iterator[ObjectInfo]:
        """Every object of any bucket whose key starts with `prefix`, by key; read a page at a time.

        Raises ObjectMissing for a missing bucket.
        """
        _check_names(bucket)
        with self._errors(prefix):
            for entry in self._client.list_objects(bucket, prefix, recursive=True):
                if not entry.is_dir:
                    etag = (entry.etag or "").strip('"')
                    yield ObjectInfo(entry.object_name, entry.size, etag, entry.last_modified)

    def exists(self, key: str) -> bool:
        """Whether there is an object under `key`."""
        with suppress(ObjectMissing), self._errors(key):
            self._client.stat_object(self.bucket, key)
            return True
        return False

    def list_objects(self, prefix: str) -> Iterator[ObjectInfo]:
        """As `list_external`, of our own bucket; nothing while the bucket does not exist."""
        with suppress(ObjectMissing):
            yield from self.list_external(self.bucket, prefix)

    def delete(self, key: str) -> None:
        """Remove the object under `key`, if it exists."""
        self.delete_external(self.bucket, key)

    def delete_external(self, bucket: str, key: str) -> None:
        """As `delete`, in any bucket."""
        with suppress(ObjectMissing), self._errors(key):
            self._client.remove_object(bucket, key)

    def remove_prefix(self, prefix: str) -> int:
        """Remove every object whose key starts with `prefix`; returns how many. Raises UsageError for no prefix."""
        if not prefix:
            raise UsageError("an empty prefix would remove the whole bucket; name the folder to remove")
        keys = [info.key for info in self.list_objects(prefix)]
        if not keys:
            return 0
        with self._errors(prefix):
            failed = list(self._client.remove_objects(self.bucket, [DeleteObject(key) for key in keys]))
        if failed:
            raise ServiceUnavailable(
                f"object store {self._endpoint}: {len(failed)} of {len(keys)} objects under {prefix} were not "
                f"removed, the first because of {failed[0].code}; try again"
            )
        return len(keys)

    def presigned_url(self, key: str, expires_s: int = 3600) -> str:
        """A URL from which anyone can read the object for `expires_s` seconds."""
        with self._errors(key):
            url: str = self._client.presigned_get_object(self.bucket, key, expires=timedelta(seconds=expires_s))
        return url

    @contextmanager
    def _stream(self, bucket: str, key: str) -> Iterator[ObjectStream]:
        _check_names(bucket, key)
        with self._errors(key):
            response = self._client.get_object(bucket, key)
        try:
            yield ObjectStream(self, key, response)
        finally:
            response.close()
            response.release_conn()

    @contextmanager
    def _errors(self, key: str) -> Iterator[None]:
        """Translate the errors of the SDK and of its HTTP client."""
        try:
            yield
        except (MinioException, HTTPError) as error:
            raise self._translated(error, key) from error

    def _translated(self, error: Exception, key: str) -> RagllavaError:
        where = f"object store {self._endpoint}"
        if isinstance(error, S3Error):
            if error.code in _MISSING:
                return ObjectMissing(f"{where}: there is no {error.bucket_name or self.bucket}/{key}")
            if error.code in _DENIED:
                return SettingsError(
                    f"{where}: {error.code} for {error.bucket_name or self.bucket}/{key}; "
                    "check RAGLLAVA_S3_ACCESS_KEY, RAGLLAVA_S3_SECRET_KEY and the rights of that key"
                )
            message = f"{where}: {error.code} ({error.message}) for {_short(key)}"
            return ObjectRefused(message) if _is_permanent(error) else ServiceUnavailable(message)
        if isinstance(error, ServerError):
            return ServiceUnavailable(f"{where}: HTTP status {error.status_code} for {_short(key)}")
        return ServiceUnavailable(f"{where} did not answer for {_short(key)} ({type(error).__name__})")


class ObjectStream:
    """An object that is read piece by piece, and its ETag. Every read may raise ServiceUnavailable."""

    def __init__(self, store: ObjectStore, key: str, response: Any) -> None:
        self._store = store
        self._key = key
        self._response = response
        self.etag: str = response.headers.get("ETag", "").strip('"')

    def read(self, amt: int | None = None) -> bytes:
        """The next `amt` bytes or fewer, b"" at the end; all remaining bytes without `amt`."""
        with self._store._errors(self._key):
            data: bytes = self._response.read(amt)
        return data


def _check_names(bucket: str, key: str | None = None) -> None:
    """Raises ObjectRefused for names that no request can have."""
    try:
        check_bucket_name(bucket, s3_check=True)
    except ValueError as error:
        raise ObjectRefused(f"{bucket!r} cannot be the name of a bucket: {error}") from None
    if key is None:
        return
    try:
        check_object_name(key)
        size = len(key.encode())
    except ValueError as error:  # also UnicodeEncodeError
        reason = str(error) or "it is empty"
        raise ObjectRefused(f"{_short(key)!r} cannot be the key of an object: {reason}") from None
    if size > MAX_KEY_BYTES:
        raise ObjectRefused(
            f"{_short(key)!r} cannot be the key of an object: it has {size:,} bytes, and S3 allows {MAX_KEY_BYTES:,}"
        )


def _is_permanent(error: S3Error) -> bool:
    """Whether the same request fails again; an answer without a status may be anything."""
    status = getattr(error.response, "status", None)
    return (
        isinstance(status, int)
        and 400 <= status < 500
        and status not in _TRANSIENT_STATUS
        and error.code not in _TRANSIENT
    )


def _damaged(sha256: str, actual: str) -> ObjectCorrupt:
    return ObjectCorrupt(
        f"the object {content_key(sha256)} has the hash {actual[:12]}… instead of its own: "
        "it was damaged in the store; delete it and ingest the picture again"
    )


def _too_large(bucket: str, key: str, max_bytes: int) -> ObjectTooLarge:
    return ObjectTooLarge(f"s3://{bucket}/{key} is larger than the {max_bytes:,} bytes that are allowed")


def _short(key: str) -> str:
    """A key for a message."""
    return key if len(key) <= 200 else f"{key[:200]}…"
