"""Files that a user names for results: whether they can be written, and whether one that is there may be replaced."""

from __future__ import annotations

import csv
import errno
import json
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from ragllava.errors import UsageError
from ragllava.records import FileFormat
from ragllava.stages.record_files.opening import format_by_extension
from ragllava.whole_files import written_whole

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def require_same_job(path: Path, job_id: int, archive: str) -> None:
    """Raise UsageError if a file is there that is not an earlier result file of this job.

    The first row names the job; a file without a row belongs to nobody.
    """
    if not path.is_file() or not path.stat().st_size:
        return
    try:
        owner = _first_owner(path)
    except (OSError, ValueError, KeyError, TypeError):
        owner = (None, None)
    if owner not in (None, (job_id, archive)):
        raise UsageError(overwriting(path, job_id, archive, *owner))


def overwriting(path: Path, job_id: int, archive: str, other_job: int | None, other_archive: str | None) -> str:
    """Why a file is not replaced."""
    owner = "not a result of a job" if other_job is None else f"of job {other_job}, archive {other_archive}"
    return f"{path} exists and is {owner}; --force replaces it with job {job_id}, archive {archive}"


def _first_owner(path: Path) -> tuple[int | None, str | None] | None:
    """The job and the archive of the first row of a result file; None if it has no row."""
    row: dict[str, Any] | None
    match format_by_extension(path.name):
        case FileFormat.PARQUET:
            from pyarrow import parquet

            rows = parquet.read_table(path, columns=["job", "archive"]).slice(0, 1).to_pylist()
            row = rows[0] if rows else None
        case FileFormat.CSV:
            with path.open(encoding="utf-8-sig", newline="") as file:
                reader = csv.DictReader(file)
                row = next(reader, None)
                if row is None and "job" in (reader.fieldnames or ()):
                    return None
                row = row or {}
        case _:
            with path.open(encoding="utf-8") as file:
                row = json.loads(file.readline())
    return None if row is None else (int(row["job"]), row["archive"].removeprefix("'"))


@contextmanager
def output_file(path: Path) -> Iterator[Path]:
    """As `written_whole`, for a path that a user chose.

    Raises UsageError, before the block begins, when `path` is a folder or nothing can be written beside it, and at its
    end when the disk is full.
    """
    if not path.name or path.is_dir():  # `.`, which an empty path stands for, has no name
        raise UsageError(f"{path} cannot be written: it is a folder")
    with ExitStack() as stack:
        try:
            part = stack.enter_context(written_whole(path))
        except OSError as error:
            raise UsageError(f"{path} cannot be written: {error.strerror}{_of_folder(path, error)}") from None
        try:
            yield part
        except OSError as error:
            if error.errno not in _FULL:
                raise
            raise UsageError(f"{path} cannot be written: {error.strerror}; free some, or choose another disk") from None


def _of_folder(path: Path, error: OSError) -> str:
    """`; the folder belongs to the user alice`, if that may be why."""
    folder = path.absolute().parent
    if not isinstance(error, PermissionError) or not folder.exists() or folder.stat().st_uid == os.geteuid():
        return ""
    try:
        return f"; {folder} belongs to the user {folder.owner()}"
    except KeyError:
        return f"; {folder} belongs to another user"
