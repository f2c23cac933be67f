"""Create ingest jobs of listed files."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import Connection

from ragllava.errors import UsageError
from ragllava.imaging.decode import printable
from ragllava.jobs import control
from ragllava.jobs.control import NewJob
from ragllava.json_records import to_json
from ragllava.records import JobKind
from ragllava.settings import Settings
from ragllava.source_files import SourceFile
from ragllava.stores.archives import archive, ingest_files

FILES_PER_TAR_SHARD = 4_096


def submit_files(
    connection: Connection,
    settings: Settings,
    *,
    archive_name: str,
    files: Sequence[SourceFile],
    given: str | None = None,
    name: str | None = None,
    idempotency_key: str | None = None,
) -> int:
    """Create an ingest job of listed files; the archive is created if it is new. Returns the job.

    `given` are the paths as the user named them, `name` is that of the job. Files that the listing rejected have their
    outcome at once. Of two calls with one `idempotency_key` and the same files, the second returns the first's job.
    Raises UsageError if there are no files, KeyReused for a key of other files.
    """
    if not files:
        raise UsageError("there is no file to ingest")
    archive_id = archive.ensure_archive(connection, archive_name).archive_id
    spec = {"input": printable(given)} if given else {}
    return create_ingest(connection, settings, archive_id, files, spec, name, idempotency_key)


def create_ingest(
    connection: Connection,
    settings: Settings,
    archive_id: int,
    files: Sequence[SourceFile],
    spec: Mapping[str, Any] | None = None,
    name: str | None = None,
    idempotency_key: str | None = None,
) -> int:
    """Create an ingest job of listed files in the caller's transaction; returns its id. The key is as above."""
    # A tar file has no directory: every shard reads it from the start, so there are few large shards.
    from_tar = any(file.uri.startswith("tar://") for file in files)
    per_shard = max(settings.files_per_shard, FILES_PER_TAR_SHARD if from_tar else 0)
    job = NewJob(
        JobKind.INGEST,
        archive_id,
        dict(spec or {}),
        len(files),
        per_shard,
        idempotency_key=idempotency_key,
        content_digest=_digest(files) if idempotency_key else "",
        name=name,
    )
    job_id, is_new = control.create(connection, job)
    if is_new:
        ingest_files.insert_files(connection, job_id, files)
    return job_id


def _digest(files: Sequence[SourceFile]) -> str:
    """Of what was offered, to tell a repetition from another request under the same key."""
    return hashlib.sha256(json.dumps(to_json(list(files)), sort_keys=True).encode()).hexdigest()
