"""The rows that know an image, and how they are erased in steps.

Each step is one short transaction of the caller and may be repeated. The images are retired first, so that no new
answer rests on them, and their rows are deleted last: what refers to a row is gone before it. A crash in between leaves
retired images, and an erasure that is not finished (erasures.py).
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from sqlalchemy import ColumnElement, Connection, select, text, update

from ragllava.stores.archives import image_changes, vectors
from ragllava.stores.archives.word_index import words_of_row
from ragllava.stores.buckets import listed_captions
from ragllava.stores.database import equals_any, given, lock_rows
from ragllava.stores.learning.reviewing import forget_undo
from ragllava.stores.maintenance.erasures import Pending
from ragllava.stores.maintenance.scrubbing import Scrubber
from ragllava.stores.schema import (
    answers,
    bound_objects,
    images,
    indexes,
    jobs,
    maintenance_tasks,
    noisy_cases,
    questions,
    shards,
)
from ragllava.stores.sessions import allow_statements

QUESTIONS_PER_STEP = 20_000
IMAGES_PER_STEP = 500

REMOVED_OBJECT = "its picture was removed from the archive; it is ingested again when it changes"
ERASED_URI = "erased:"  # of a file of an ingest job, which no file can have

_STATEMENT_TIMEOUT_S = 300  # a step reads the candidates of many questions


@dataclass(frozen=True, slots=True)
class ImageCounts:
    """What the database has of images. `jobs` are the answer jobs with results that name them.

    `asking` are the questions that name them in their text, id or filter.
    """

    images: int
    picture_bytes: int
    shared: int  # whose bytes another archive has, too
    vectors: int
    candidates: int
    answers: int  # whose evidence they are
    files: int  # of ingest jobs
    labels: int
    asking: int
    jobs: tuple[int, ...]


def allow_time(connection: Connection) -> None:
    """Let the statements of this transaction take minutes."""
    allow_statements(connection, _STATEMENT_TIMEOUT_S)


def count(connection: Connection, archive_id: int, image_ids: Sequence[int]) -> ImageCounts:
    """What would be erased with these images of an archive. Reads the candidates of all its jobs."""
    allow_time(connection)
    values = {"archive_id": archive_id, "ids": list(image_ids)}
    row = connection.execute(_COUNT, values).one()
    of_jobs = connection.execute(_COUNT_CANDIDATES, values).all()
    number_of_vectors = sum(
        len(image_ids) - len(vectors.missing_embeddings(connection, index.index_id, image_ids))
        for index in vectors.list_indexes(connection, archive_id)
    )
    return ImageCounts(
        **row._mapping,
        vectors=number_of_vectors,
        candidates=sum(job.candidates for job in of_jobs),
        answers=sum(job.answers for job in of_jobs),
        asking=_count_asking(connection, archive_id, image_ids),
        jobs=tuple(job.job_id for job in of_jobs if job.answers),
    )


def _count_asking(connection: Connection, archive_id: int, image_ids: Sequence[int]) -> int:
    pending = pending_of(connection, archive_id, image_ids)
    names = [*pending.names, *pending.texts]
    values = {"archive_id": archive_id, "names": names, "patterns": Scrubber(names).patterns}
    return int(connection.execute(_COUNT_ASKING, values).scalar_one())


def retire(connection: Connection, archive_id: int, image_ids: Sequence[int]) -> Pending:
    """The first step: retire the images, and list what is left to do of their erasure.

    Open maintenance tasks count among its jobs: their reports may name the images.
    """
    image_changes.retire(connection, archive_id, image_ids)
    pending = pending_of(connection, archive_id, image_ids)
    tasks = connection.scalars(_OPEN_TASKS, {"archive_id": archive_id})
    return replace(pending, jobs=(*pending.jobs, *tasks))


def pending_of(connection: Connection, archive_id: int, image_ids: Sequence[int]) -> Pending:
    """What is to do to erase images that are retired."""
    rows = connection.execute(
        select(images).where(images.c.archive_id == archive_id, equals_any(images.c.id, image_ids))
    )
    own = {row.id: row for row in rows}
    candidates = {name for row in own.values() for name in (row.source, row.uri)} | _keys(connection, list(own))
    names = candidates - set(_names_of_others(connection, archive_id, list(own), candidates))
    words = {word for row in own.values() for word in words_of_row(row.caption, row.metadata, row.source)}
    of_archive = select(jobs.c.id).where(jobs.c.archive_id == archive_id).order_by(jobs.c.id)
    return Pending(
        images=tuple(own),
        jobs=tuple(connection.scalars(of_archive.where(jobs.c.kind.in_(["answer", "ingest", "reindex"])))),
        hashes=tuple(sorted({row.sha256 for row in own.values()})),
        names=tuple(sorted(names)),
        texts=tuple(sorted({row.caption for row in own.values() if row.caption})),
        words=tuple(sorted(words)),
    )


def _keys(connection: Connection, image_ids: Sequence[int]) -> set[str]:
    """The keys of the bound objects of images, and the names that they have below the bound prefix."""
    rows = connection.execute(
        text("""
            SELECT key, substr(key, length(prefix) + 1) AS name FROM bound_objects
            JOIN bindings ON bindings.id = binding_id WHERE image_id = ANY(:ids)
        """),
        {"ids": list(image_ids)},
    )
    return {name for row in rows for name in row}


def _names_of_others(
    connection: Connection, archive_id: int, image_ids: Sequence[int], names: Iterable[str]
) -> set[str]:
    query = text("""
        SELECT source, uri FROM images WHERE archive_id = :archive_id AND NOT (id = ANY(:ids))
        AND (source = ANY(:names) OR uri = ANY(:names))
    """)
    rows = connection.execute(query, {"archive_id": archive_id, "ids": list(image_ids), "names": list(names)})
    return {name for row in rows for name in row}


def question_range(connection: Connection, job_id: int) -> range:
    """The numbers of the questions of a job, from which `clean_answers` takes pages."""
    row = connection.execute(
        text("SELECT min(question_no), max(question_no) FROM questions WHERE job_id = :job_id"), {"job_id": job_id}
    ).one()
    return range(0) if row[0] is None else range(row[0], row[1] + 1, QUESTIONS_PER_STEP)


def clean_answers(connection: Connection, job_id: int, first: int, pending: Pending) -> Counter[str]:
    """Erase the images from a page of questions: candidates, what a refresh compares with, further columns of their
    lines, notes and noisy cases.

    If the result files of the job named an image, its result is unset, so that they are written again, and `results`
    counts 1.
    """
    allow_time(connection)
    page = {"job_id": job_id, "lo": first, "hi": first + QUESTIONS_PER_STEP, "ids": list(pending.images)}
    removed = connection.execute(_DELETE_CANDIDATES, page).all()
    earlier = connection.execute(_CLEAN_PREVIOUS, page).rowcount
    numbers = sorted({row.question_no for row in removed})
    notes = _clean_notes(connection, job_id, numbers, pending)
    lines = _clean_lines(connection, page, pending)
    _clean_noisy_cases(connection, job_id, numbers, pending)
    counts = Counter(
        candidates=len(removed), answers=len({row.question_no for row in removed if row.is_evidence}), lines=lines
    )
    if counts["answers"] or earlier or notes or lines:
        published = update(jobs).where(jobs.c.id == job_id, jobs.c.kind == "answer", jobs.c.finished_at.is_not(None))
        counts["results"] = connection.execute(published.values(result=None)).rowcount
    return counts


def _clean_notes(connection: Connection, job_id: int, numbers: Sequence[int], pending: Pending) -> int:
    scrubber = _scrubber(pending)
    columns = (answers.c.job_id, answers.c.question_no, answers.c.run_no, answers.c.note, answers.c.error)
    named = select(*columns).where(answers.c.job_id == job_id, equals_any(answers.c.question_no, numbers))
    changed = 0
    for row in connection.execute(named.where(answers.c.note.is_not(None) | answers.c.error.is_not(None))).all():
        new = {name: scrubber.text(value) for name in ("note", "error") if (value := getattr(row, name)) is not None}
        if any(getattr(row, name) != value for name, value in new.items()):
            of_run = (answers.c.job_id == job_id, answers.c.question_no == row.question_no)
            connection.execute(update(answers).where(*of_run, answers.c.run_no == row.run_no).values(new))
            changed += 1
    return changed


def _clean_lines(connection: Connection, page: Mapping[str, Any], pending: Pending) -> int:
    """Erase the names from the further columns and the notes of question lines; returns how many had one."""
    scrubber, lines = _scrubber(pending), questions.c
    of_page = (lines.job_id == page["job_id"], lines.question_no >= page["lo"], lines.question_no < page["hi"])
    query = select(lines.question_no, lines.note, lines.given).where(*of_page)
    changed = []
    for number, note, columns in connection.execute(query.where(lines.note.is_not(None) | lines.given.is_not(None))):
        clean = note and scrubber.text(note), columns and {key: scrubber.json(value) for key, value in columns.items()}
        if clean != (note, columns):
            changed.append((number, *clean))
    new = given(changed, lines.question_no, lines.note, lines.given).c
    statement = update(questions).where(*of_page, lines.question_no == new.question_no)
    if changed:
        connection.execute(statement.values(note=new.note, given=new.given))
    return len(changed)


def _clean_noisy_cases(connection: Connection, job_id: int, numbers: Sequence[int], pending: Pending) -> None:
    """Of questions that are about the images, so that short names are searched for, too."""
    scrubber = Scrubber([*pending.names, *pending.texts, *_short(pending.hashes)], shortest=1)
    _scrub_noisy_cases(
        connection, scrubber, noisy_cases.c.job_id == job_id, equals_any(noisy_cases.c.question_no, numbers)
    )


def _scrub_noisy_cases(connection: Connection, scrubber: Scrubber, *which: ColumnElement[bool]) -> None:
    cases = noisy_cases.c
    query = select(cases.job_id, cases.question_no, cases.details).where(*which)
    for job_id, number, details in connection.execute(query.with_for_update()).all():
        if (clean := scrubber.json(details)) != details:
            case = update(noisy_cases).where(cases.job_id == job_id, cases.question_no == number)
            connection.execute(case.values(details=clean))


def clean_job(connection: Connection, job_id: int, pending: Pending) -> Counter[str]:
    """Erase the images from the inputs of an ingest or reindex job, and from the name and the errors of any job."""
    allow_time(connection)
    values = {"job_id": job_id, "ids": list(pending.images), "uris": list(pending.names), "erased": ERASED_URI}
    connection.execute(_CLEAN_PAGES, values)
    cleaned = connection.execute(_CLEAN_FILES, values).rowcount
    connection.execute(
        text("UPDATE reindexed SET reason = NULL WHERE job_id = :job_id AND image_id = ANY(:ids)"), values
    )
    scrubber = _scrubber(pending)
    for table, own in ((jobs, jobs.c.id), (shards, shards.c.job_id)):
        query = select(table.c.id, table.c.error).where(own == job_id, table.c.error.is_not(None))
        for row_id, error in connection.execute(query).all():
            if (clean := scrubber.text(error)) != error:
                connection.execute(update(table).where(table.c.id == row_id).values(error=clean))
    row = connection.execute(select(jobs.c.kind, jobs.c.result, jobs.c.name).where(jobs.c.id == job_id)).one_or_none()
    if row is not None and row.name is not None and (name := scrubber.text(row.name)) != row.name:
        connection.execute(update(jobs).where(jobs.c.id == job_id).values(name=name))
    if row is not None and row.kind == "reindex" and (clean := scrubber.json(row.result)) != row.result:
        connection.execute(update(jobs).where(jobs.c.id == job_id).values(result=clean))
    return Counter(files=cleaned)


def clean_reports(connection: Connection, archive_id: int, pending: Pending) -> None:
    """Erase the names of the images from the reports of maintenance tasks and of the gates of indexes, from noisy cases
    that a task has added meanwhile, and from what an undo of a review would restore."""
    scrubber = _scrubber(pending)
    _scrub_noisy_cases(connection, scrubber, noisy_cases.c.archive_id == archive_id)
    forget_undo(connection, archive_id)
    tasks = maintenance_tasks.c
    for row in connection.execute(select(maintenance_tasks).where(tasks.report.is_not(None))).all():
        new = {"report": scrubber.json(row.report), "reason": scrubber.text(row.reason or "") or None}
        if (new["report"], new["reason"]) != (row.report, row.reason):
            connection.execute(update(maintenance_tasks).where(tasks.job_id == row.job_id).values(new))
    gates = select(indexes.c.id, indexes.c.gate).where(indexes.c.archive_id == archive_id, indexes.c.gate.is_not(None))
    for index_id, gate in connection.execute(gates).all():
        if (clean := scrubber.json(gate)) != gate:
            connection.execute(update(indexes).where(indexes.c.id == index_id).values(gate=clean))


def delete(connection: Connection, archive_id: int, image_ids: Sequence[int], is_removal: bool) -> Counter[str]:
    """The last step for these images: labels forget them, and their rows are deleted; their content is marked.

    An image that was ingested again meanwhile stays. With `is_removal`, objects of bound buckets are not ingested again
    unless they change; else the images were retired because their objects are gone.
    """
    allow_time(connection)
    values = {"archive_id": archive_id, "ids": list(image_ids)}
    # Blobs before images, as every ingest locks them.
    connection.execute(_LOCK_BLOBS, values)
    locked = connection.scalars(_LOCK_IMAGES, values).all()
    values["ids"] = list(locked)
    labels = connection.execute(_CLEAN_LABELS, values).rowcount
    if is_removal:
        listed_captions.forget(connection, locked)
        forgotten = {"image_id": None, "caption": None, "metadata": None, "reason": REMOVED_OBJECT}
        of_images = equals_any(bound_objects.c.image_id, locked)
        lock_rows(connection, bound_objects, of_images)
        connection.execute(update(bound_objects).where(of_images).values(forgotten))
    vectors.remove_embeddings(connection, archive_id, list(locked))
    hashes = connection.scalars(_DELETE_IMAGES, values).all()
    return Counter(images=len(hashes), labels=labels)


def retired_images(connection: Connection, older_than_s: float, limit: int) -> dict[int, list[int]]:
    """Up to `limit` images that were retired longer ago, by archive, the oldest first."""
    query = text("""
        SELECT archive_id, id FROM images
        WHERE retired AND updated_at < now() - make_interval(secs => :older_than_s) ORDER BY updated_at, id LIMIT :limit
    """)
    by_archive: dict[int, list[int]] = defaultdict(list)
    for archive_id, image_id in connection.execute(query, {"older_than_s": older_than_s, "limit": limit}):
        by_archive[archive_id].append(image_id)
    return dict(by_archive)


def _scrubber(pending: Pending) -> Scrubber:
    return Scrubber([*pending.names, *pending.texts, *pending.hashes])


def _short(hashes: Iterable[str]) -> list[str]:
    """As a sentence about an image without a caption shows them."""
    return [sha256[:12] for sha256 in hashes]


_COUNT = text("""
    SELECT count(*) AS images, coalesce(sum(size_bytes), 0)::bigint AS picture_bytes,
           count(*) FILTER (WHERE EXISTS (SELECT FROM images o WHERE o.sha256 = i.sha256
                                                                 AND o.archive_id <> i.archive_id)) AS shared,
           (SELECT count(*) FROM files WHERE image_id = ANY(:ids)) AS files,
           (SELECT count(*) FROM labels WHERE archive_id = :archive_id
            AND (relevant && CAST(:ids AS bigint[]) OR irrelevant && CAST(:ids AS bigint[]))) AS labels
    FROM images i JOIN blobs USING (sha256) WHERE i.archive_id = :archive_id AND i.id = ANY(:ids)
