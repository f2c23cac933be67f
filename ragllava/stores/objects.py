"""Bytes in an S3 bucket: pictures under their hash, everything else under a key with a name (docs/reliability.md D13).

The only importer of the minio SDK, and it needs no more than plain S3. Content is its own address: what lies
under `sha256/…` is verified against that address whenever it is read. An ETag is never taken for a hash; after
an upload in parts it is none.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import threading
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import certifi
import urllib3
from minio import Minio
from minio.deleteobjects import DeleteObject
from minio.error import MinioException, S3Error, ServerError
from urllib3.exceptions import HTTPError

from ragllava.errors import ObjectCorrupt, ObjectMissing, RagllavaError, ServiceUnavailable, SettingsError, UsageError
from ragllava.settings import Settings

MAX_EXTERNAL_BYTES = 512 * 2**20  # what is read at once from a bucket of others, unless the caller says less

_PART_BYTES = 16 * 2**20  # of a stream whose length nobody knows
_METADATA = "x-amz-meta-"
_MISSING = ("NoSuchKey", "NoSuchBucket", "ResourceNotFound")
_REFUSED = ("AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch")
_BUCKET_IS_THERE = ("BucketAlreadyOwnedByYou", "BucketAlreadyExists")


@dataclass(frozen=True, slots=True)
class ObjectInfo:
    """One object of a listing."""

    key: str
    size_bytes: int
    modified_at: datetime


@dataclass(frozen=True, slots=True)
class ExternalContent:
    """What was read of an object in a bucket of others, and the ETag that came with just these bytes."""

    data: bytes
    etag: str


@dataclass(frozen=True, slots=True)
class ExternalObject:
    """An object in a bucket of others. `metadata` are the user's own, names in lower case; a listing has none."""

    key: str
    size_bytes: int
    etag: str  # tells other bytes, and is no hash of them
    metadata: Mapping[str, str]


class ByteStream(Protocol):
    """What `open_stream` gives: an object that is read piece by piece."""

    def read(self, amt: int | None = None) -> bytes:
        """The next `amt` bytes or fewer, b"" at the end; everything that is left without `amt`."""


def content_key(sha256: str) -> str:
    """The address of content by its hash (64 hex digits), spread over folders that file systems like."""
    return f"sha256/{sha256[:2]}/{sha256[2:4]}/{sha256}"


