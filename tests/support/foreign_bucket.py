"""A bucket beside our own, as another program fills it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from io import BytesIO

from minio import Minio

from ragllava.settings import Settings
from ragllava.stores.s3_client import make_client


@dataclass(frozen=True)
class Bucket:
    """A bucket named after the test's own, so that it is removed with it."""

    name: str
    client: Minio

    def put(self, key: str, data: bytes, metadata: Mapping[str, str] | None = None) -> None:
        """Put or overwrite an object; returns when the store has it."""
        self.client.put_object(self.name, key, BytesIO(data), len(data), metadata=dict(metadata) if metadata else None)

    def remove(self, *keys: str) -> None:
        """Remove objects."""
        for key in keys:
            self.client.remove_object(self.name, key)


def make_bucket(settings: Settings, suffix: str = "pictures") -> Bucket:
    """Make a bucket with the minio SDK."""
    client = make_client(settings)
    made = Bucket(f"{settings.s3_bucket}-{suffix}"[:63], client)
    client.make_bucket(made.name)
    return made
