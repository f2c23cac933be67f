"""How a job and an archive are erased in steps, and what else knows them.

Each step is a short transaction of the caller and may be repeated; the row of the job or of the archive goes last.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, func, select, text, update

from ragllava.errors import Conflict, NotFound, UsageError
from ragllava.stores.access import asked_pictures
from ragllava.stores.archives import indexes
from ragllava.stores.database import equals_any, records
from ragllava.stores.learning import trainings
from ragllava.stores.maintenance.erasing_content import mark_content
from ragllava.stores.maintenance.erasing_images import allow_time
from ragllava.stores.schema import archives, jobs

BEING_REMOVED = "it is being removed"

_ROWS_PER_STEP = 5_000
_INPUTS = (("questions", "question_no"), ("files", "file_no"), ("reindexed", "item_no"))


@dataclass(frozen=True, slots=True)
class JobCounts:
    """What the database has of a job. `refreshes` are jobs that keep its answers beside their own.

    `version` is the model version that a training made; `folder` is the training's folder in the object store.
    """

    job_id: int
    kind: str
    archive_id: int | None
    has_ended: bool
    inputs: int
    answers: int
    labels: int
    noisy_cases: int
    outbox: str | None
    refreshes: tuple[int, ...]
    version: str | None
    folder: str | None


@dataclass(frozen=True, slots=True)
class ArchiveCounts:
    """What the database has of an archive. `open_jobs` have not ended; `trainings` learned from its labels."""

    images: int
    picture_bytes: int
    indexes: int
    jobs: int
    answers: int
    labels: int
    noisy_cases: int
    schedules: tuple[str, ...]
    bindings: tuple[str, ...]
    open_jobs: tuple[int, ...]
    trainings: tuple[int, ...]


def count_job(connection: Connection, job_id: int) -> JobCounts:
    """What would be erased with a job. Raises UsageError for an unknown one."""
    allow_time(connection)
    row = connection.execute(_COUNT_JOB, {"job_id": job_id}).one_or_none()
    if row is None:
        raise NotFound(f"there is no job {job_id}; `ragllava jobs list` shows all")
    folder = trainings.folder_of(job_id, row.created_at) if row.kind == "train" else None
    values = {name: value for name, value in row._mapping.items() if name != "created_at"}
    return JobCounts(**values | {"refreshes": tuple(row.refreshes)}, job_id=job_id, folder=folder)


def begin_job(connection: Connection, job_id: int) -> None:
    """Nobody retries, refreshes or finishes the job any more. Raises UsageError unless it has ended."""
    row = connection.execute(
        text("SELECT state, finished_at FROM jobs WHERE id = :job_id FOR UPDATE"), {"job_id": job_id}
    ).one_or_none()
    if row is None:
        raise NotFound(f"there is no job {job_id}; `ragllava jobs list` shows all")
    if row.finished_at is None:
        raise Conflict(f"job {job_id} is {row.state}; stop it first: `ragllava jobs cancel {job_id}`")
    stop_job(connection, job_id)


def stop_job(connection: Connection, job_id: int) -> None:
    """Mark the job as one that is being removed, whatever its state is."""
    # With a result, so that the tick writes none: its files would outlive the job.
    removed = {"state": "failed", "error": BEING_REMOVED, "result": {}}
    ended = func.coalesce(jobs.c.finished_at, func.now())
    connection.execute(update(jobs).where(jobs.c.id == job_id).values(removed | {"finished_at": ended}))


def delete_inputs(connection: Connection, job_id: int) -> Counter[str]:
    """Delete some inputs of the job, with their answers, labels and noisy cases; empty when none is left.

    Pictures of questions that nothing else refers to are marked for `blobs.delete_blob`.
    """
    allow_time(connection)
    for table, number in _INPUTS:
        picture = "picture" if table == "questions" else "NULL"
        statement = f"""
            DELETE FROM {table} WHERE job_id = :job_id AND {number} IN (
                SELECT {number} FROM {table} WHERE job_id = :job_id ORDER BY {number} LIMIT :limit)
            RETURNING {picture}
        """  # noqa: S608 - our own names
        deleted = connection.scalars(text(statement), {"job_id": job_id, "limit": _ROWS_PER_STEP}).all()
        if deleted:
            pictures = sorted({sha256 for sha256 in deleted if sha256 is not None})
            if pictures:
                mark_content(connection, pictures)
                asked_pictures.disown(connection, job_id, pictures)
            return Counter(inputs=len(deleted))
    return Counter()


def delete_job(connection: Connection, job_id: int) -> Counter[str]:
    """The last step: the row of the job, with its shards."""
    allow_time(connection)
    return Counter(jobs=connection.execute(text("DELETE FROM jobs WHERE id = :id"), {"id": job_id}).rowcount)


def count_archive(connection: Connection, archive_id: int, name: str) -> ArchiveCounts:
    """What would be erased with an archive."""
    allow_time(connection)
    row = connection.execute(_COUNT_ARCHIVE, {"archive_id": archive_id, "name": name}).one()
    return records(ArchiveCounts, [row])[0]


def begin_archive(connection: Connection, archive_id: int) -> None:
    """Nobody finds the archive by its name any more, which is free from now on. Raises UsageError for open jobs."""
    connection.execute(text("SELECT FROM archives WHERE id = :id FOR UPDATE"), {"id": archive_id})
    open_jobs = connection.scalars(
        text("SELECT id FROM jobs WHERE archive_id = :id AND finished_at IS NULL ORDER BY id"), {"id": archive_id}
    ).all()
    if open_jobs:
        listed = ", ".join(map(str, open_jobs[:10]))
        raise UsageError(
            f"{len(open_jobs)} jobs of the archive have not ended ({listed}); "
            f"stop them first: `ragllava jobs cancel {open_jobs[0]}`"
        )
    connection.execute(update(archives).where(archives.c.id == archive_id).values(name=hidden_name(archive_id)))


def hidden_name(archive_id: int) -> str:
    """The name of an archive that is being removed; no other archive can have it."""
    return f"#{archive_id}"


def jobs_of_archive(connection: Connection, archive_id: int) -> list[int]:
    """The jobs that are removed with the archive: all but trainings, which model versions name."""
    query = text("SELECT id FROM jobs WHERE archive_id = :id AND kind <> 'train' ORDER BY id")
    return list(connection.scalars(query, {"id": archive_id}))


def delete_images(connection: Connection, archive_id: int) -> Counter[str]:
    """Delete some images of an archive whose jobs are gone, and mark their content; empty when none is left."""
    allow_time(connection)
    query = text("SELECT id FROM images WHERE archive_id = :id ORDER BY id LIMIT :limit")
    image_ids = list(connection.scalars(query, {"id": archive_id, "limit": _ROWS_PER_STEP}))
    if not image_ids:
        return Counter()
    # Blobs before images, as every ingest locks them.
    locked = text("""
        SELECT FROM blobs WHERE sha256 IN (SELECT sha256 FROM images WHERE id = ANY(:ids)) ORDER BY sha256 FOR UPDATE
    """)
    connection.execute(locked, {"ids": image_ids})
    deleted = text("DELETE FROM images WHERE id = ANY(:ids) RETURNING sha256")
    mark_content(connection, list(connection.scalars(deleted, {"ids": image_ids})))
    return Counter(images=len(image_ids))


def delete_bound_objects(connection: Connection, archive_id: int) -> int:
    """Delete some records of bound objects of the archive; returns how many."""
    statement = text("""
        DELETE FROM bound_objects WHERE ctid IN (
            SELECT o.ctid FROM bound_objects o JOIN bindings b ON b.id = o.binding_id
            WHERE b.archive_id = :id LIMIT :limit)
    """)
    return connection.execute(statement, {"id": archive_id, "limit": _ROWS_PER_STEP}).rowcount


def delete_bindings(connection: Connection, archive_id: int) -> None:
    """Delete the bindings of the archive; what is in their buckets stays."""
    connection.execute(text("DELETE FROM bindings WHERE archive_id = :id"), {"id": archive_id})


def delete_word_counts(connection: Connection, archive_id: int) -> list[str]:
    """Delete some counts of words of the archive; returns the words."""
    statement = text("""
        DELETE FROM word_counts WHERE ctid IN (
            SELECT ctid FROM word_counts WHERE archive_id = :id LIMIT :limit) RETURNING word
    """)
    return list(connection.scalars(statement, {"id": archive_id, "limit": _ROWS_PER_STEP}))


def drop_next_index(connection: Connection, archive_id: int) -> bool:
    """Drop an index of the archive, the active one too; False when there is none."""
    index_id = connection.scalar(
        text("SELECT id FROM indexes WHERE archive_id = :id ORDER BY id LIMIT 1"), {"id": archive_id}
    )
    if index_id is None:
        return False
    connection.execute(text("UPDATE archives SET active_index_id = NULL WHERE id = :id"), {"id": archive_id})
    connection.execute(text("UPDATE indexes SET state = 'retired' WHERE id = :id"), {"id": index_id})
    indexes.drop_index(connection, index_id)
    return True


def delete_archive(connection: Connection, archive_id: int) -> Counter[str]:
    """The last step: the row of the archive, with its schedules; trainings stay without an archive."""
    allow_time(connection)
    connection.execute(
        text("UPDATE jobs SET archive_id = NULL WHERE archive_id = :id AND kind = 'train'"), {"id": archive_id}
    )
    deleted = connection.execute(text("DELETE FROM archives WHERE id = :id"), {"id": archive_id}).rowcount
    return Counter(archives=deleted)


def rename_archive(connection: Connection, archive_id: int, old: str, new: str) -> None:
    """Give an archive another name, also where trainings name it. The caller has checked that `new` is free."""
    connection.execute(update(archives).where(archives.c.id == archive_id).values(name=new))
    connection.execute(_RENAME_IN_TRAININGS, {"old": old, "new": new})


_COUNT_JOB = text("""
    SELECT j.kind, j.archive_id, j.created_at, j.finished_at IS NOT NULL AS has_ended, j.total AS inputs,
           (SELECT count(*) FROM answers WHERE job_id = j.id AND text IS NOT NULL) AS answers,
           (SELECT count(*) FROM labels WHERE job_id = j.id) AS labels,
           (SELECT count(*) FROM noisy_cases WHERE job_id = j.id) AS noisy_cases,
           j.spec->'outbox'->>'folder' AS outbox,
           ARRAY(SELECT id FROM jobs r WHERE r.kind = 'answer' AND r.spec->>'refreshes' = CAST(j.id AS text)
                 ORDER BY id) AS refreshes,
           (SELECT v.name FROM trainings t JOIN model_versions v ON v.id = t.version_id
            WHERE t.job_id = j.id) AS version
    FROM jobs j WHERE j.id = :job_id
