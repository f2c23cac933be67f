"""Result files that were asked for once an answer job had ended: made once, and kept beside those of the job.

The results of the job as JSON lines determine all other forms. So a file is kept under their hash: when they are
written again, after pictures were erased or a retry, it is not found any more, and it is removed (finalize.py). It goes
with its job.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import Engine

from ragllava.errors import ObjectMissing
from ragllava.jobs import views
from ragllava.jobs.views import JobView
from ragllava.records import FileFormat
from ragllava.stages.results.finalize import RESULTS, kept_folder, result_lock
from ragllava.stores.database import in_transaction
from ragllava.stores.objects import ObjectStore
from ragllava.whole_files import file_sha256


@dataclass(frozen=True, slots=True)
class KeptFile:
    """A result file in the object store; `tag` is the same for the same bytes."""

    key: str
    tag: str


def kept_file(job: JobView, format: FileFormat) -> KeptFile | None:
    """Where the results of a job are kept in this form; None for a job that has not ended."""
    own = ((job.result or {}).get("files") or {}).get(RESULTS)
    if not job.is_final or not own:
        return None
    if format is FileFormat.JSONL:
        return KeptFile(own["key"], own["sha256"])
    return KeptFile(f"{kept_folder(job.job_id)}{own['sha256']}.{format.value}", f"{own['sha256']}-{format.value}")


def fetch_or_make(
    engine: Engine, objects: ObjectStore, job: JobView, path: Path, format: FileFormat, make: Callable[[Path], object]
) -> str | None:
    """Write the results of a job to `path`: what is kept of them, else what `make` writes, which is then kept.

    Returns the tag of the file; None while the job has not ended, and while its results are written again.
    """
    kept = kept_file(job, format)
    if kept is None:
        make(path)
        return None
    try:
        objects.fetch(kept.key, path)
    except ObjectMissing:
        make(path)
        return kept.tag if _keep(engine, objects, job.job_id, path, format, kept) else None
    # The JSON lines always have the same key, so they may be newer than the hash in `job`.
    is_newer = format is FileFormat.JSONL and file_sha256(path) != kept.tag
    return None if is_newer else kept.tag


def _keep(engine: Engine, objects: ObjectStore, job_id: int, path: Path, format: FileFormat, kept: KeptFile) -> bool:
    """Whether the file was kept. It is not when the results were written again meanwhile, or are at this moment."""
    with result_lock(engine, job_id, wait=False) as is_held:
        if not is_held or kept_file(in_transaction(engine, views.view, job_id), format) != kept:
            return False
        with path.open("rb") as stream:
            objects.put_stream(kept.key, stream, path.stat().st_size)
        return True