""")

_COUNT_CANDIDATES = text("""
    SELECT j.id AS job_id, c.candidates, c.answers FROM jobs j CROSS JOIN LATERAL (
        SELECT count(*) AS candidates,
               count(DISTINCT question_no) FILTER (WHERE evidence_no IS NOT NULL) AS answers
        FROM candidates WHERE job_id = j.id AND image_id = ANY(:ids)
    ) c
    WHERE j.archive_id = :archive_id AND j.kind = 'answer' AND c.candidates > 0 ORDER BY j.id
""")

_COUNT_ASKING = text("""
    SELECT count(*) FROM questions q JOIN jobs j ON j.id = q.job_id
    WHERE j.archive_id = :archive_id AND j.kind = 'answer'
      AND (q.custom_id = ANY(CAST(:names AS text[])) OR q.text = ANY(CAST(:names AS text[]))
           OR concat_ws(chr(10), q.custom_id, q.text, q.filter, j.spec->'options'->'filter')
              ~ ANY(CAST(:patterns AS text[])))
""")

_OPEN_TASKS = text("""
    SELECT id FROM jobs WHERE finished_at IS NULL AND kind = 'maintenance'
    AND (archive_id = :archive_id OR archive_id IS NULL) ORDER BY id
""")

_DELETE_CANDIDATES = text("""
    DELETE FROM candidates WHERE job_id = :job_id AND question_no >= :lo AND question_no < :hi AND image_id = ANY(:ids)
    RETURNING question_no, evidence_no IS NOT NULL AS is_evidence
