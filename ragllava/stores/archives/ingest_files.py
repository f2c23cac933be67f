"""The input files of ingest jobs, and what became of them. Every function works in the caller's transaction."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from sqlalchemy import Connection, select, text, update

from ragllava.errors import RejectionClass
from ragllava.json_records import to_json
from ragllava.metadata import Metadata
from ragllava.records import JobKind
from ragllava.source_files import FileOutcome, FileStatus, PageCaption, SourceFile
from ragllava.stores.database import copy_rows, given, records
from ragllava.stores.maintenance import totals
from ragllava.stores.schema import OUTCOMES_TO_SHOW
from ragllava.stores.schema import files as file_table


@dataclass(frozen=True, slots=True)
class PendingFile:
    """A file of an ingest job that has no outcome yet."""

    file_no: int
    source: str
    uri: str
    caption: str | None
    metadata: Metadata | None = None
    pages: dict[int, PageCaption] | None = None


@dataclass(frozen=True, slots=True)
class RejectedFile:
    """A file and the reason of its outcome in the latest job that read it: `rejected`, `dead`, or `stored` in part."""

    job_id: int
    source: str
    uri: str
    status: FileStatus
    reason: str | None


def insert_files(connection: Connection, job_id: int, sources: Iterable[SourceFile]) -> int:
    """Write the input files of an ingest job, numbered from 0 in the order given; returns how many there were.

    A file that the listing rejected has its outcome at once. Bytes of a name that are not text are written as escapes;
    the file is read by its uri.
    """
    rejected: Counter[RejectionClass] = Counter()

    def row(number: int, file: SourceFile) -> tuple[object, ...]:
        if file.rejected is not None:
            rejected[file.rejected.rejection_class] += 1
        return (
            job_id,
            number,
            _storable(file.source),
            _storable(file.uri),
            None if file.caption is None else _storable(file.caption),
            json.dumps(file.metadata) if file.metadata else None,
            json.dumps(to_json(file.pages)) if file.pages else None,
            FileStatus.REJECTED.value if file.rejected is not None else None,
            _storable(file.rejected.reason) if file.rejected is not None else None,
        )

    columns = ("job_id", "file_no", "source", "uri", "caption", "metadata", "pages", "status", "reason")
    count = copy_rows(connection, file_table, columns, itertools.starmap(row, enumerate(sources)))
    _count_rejections(connection, rejected)
    return count


def load_files(connection: Connection, job_id: int, lo: int, hi: int) -> list[PendingFile]:
    """Files of a job with numbers in [lo, hi) that have no outcome yet, in order."""
    columns = file_table.c
    described = (columns.caption, columns.metadata, columns.pages)
    query = select(columns.file_no, columns.source, columns.uri, *described).where(
        columns.job_id == job_id, columns.file_no >= lo, columns.file_no < hi, columns.status.is_(None)
    )
    return records(PendingFile, connection.execute(query.order_by(columns.file_no)))


def finish_files(connection: Connection, job_id: int, outcomes: Sequence[FileOutcome]) -> int:
    """Write outcomes of files; returns how many were new. A file keeps its first outcome. Rejections are counted."""
    files = file_table.c
    if not outcomes:
        return 0
    numbers = [file.file_no for file in outcomes]
    near = (files.job_id == job_id, files.file_no.between(min(numbers), max(numbers)))
    rows = [(file.file_no, file.status, _storable(file.reason or "") or None, file.image_id) for file in outcomes]
    new = given(rows, files.file_no, files.status, files.reason, files.image_id).c
    statement = update(file_table).where(*near, files.file_no == new.file_no, files.status.is_(None))
    values = {"status": new.status, "reason": new.reason, "image_id": new.image_id}
    written = connection.execute(statement.values(values).returning(files.file_no, files.status)).all()
    classes = {file.file_no: file.rejection_class or RejectionClass.OTHER for file in outcomes}
    rejected = (classes[row.file_no] for row in written if row.status == FileStatus.REJECTED)
    _count_rejections(connection, Counter(rejected))
    return len(written)


def rejected_files(connection: Connection, archive_id: int) -> list[RejectedFile]:
    """Files whose latest outcome is `rejected` or `dead`, by source; `cancelled` does not count as an outcome."""
    return _files_with_reason(connection, archive_id, [FileStatus.REJECTED, FileStatus.DEAD])


def noted_files(connection: Connection, archive_id: int) -> list[RejectedFile]:
    """Files that were stored with a note, by source: their end is missing, or they are documents of several pages."""
    return _files_with_reason(connection, archive_id, [FileStatus.STORED])


def _files_with_reason(connection: Connection, archive_id: int, statuses: Sequence[FileStatus]) -> list[RejectedFile]:
    # From the few files with such an outcome to later ones of the same address; each step has an index.
    query = text(f"""
        SELECT f.job_id, f.source, f.uri, f.status, f.reason
        FROM files f JOIN jobs ON jobs.id = f.job_id
        WHERE jobs.archive_id = :archive_id AND f.status = ANY(:statuses) AND ({OUTCOMES_TO_SHOW})
          AND (f.reason IS NOT NULL OR f.status <> 'stored') AND f.uri <> 'erased:' AND NOT EXISTS (
            SELECT FROM files later JOIN jobs j ON j.id = later.job_id
            WHERE later.uri = f.uri AND later.uri <> 'erased:' AND j.archive_id = :archive_id
              AND later.status <> 'cancelled' AND (later.job_id, later.file_no) > (f.job_id, f.file_no))
        ORDER BY f.source, f.uri
    """)  # noqa: S608 - our own condition
    parameters = {"archive_id": archive_id, "statuses": [status.value for status in statuses]}
    return records(RejectedFile, connection.execute(query, parameters))


def _count_rejections(connection: Connection, numbers: Mapping[RejectionClass, int]) -> None:
    """Add files that were rejected now to the counters of the metrics."""
    totals.add(connection, [(totals.REJECTED, JobKind.INGEST, name.value, number) for name, number in numbers.items()])


def _storable(value: str) -> str:
    """Text that Postgres accepts: without NUL, and without lone surrogates of a file name that is not UTF-8."""
    return value.replace("\x00", "\ufffd").encode("utf-8", "backslashreplace").decode()
