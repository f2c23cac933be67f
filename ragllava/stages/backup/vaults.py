"""Where backups are: a folder, or a prefix of a bucket. Both hold files by name, each whole or absent."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from io import BytesIO
from pathlib import Path
from typing import Protocol

from ragllava.errors import ObjectMissing, SettingsError, UsageError
from ragllava.settings import Settings
from ragllava.stores.objects import ObjectStore
from ragllava.whole_files import written_whole

_READ_BYTES = 2**20


class Readable(Protocol):
    """What is read piece by piece."""

    def read(self, amt: int, /) -> bytes:
        """The next `amt` bytes or fewer, b"" at the end."""
        ...


class Sink(Protocol):
    """What stores files by name."""

    def put(self, name: str, data: bytes, /) -> None:
        """Store a file whole; one of this name is replaced."""
        ...


class Vault(Protocol):
    """Files by name (`a/b/c`). Every method may raise ServiceUnavailable, or UsageError for a vault that cannot be
    used."""

    address: str  # for people

    def put(self, name: str, data: bytes | Path) -> None:
        """Store a file whole; one of this name is replaced."""
        ...

    def open(self, name: str) -> AbstractContextManager[Readable]:
        """Read a file. Entering it raises ObjectMissing when there is none."""
        ...

    def sizes(self, prefix: str) -> Iterator[tuple[str, int]]:
        """Name and size in bytes of each file whose name starts with `prefix`."""
        ...

    def delete(self, name: str) -> None:
        """Remove a file, if there is one."""
        ...

    def tidy(self) -> None:
        """Remove what killed writers left; nobody else may write meanwhile."""
        ...

    def settle(self) -> None:
        """Return when all that was put is safe from a loss of power."""
        ...


def open_vault(address: str, settings: Settings) -> Vault:
    """The vault of backups at `s3://bucket/prefix`, or at a path. Raises UsageError, SettingsError."""
    if not address.startswith("s3://"):
        if "://" in address:
            raise UsageError(f"{address!r} is neither a folder nor s3://bucket/prefix")
        return FolderVault(Path(address).expanduser().absolute())
    bucket, _, prefix = address.removeprefix("s3://").partition("/")
    own = settings.backup_s3_endpoint is None
    if not bucket or (own and bucket == settings.s3_bucket):
        raise UsageError(
            f"{address!r} cannot hold backups: give s3://bucket/prefix, with another bucket than the one that is saved"
        )
    return BucketVault(_store_of_backups(settings), bucket, prefix.strip("/"))


def _store_of_backups(settings: Settings) -> ObjectStore:
    if settings.backup_s3_endpoint is None:
        return ObjectStore(settings)
    if settings.backup_s3_access_key is None or settings.backup_s3_secret_key is None:
        raise SettingsError(
            "RAGLLAVA_BACKUP_S3_ENDPOINT is set: set RAGLLAVA_BACKUP_S3_ACCESS_KEY and "
            "RAGLLAVA_BACKUP_S3_SECRET_KEY, too"
        )
    return ObjectStore(
        settings.model_copy(
            update={
                "s3_endpoint": settings.backup_s3_endpoint,
                "s3_socket": None,  # that of our own store
                "s3_access_key": settings.backup_s3_access_key,
                "s3_secret_key": settings.backup_s3_secret_key,
                "s3_secure": settings.backup_s3_secure,
            }
        )
    )


class FolderVault:
    """A folder; only its owner may read the files."""

    def __init__(self, root: Path) -> None:
        """The folder is made at the first write."""
        self._root = root
        self.address = str(root)

    def put(self, name: str, data: bytes | Path) -> None:
        """As Vault. A full disk, or a folder that cannot be written, is a UsageError."""
        path = self._root / name
        with self._writing():
            self._make_folders(path.parent)
            with written_whole(path, 0o600) as part, part.open("wb") as copy:
                if isinstance(data, bytes):
                    copy.write(data)
                else:
                    with data.open("rb") as stream:
                        while piece := stream.read(_READ_BYTES):
                            copy.write(piece)

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise UsageError(
                f"cannot write to {self._root} ({error.strerror or error}): free some room or choose another folder, "
                "and run the same command again; what is copied stays"
            ) from error

    def _make_folders(self, folder: Path) -> None:
        """A folder of the vault and those above it: Path.mkdir gives its mode to the last one only."""
        if folder.is_dir():
            return
        if folder != self._root:
            self._make_folders(folder.parent)
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)

    @contextmanager
    def open(self, name: str) -> Iterator[Readable]:
        """As Vault."""
        try:
            stream = (self._root / name).open("rb")
        except FileNotFoundError:
            raise ObjectMissing(f"{self._root} has no file {name}") from None
        except OSError as error:
            raise UsageError(f"cannot read {self._root / name} ({error.strerror or error})") from error
        with stream:
            yield stream

    def sizes(self, prefix: str) -> Iterator[tuple[str, int]]:
        """As Vault."""
        folder = self._root / prefix.rpartition("/")[0]
        if not folder.is_dir():
            return
        for path in sorted(folder.rglob("*")):
            name = str(path.relative_to(self._root))
            if name.startswith(prefix) and not path.name.startswith(".") and path.is_file():
                yield name, path.stat().st_size

    def delete(self, name: str) -> None:
        """As Vault."""
        with self._writing():
            (self._root / name).unlink(missing_ok=True)

    def tidy(self) -> None:
        """As Vault."""
        with self._writing():
            for part in self._root.rglob(".*.part"):
                part.unlink(missing_ok=True)

    def settle(self) -> None:
        """As Vault: once for all files, as it would take milliseconds for each of them."""
        os.sync()


class BucketVault:
    """The files below a prefix of a bucket."""

    def __init__(self, store: ObjectStore, bucket: str, prefix: str) -> None:
        """The bucket has to exist when something is written."""
        self._store, self._bucket = store, bucket
        self._prefix = f"{prefix}/" if prefix else ""
        self._is_there = False
        self.address = f"s3://{bucket}/{prefix}"

    def put(self, name: str, data: bytes | Path) -> None:
        """As Vault. Raises ObjectMissing when the bucket does not exist."""
        # Asked once, because SeaweedFS creates a missing bucket.
        if not self._is_there and not self._store.bucket_exists(self._bucket):
            raise ObjectMissing(f"there is no bucket {self._bucket}; create it, or choose another")
        self._is_there = True
        key = f"{self._prefix}{name}"
        if isinstance(data, bytes):
            self._store.put_into(self._bucket, key, BytesIO(data), len(data))
            return
        with data.open("rb") as stream:
            self._store.put_into(self._bucket, key, stream, data.stat().st_size)

    def open(self, name: str) -> AbstractContextManager[Readable]:
        """As Vault."""
        return self._store.open_external(self._bucket, f"{self._prefix}{name}")

    def sizes(self, prefix: str) -> Iterator[tuple[str, int]]:
        """As Vault; nothing while the bucket does not exist."""
        try:
            for info in self._store.list_external(self._bucket, f"{self._prefix}{prefix}"):
                yield info.key.removeprefix(self._prefix), info.size_bytes
        except ObjectMissing:
            return

    def delete(self, name: str) -> None:
        """As Vault."""
        self._store.delete_external(self._bucket, f"{self._prefix}{name}")

    def tidy(self) -> None:
        """As Vault; a store shows no half object."""

    def settle(self) -> None:
        """As Vault; nothing is left to do."""
