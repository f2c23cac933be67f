"""From a list of files to an ingest job, in one transaction."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import Connection, Engine

from ragllava.errors import UsageError
from ragllava.jobs import control
from ragllava.jobs.control import NewJob
from ragllava.records import JobKind, SourceFile
from ragllava.settings import Settings
from ragllava.stages.answer.submit import Submitted
from ragllava.stores.archives import archive
from ragllava.stores.database import in_transaction

FILES_PER_TAR_SHARD = 4_096


def submit_files(engine: Engine, settings: Settings, *, archive_name: str, files: Sequence[SourceFile]) -> Submitted:
    """Create an ingest job of listed files; the archive is created if it is new. Files that the walk itself refused
    have their outcome at once. Raises UsageError when there is none."""
    if not files:
        raise UsageError("there is no file to ingest")

    def work(connection: Connection) -> Submitted:
        archive_id = archive.ensure_archive(connection, archive_name).archive_id
        return Submitted(create_ingest(connection, settings, archive_id, files), True, len(files), [])

    return in_transaction(engine, work)


def create_ingest(
    connection: Connection,
    settings: Settings,
    archive_id: int,
    files: Sequence[SourceFile],
    spec: Mapping[str, Any] | None = None,
) -> int:
    """Create an ingest job of listed files in the caller's transaction; returns its id."""
    job_id, _ = control.create(
        connection,
        NewJob(
            kind=JobKind.INGEST,
            archive_id=archive_id,
            spec=dict(spec or {}),
            total=len(files),
            per_shard=_files_per_shard(settings, files),
        ),
    )
    archive.insert_files(connection, job_id, files)
    return job_id


def _files_per_shard(settings: Settings, files: Sequence[SourceFile]) -> int:
    """A tar has no directory: each shard goes through it from the start, so few large shards it is."""
    from_tar = any(file.uri.startswith("tar://") for file in files)
    return max(settings.files_per_shard, FILES_PER_TAR_SHARD) if from_tar else settings.files_per_shard