class ObjectStore:
    """Our bucket. One for each process; its methods may be called from any number of threads.

    Nothing is sent before the first call. Every method raises ServiceUnavailable when the store does not answer
    within its timeouts, three retries included, and SettingsError when it refuses our key.
    """

    def __init__(self, settings: Settings) -> None:
        """Raises SettingsError when the endpoint or a key is not set."""
        if settings.s3_endpoint is None or settings.s3_access_key is None or settings.s3_secret_key is None:
            raise SettingsError(
                "no object store: start the embedded services with `ragllava up`, or set RAGLLAVA_S3_ENDPOINT, "
                "RAGLLAVA_S3_ACCESS_KEY and RAGLLAVA_S3_SECRET_KEY"
            )
        self.bucket = settings.s3_bucket
        self._endpoint = settings.s3_endpoint
        try:
            self._client = Minio(
                settings.s3_endpoint,
                access_key=settings.s3_access_key,
                secret_key=settings.s3_secret_key.get_secret_value(),
                secure=settings.s3_secure,
                region=settings.s3_region,
                http_client=_connection_pool(),
            )
        except ValueError as error:
            raise SettingsError(
                f"RAGLLAVA_S3_ENDPOINT={settings.s3_endpoint}: {error}; "
                "give host:port, and RAGLLAVA_S3_SECURE=true for https"
            ) from None
        self._bucket_is_there = False
        self._bucket_lock = threading.Lock()

    def ensure_bucket(self) -> None:
        """Create the bucket unless it exists; asked of the server once. Any number may try at the same time."""
        with self._bucket_lock:
            if self._bucket_is_there:
                return
            with self._errors("the bucket"):
                if not self._client.bucket_exists(self.bucket):
                    self._make_bucket()
            self._bucket_is_there = True

    def _make_bucket(self) -> None:
        try:
            self._client.make_bucket(self.bucket)
        except S3Error as error:
            if error.code not in _BUCKET_IS_THERE:
                raise

    def put_content(self, data: bytes, media_type: str) -> str:
        """Store bytes under their hash and return it (hex). Storing the same bytes again changes nothing."""
        sha256 = hashlib.sha256(data).hexdigest()
        self.put(content_key(sha256), data, media_type)
        return sha256

    def get_content(self, sha256: str) -> bytes:
        """The bytes with this hash, verified. Raises ObjectMissing or ObjectCorrupt."""
        data = self.get(content_key(sha256))
        found = hashlib.sha256(data).hexdigest()
        if found != sha256:
            raise ObjectCorrupt(
                f"the object {content_key(sha256)} has the hash {found[:12]}… instead of its own: "
                "it was damaged in the store; delete it and ingest the picture again"
            )
        return data

    def delete_content(self, sha256: str) -> None:
        """Remove the bytes with this hash, if they are there."""
        self.delete(content_key(sha256))

    def put(self, key: str, data: bytes, media_type: str = "application/octet-stream") -> None:
        """Store bytes under `key`; what was there is replaced at once or not at all."""
        self.put_stream(key, BytesIO(data), len(data), media_type)

    def put_stream(
        self, key: str, stream: BinaryIO, size_bytes: int | None, media_type: str = "application/octet-stream"
    ) -> None:
        """Store `size_bytes` bytes of a stream, or all to its end for None; large ones go up in parts.

        When the stream ends early or its `read` raises, that error comes out as it is and nothing was stored.
        """
        self.ensure_bucket()
        self._put(self.bucket, key, stream, size_bytes, media_type)

    def _put(self, bucket: str, key: str, stream: BinaryIO, size_bytes: int | None, media_type: str) -> None:
        length, part_size = (-1, _PART_BYTES) if size_bytes is None else (size_bytes, 0)
        with self._errors(key):
            self._client.put_object(bucket, key, stream, length, content_type=media_type, part_size=part_size)

    def get(self, key: str) -> bytes:
        """All bytes under `key`. Raises ObjectMissing."""
        with self.open_stream(key) as stream:
            return stream.read()

    def open_stream(self, key: str) -> AbstractContextManager[ByteStream]:
        """Read an object piece by piece. Entering it may raise ObjectMissing, a read ServiceUnavailable."""
        return self._stream(self.bucket, key)

    def fetch(self, key: str, file: Path) -> None:
        """Write the bytes under `key` into a file. Raises ObjectMissing, ServiceUnavailable."""
        with self.open_stream(key) as stream, file.open("wb") as copy:
            shutil.copyfileobj(stream, copy)

    def get_external(self, bucket: str, key: str, max_bytes: int = MAX_EXTERNAL_BYTES) -> bytes:
        """The bytes of an object in any bucket that our key may read (`s3://bucket/key`); see `read_external`."""
        return self.read_external(bucket, key, max_bytes).data

    def read_external(self, bucket: str, key: str, max_bytes: int = MAX_EXTERNAL_BYTES) -> ExternalContent:
        """An object in any bucket that our key may read.

        Raises ObjectMissing, and UsageError for more than `max_bytes` (no more than that is ever read).
        """
        with self._stream(bucket, key) as stream:
            data = _read_at_most(stream, max_bytes + 1)
        if len(data) > max_bytes:
            raise UsageError(f"s3://{bucket}/{key} is larger than the {max_bytes:,} bytes that are allowed")
        return ExternalContent(data, stream.etag)

    def put_external(self, address: str, data: bytes, media_type: str = "application/octet-stream") -> None:
        """Store bytes at `s3://bucket/key`; ObjectMissing when that bucket does not exist."""
        self.put_external_stream(address, BytesIO(data), len(data), media_type)

    def put_external_stream(
        self, address: str, stream: BinaryIO, size_bytes: int, media_type: str = "application/octet-stream"
    ) -> None:
        """As `put_external`, for a stream of `size_bytes` bytes."""
        bucket, _, key = address.removeprefix("s3://").partition("/")
        if not address.startswith("s3://") or not bucket or not key:
            raise UsageError(f"{address!r} is no address of the form s3://bucket/key")
        with self._errors(key):
            # Asked first, because SeaweedFS makes a bucket that is not there.
            if not self._client.bucket_exists(bucket):
                raise ObjectMissing(f"object store {self._endpoint}: there is no bucket {bucket}")
        self._put(bucket, key, stream, size_bytes, media_type)

    def bucket_exists(self, bucket: str) -> bool:
        """Whether there is such a bucket; UsageError for what cannot be the name of one."""
        try:
            with self._errors(bucket):
                return bool(self._client.bucket_exists(bucket))
        except ValueError as error:
            raise UsageError(f"{bucket!r} cannot be the name of a bucket: {error}") from None

    def look_external(self, bucket: str, key: str) -> ExternalObject:
        """An object of any bucket without its bytes. Raises ObjectMissing."""
        with self._errors(key):
            found = self._client.stat_object(bucket, key)
        own = {
            name.lower().removeprefix(_METADATA): value
            for name, value in found.metadata.items()
            if name.lower().startswith(_METADATA)
        }
        return ExternalObject(key, found.size, found.etag.strip('"'), own)

    def list_external(self, bucket: str, prefix: str) -> Iterator[ExternalObject]:
        """Every object of any bucket whose key starts with `prefix`, by key. Raises ObjectMissing for no bucket."""
        with self._errors(prefix):
            for found in self._client.list_objects(bucket, prefix, recursive=True):
                if not found.is_dir:
                    yield ExternalObject(found.object_name, found.size, (found.etag or "").strip('"'), {})

    def exists(self, key: str) -> bool:
        """Whether there is an object under `key`."""
        try:
            with self._errors(key):
                self._client.stat_object(self.bucket, key)
        except ObjectMissing:
            return False
        return True

    def list_objects(self, prefix: str) -> Iterator[ObjectInfo]:
        """Every object whose key starts with `prefix`, by key; read a page at a time."""
        try:
            with self._errors(prefix):
                for found in self._client.list_objects(self.bucket, prefix, recursive=True):
                    if not found.is_dir:
                        yield ObjectInfo(found.object_name, found.size, found.last_modified)
        except ObjectMissing:  # not even the bucket exists
            return

    def delete(self, key: str) -> None:
        """Remove the object under `key`, if it is there."""
        try:
            with self._errors(key):
                self._client.remove_object(self.bucket, key)
        except ObjectMissing:
            return

    def remove_prefix(self, prefix: str) -> int:
        """Remove every object whose key starts with `prefix`; returns how many. An empty prefix is refused."""
        if not prefix:
            raise UsageError("an empty prefix would remove the whole bucket; name the folder to remove")
        keys = [found.key for found in self.list_objects(prefix)]
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
        """An address from which anybody can read the object for `expires_s` seconds."""
        with self._errors(key):
            url: str = self._client.presigned_get_object(self.bucket, key, expires=timedelta(seconds=expires_s))
        return url

    @contextmanager
    def _stream(self, bucket: str, key: str) -> Iterator[_Response]:
        with self._errors(key):
            response = self._client.get_object(bucket, key)
        try:
            yield _Response(self, key, response)
        finally:
            response.close()
            response.release_conn()

    @contextmanager
    def _errors(self, key: str) -> Iterator[None]:
        """Turn what the SDK and its HTTP client raise into errors of ours."""
        try:
            yield
        except (MinioException, HTTPError) as error:
            raise self._translated(error, key) from error

    def _translated(self, error: Exception, key: str) -> RagllavaError:
        where = f"object store {self._endpoint}"
        if isinstance(error, S3Error):
            if error.code in _MISSING:
                return ObjectMissing(f"{where}: there is no {error.bucket_name or self.bucket}/{key}")
            if error.code in _REFUSED:
                return SettingsError(
                    f"{where}: {error.code} for {error.bucket_name or self.bucket}/{key}; "
                    "check RAGLLAVA_S3_ACCESS_KEY, RAGLLAVA_S3_SECRET_KEY and the rights of that key"
                )
            return ServiceUnavailable(f"{where}: {error.code} ({error.message}) for {key}")
        if isinstance(error, ServerError):
            return ServiceUnavailable(f"{where}: HTTP status {error.status_code} for {key}")
        return ServiceUnavailable(f"{where} did not answer for {key} ({type(error).__name__})")


class _Response:
    """The body of an answer, with our errors: the connection may break while it is read."""

    def __init__(self, store: ObjectStore, key: str, response: Any) -> None:
        self._store = store
        self._key = key
        self._response = response
        self.etag: str = response.headers.get("ETag", "").strip('"')

    def read(self, amt: int | None = None) -> bytes:
        """As in ByteStream."""
        with self._store._errors(self._key):
            data: bytes = self._response.read(amt)
        return data


def _connection_pool() -> urllib3.PoolManager:
    # The SDK's own pool waits five minutes, six times over: half an hour for a store that is gone.
    return urllib3.PoolManager(
        timeout=urllib3.Timeout(connect=3, read=30),
        maxsize=16,
        cert_reqs="CERT_REQUIRED",
        ca_certs=os.environ.get("SSL_CERT_FILE") or certifi.where(),
        retries=urllib3.Retry(total=3, backoff_factor=0.2, status_forcelist=(500, 502, 503, 504)),
    )


def _read_at_most(stream: ByteStream, limit: int) -> bytes:
    pieces: list[bytes] = []
    while limit > 0 and (piece := stream.read(min(limit, 2**20))):
        pieces.append(piece)
        limit -= len(piece)
    return b"".join(pieces)