""")

_CLEAN_PREVIOUS = text("""
    UPDATE questions SET previous = jsonb_set(previous, '{evidence}', (
        SELECT coalesce(jsonb_agg(item ORDER BY place), '[]')
        FROM jsonb_array_elements(previous->'evidence') WITH ORDINALITY AS kept (item, place)
        WHERE NOT CAST(item->>'image_id' AS bigint) = ANY(:ids)))
    WHERE job_id = :job_id AND question_no >= :lo AND question_no < :hi AND previous IS NOT NULL
      AND EXISTS (SELECT FROM jsonb_array_elements(previous->'evidence') AS item
                  WHERE CAST(item->>'image_id' AS bigint) = ANY(:ids))
""")

# Files that have an outcome: an open one is being ingested, perhaps as the next version of an erased image.
_CLEAN_FILES = text("""
    UPDATE files SET source = '(erased)', uri = :erased, caption = NULL, metadata = NULL, pages = NULL, reason = NULL
    WHERE job_id = :job_id AND status IS NOT NULL AND uri <> :erased
      AND (image_id = ANY(:ids) OR (image_id IS NULL AND uri = ANY(:uris)))
""")

# Of a document of which other pages stay.
_CLEAN_PAGES = text("""
    UPDATE files SET pages = pages - erased.numbers
    FROM (SELECT split_part(uri, '#page=', 1) AS document, array_agg(split_part(uri, '#page=', 2)) AS numbers
          FROM unnest(CAST(:uris AS text[])) AS uri WHERE strpos(uri, '#page=') > 0 GROUP BY 1) erased
    WHERE job_id = :job_id AND status IS NOT NULL AND pages IS NOT NULL AND files.uri = erased.document
""")

_LOCK_BLOBS = text("""
    SELECT FROM blobs WHERE sha256 IN (SELECT sha256 FROM images WHERE id = ANY(:ids)) ORDER BY sha256 FOR UPDATE
""")

_LOCK_IMAGES = text("""
    SELECT id FROM images WHERE archive_id = :archive_id AND id = ANY(:ids) AND retired ORDER BY sha256 FOR UPDATE
""")

_CLEAN_LABELS = text("""
    UPDATE labels SET
        relevant = ARRAY(SELECT id FROM unnest(relevant) WITH ORDINALITY AS kept (id, place)
                         WHERE NOT id = ANY(:ids) ORDER BY place),
        irrelevant = ARRAY(SELECT id FROM unnest(irrelevant) WITH ORDINALITY AS kept (id, place)
                           WHERE NOT id = ANY(:ids) ORDER BY place)
    WHERE archive_id = :archive_id
      AND (relevant && CAST(:ids AS bigint[]) OR irrelevant && CAST(:ids AS bigint[]))
""")

_DELETE_IMAGES = text("DELETE FROM images WHERE archive_id = :archive_id AND id = ANY(:ids) RETURNING sha256")