""")

_COUNT_ARCHIVE = text("""
    SELECT (SELECT count(*) FROM images WHERE archive_id = a.id) AS images,
           (SELECT coalesce(sum(size_bytes), 0)::bigint FROM blobs
            WHERE sha256 IN (SELECT sha256 FROM images WHERE archive_id = a.id)) AS picture_bytes,
           (SELECT count(*) FROM indexes WHERE archive_id = a.id) AS indexes,
           (SELECT count(*) FROM jobs WHERE archive_id = a.id AND kind <> 'train') AS jobs,
           (SELECT count(*) FROM answers WHERE job_id IN
               (SELECT id FROM jobs WHERE archive_id = a.id AND kind = 'answer')) AS answers,
           (SELECT count(*) FROM labels WHERE archive_id = a.id) AS labels,
           (SELECT count(*) FROM noisy_cases WHERE archive_id = a.id) AS noisy_cases,
           ARRAY(SELECT name FROM schedules WHERE archive_id = a.id ORDER BY name) AS schedules,
           ARRAY(SELECT 's3://' || bucket || '/' || prefix FROM bindings
                 WHERE archive_id = a.id ORDER BY 1) AS bindings,
           ARRAY(SELECT id FROM jobs WHERE archive_id = a.id AND finished_at IS NULL ORDER BY id) AS open_jobs,
           ARRAY(SELECT id FROM jobs WHERE kind = 'train' AND (archive_id = a.id OR spec->'archives' ? :name)
                 ORDER BY id) AS trainings
    FROM archives a WHERE a.id = :archive_id
""")

_RENAME_IN_TRAININGS = text("""
    UPDATE jobs SET spec = jsonb_set(spec, '{archives}', (
        SELECT jsonb_agg(CASE WHEN item = :old THEN :new ELSE item END ORDER BY place)
        FROM jsonb_array_elements_text(spec->'archives') WITH ORDINALITY AS listed (item, place)))
    WHERE kind = 'train' AND spec->'archives' ? :old
""")


def training_folders(connection: Connection) -> dict[str, Any]:
    """The folders of trainings in the object store that model versions name, each with the name of its version."""
    query = text("SELECT training->>'objects', name FROM model_versions WHERE training->>'objects' IS NOT NULL")
    return dict(connection.execute(query).all())


def unfinished_jobs(connection: Connection, job_ids: Sequence[int]) -> set[int]:
    """Those of the jobs that have not ended."""
    query = select(jobs.c.id).where(equals_any(jobs.c.id, job_ids), jobs.c.finished_at.is_(None))
    return set(connection.scalars(query))
