"""A database and buckets that version 0.1 wrote, and its LLaVA, whose weights were others than today's.

tests/fixtures/version_0_1/make.py tells what they hold.
"""

from __future__ import annotations

import json
import lzma
import shutil
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg

from ragllava.models.profiles import get_profile
from ragllava.settings import Settings
from ragllava.stores.objects import ObjectStore
from tests.conftest import own_settings
from tests.support.foreign_bucket import make_bucket

_FOLDER = Path(__file__).parents[1] / "fixtures" / "version_0_1"
_OWN_BUCKET, _FOREIGN_BUCKET = "version-0-1", "version-0-1-pictures"  # their names when the fixture was made
_OLD_THRESHOLD = 0.39919


@contextmanager
def restored_version_0_1(services: Settings, *, objects: bool = True) -> Iterator[Settings]:
    """Settings of a database at the revision of version 0.1, and of a bucket, with everything in them.

    The bucket that an archive is bound to is restored under a name after the test's own bucket. Without `objects`, the
    buckets are not made.
    """
    with own_settings(services, "template0") as own:
        foreign_name = _restore_objects(own) if objects else _FOREIGN_BUCKET
        sql = lzma.decompress((_FOLDER / "database.sql.xz").read_bytes()).decode()
        address = own.require_database_owner().replace("postgresql+psycopg://", "postgresql://")
        with psycopg.connect(address) as connection:
            connection.execute(sql.replace(_FOREIGN_BUCKET, foreign_name).encode())
        yield own


def write_old_profile(folder: Path) -> Path:
    """The profile `mini` of version 0.1 as a file: today's retriever, which is the same, and the LLaVA of then.

    What version 0.1 stored names that LLaVA by the digest of its weights, and its adapter fits no other.
    """
    today = get_profile(Settings())
    shutil.copytree(today.mllm, folder / "llava", ignore=shutil.ignore_patterns("*.safetensors"))
    shutil.copy(_FOLDER / "llava" / "model.safetensors", folder / "llava")
    path = folder / "profile.json"
    values = {"name": "mini", "retriever": today.retriever.retriever, "mllm": "./llava", "threshold": _OLD_THRESHOLD}
    path.write_text(json.dumps(values), encoding="utf-8")
    return path


def old_object(key: str) -> bytes:
    """An object of RagLLaVA's own bucket as version 0.1 wrote it."""
    with zipfile.ZipFile(_FOLDER / "objects.zip") as packed:
        return packed.read(f"{_OWN_BUCKET}/{key}")


def _restore_objects(own: Settings) -> str:
    """Returns the name of the bucket beside our own."""
    objects, foreign = ObjectStore(own), make_bucket(own)
    with zipfile.ZipFile(_FOLDER / "objects.zip") as packed:
        for name in packed.namelist():
            bucket, _, key = name.partition("/")
            if bucket == _OWN_BUCKET:
                objects.put(key, packed.read(name))
            else:
                assert bucket == _FOREIGN_BUCKET, bucket
                foreign.put(key, packed.read(name))
    return foreign.name
