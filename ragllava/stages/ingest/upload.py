"""Upload listed files to RagLLaVA's own bucket, for ingest workers that do not see the paths of the user.

The bytes are put under their hash, where the worker would put them too: a picture that is accepted is stored once, and
`gc` finds one that is not.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

from sqlalchemy import Engine

from ragllava.errors import ImageRejected, ObjectMissing
from ragllava.source_files import SourceFile
from ragllava.stages.ingest.reading import ReadFile, read_sources
from ragllava.stores.archives import blobs
from ragllava.stores.archives.blobs import NewBlob
from ragllava.stores.database import in_transaction
from ragllava.stores.objects import ObjectStore, content_key

_THREADS = 8
_FILES_AT_ONCE = 64
_BYTES_AT_ONCE = 32 * 2**20
_MEDIA_TYPE = "application/octet-stream"  # until a worker has decoded it

OnUpload = Callable[[int, int], None]  # files read, of how many


def upload_files(
    engine: Engine, objects: ObjectStore, files: Sequence[SourceFile], on_upload: OnUpload = lambda done, total: None
) -> list[SourceFile]:
    """The same files with the addresses of their uploaded bytes; one that cannot be read is rejected with the reason.

    At most 82 MB of content are in memory at a time, however many files there are. Raises ServiceUnavailable.
    """
    uploaded = list(files)
    readable = [(number, file.uri) for number, file in enumerate(files) if file.rejected is None]
    done = 0
    with ThreadPoolExecutor(_THREADS, thread_name_prefix="upload") as threads:
        for chunk in _chunks(read_sources(readable, _no_object)):
            hashes: dict[int, str] = {}
            contents: dict[str, bytes] = {}
            for number, data in chunk:
                if isinstance(data, ImageRejected):
                    uploaded[number] = replace(files[number], rejected=data.rejection)
                else:
                    hashes[number] = sha256 = hashlib.sha256(data).hexdigest()
                    contents[sha256] = data
            # Announced first, so that `gc` leaves them alone until the job refers to them.
            announced = [NewBlob(sha256, len(data), _MEDIA_TYPE) for sha256, data in contents.items()]
            missing = in_transaction(engine, blobs.announce_blobs, announced)
            puts = [threads.submit(objects.put_content, contents[sha256], _MEDIA_TYPE) for sha256 in missing]
            for put in puts:
                put.result()
            for number, sha256 in hashes.items():
                uploaded[number] = replace(files[number], uri=f"s3://{objects.bucket}/{content_key(sha256)}")
            done += len(chunk)
            on_upload(done, len(readable))
    return uploaded


def _chunks(files: Iterable[ReadFile]) -> Iterator[list[ReadFile]]:
    chunk: list[ReadFile] = []
    size_bytes = 0
    for file in files:
        chunk.append(file)
        size_bytes += 0 if isinstance(file[1], ImageRejected) else len(file[1])
        if len(chunk) >= _FILES_AT_ONCE or size_bytes >= _BYTES_AT_ONCE:
            yield chunk
            chunk, size_bytes = [], 0
    if chunk:
        yield chunk


def _no_object(bucket: str, key: str) -> bytes:
    """The user names paths only."""
    raise ObjectMissing(f"s3://{bucket}/{key}")
