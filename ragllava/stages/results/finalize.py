"""The results of an answer job: read from Postgres, and written into the object store when the job has ended."""

from __future__ import annotations

import hashlib
import json
import logging
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine

from ragllava.errors import ObjectMissing, RagllavaError, UsageError
from ragllava.jobs import control
from ragllava.jobs.control import JobView
from ragllava.jobs.states import JobState
from ragllava.records import AnswerStatus, Change, FileFormat, JobKind
from ragllava.stages.results.outbox import Outbox, deliver
from ragllava.stages.results.results import Previous, ResultRow, write_errors, write_results
from ragllava.stores.archives import archive, vectors
from ragllava.stores.database import in_transaction
from ragllava.stores.jobs import answers, outcomes
from ragllava.stores.jobs.outcomes import Reconciliation
from ragllava.stores.objects import ObjectStore

log = logging.getLogger(__name__)


def result_rows(connection: Connection, job_id: int) -> Iterator[ResultRow]:
    """One row for every input line that has an outcome, in input order; of an ended job that is every line."""
    for row, candidates in answers.iterate_results(connection, job_id):
        if row.status is None:
            continue
        yield ResultRow(
            line=row.line,
            custom_id=row.custom_id,
            question=row.question,
            status=AnswerStatus(row.status),
            answer=row.answer,
            confidence=row.confidence,
            candidates=candidates,
            models=row.models,
            note=row.note,
            error_code=row.error_code,
            error=row.error,
            previous=_previous(row.previous, row.changes) if row.previous else None,
        )


def _previous(stored: dict[str, Any], changes: list[str] | None) -> Previous:
    return Previous(
        job_id=stored["job"],
        status=AnswerStatus(stored["status"]) if stored["status"] else None,
        answer=stored["answer"],
        evidence=tuple((image["image_id"], image["source"]) for image in stored["evidence"]),
        changes=tuple(Change(change) for change in changes or ()),
    )


def publish_missing_results(engine: Engine, objects: ObjectStore) -> int:
    """Finish every ended job that has no result yet: files of answers, graphs of indexes, what a training came to.

    Returns how many.

    Runs on every tick. Two at once write the same bytes under the same keys, so nothing is locked meanwhile. A job
    that cannot be finished holds up no other; the next tick tries it again.
    """
    written = 0
    for job_id in in_transaction(engine, control.jobs_without_result):
        try:
            kind = in_transaction(engine, control.view, job_id).kind
            if kind is JobKind.ANSWER:
                publish_results(engine, objects, job_id)
            elif kind is JobKind.INGEST:
                finish_ingest(engine, job_id)
            elif kind is JobKind.TRAIN:
                finish_training(engine, job_id)
            else:
                finish_plain(engine, job_id)
            written += 1
        except RagllavaError as error:
            log.warning(str(error), extra={"action": "results_not_published", "job": job_id})
    return written


def publish_results(engine: Engine, objects: ObjectStore, job_id: int) -> None:
    """Write `jobs/<id>/results.jsonl`, `errors.jsonl` and, last, `manifest.json`, the same into the outbox if the job
    came through an inbox; then the job names them."""
    job, counted = _reconcile(engine, job_id)
    prefix = f"jobs/{job_id}"
    with tempfile.TemporaryDirectory() as folder:
        results, errors = Path(folder) / "results.jsonl", Path(folder) / "errors.jsonl"
        lines = {results: _write_results(engine, job, results, FileFormat.JSONL)}
        with engine.begin() as connection:
            lines[errors] = write_errors(result_rows(connection, job_id), errors)
        for file in lines:
            with file.open("rb") as stream:
                objects.put_stream(f"{prefix}/{file.name}", stream, file.stat().st_size, "application/x-ndjson")
        if lines[results] != counted.outcomes:
            problem = f"{counted.outcomes} outcomes but {lines[results]} lines of results: they do not add up"
            job = _fail(engine, job, problem)
        manifest = _manifest(job, counted, prefix, lines)
        objects.put(f"{prefix}/manifest.json", json.dumps(manifest, indent=2).encode(), "application/json")
        if "outbox" in job.spec:
            manifest["outbox"] = _deliver(engine, objects, job, counted, lines)
    in_transaction(engine, control.set_result, job, manifest)
    facts = {"action": "results_published", "job": job_id, "lines": lines[results], "errors": lines[errors]}
    log.info("results written", extra=facts)


def _write_results(engine: Engine, job: JobView, path: Path, format: FileFormat) -> int:
    top_n, is_refresh = job.spec["options"]["top_n"], job.refresh is not None
    with engine.begin() as connection:
        return write_results(result_rows(connection, job.job_id), path, format, top_n=top_n, is_refresh=is_refresh)


def _deliver(
    engine: Engine, objects: ObjectStore, job: JobView, counted: Reconciliation, lines: dict[Path, int]
) -> dict[str, str]:
    """Write the outbox, with the results in the format of the questions; `lines` are the files as JSONL.

    Returns its address, or why it cannot be written; the results are in our own bucket all the same. Raises
    ServiceUnavailable, so that the next tick writes all of it again.
    """
    outbox = Outbox.from_json(job.spec["outbox"])
    results, errors = lines
    if outbox.format is not FileFormat.JSONL:
        results = results.with_name(outbox.results_name)
        lines = {results: _write_results(engine, job, results, outbox.format), errors: lines[errors]}
    files = {path: {"lines": number, "sha256": _sha256(path)} for path, number in lines.items()}
    try:
        return {"folder": deliver(objects, outbox, job.job_id, files, _facts(job, counted))}
    except (ObjectMissing, UsageError) as error:
        log.warning(str(error), extra={"action": "outbox_not_written", "job": job.job_id})
        return {"error": str(error)}


def finish_ingest(engine: Engine, job_id: int) -> None:
    """Build the graph of an index that has grown large, after the load and not during it (docs/reliability.md D11);
    note the counts."""
    job, counted = _reconcile(engine, job_id)
    index = in_transaction(engine, lambda c: vectors.active_index(c, archive.get_archive(c, job.archive).archive_id))
    has_graph = index is not None and vectors.build_hnsw(engine, index.index_id)
    facts = {"index": index.index_id if index else None, "has_hnsw": has_graph}
    result = _facts(job, counted) | facts
    in_transaction(engine, control.set_result, job, result)


def finish_training(engine: Engine, job_id: int) -> None:
    """Note how the training ended and which version it made; the version itself has the figures."""
    job, counted = _reconcile(engine, job_id)
    result = _facts(job, counted) | {"training": job.training.as_json() if job.training else None}
    in_transaction(engine, control.set_result, job, result)


def finish_plain(engine: Engine, job_id: int) -> None:
    """Note the counts; what a reindexing or a maintenance task came to stands beside its inputs."""
    job, counted = _reconcile(engine, job_id)
    in_transaction(engine, control.set_result, job, _facts(job, counted))


def _reconcile(engine: Engine, job_id: int) -> tuple[JobView, Reconciliation]:
    """Inputs and outcomes as the tables hold them now; a job that adds up no more has `failed`."""

    def work(connection: Connection) -> tuple[JobView, Reconciliation]:
        job = control.view(connection, job_id)
        return job, outcomes.reconcile(connection, job.kind, job_id)

    job, counted = in_transaction(engine, work)
    if counted.problem is not None and job.state is not JobState.FAILED:
        job = _fail(engine, job, counted.problem)
    return job, counted


def _fail(engine: Engine, job: JobView, problem: str) -> JobView:
    log.error(problem, extra={"action": "job_does_not_add_up", "job": job.job_id})
    in_transaction(engine, control.fail_unreconciled, job, problem)
    return in_transaction(engine, control.view, job.job_id)


def _manifest(job: JobView, counted: Reconciliation, prefix: str, files: dict[Path, int]) -> dict[str, object]:
    """The reconciliation, with the address, length and hash of each file."""
    return _facts(job, counted) | {
        "files": {
            path.name: {"key": f"{prefix}/{path.name}", "lines": lines, "sha256": _sha256(path)}
            for path, lines in files.items()
        },
    }


def _facts(job: JobView, counted: Reconciliation) -> dict[str, object]:
    """Inputs = the sum of all outcomes, or the job has `failed`."""
    return {
        "job": job.job_id,
        "kind": job.kind.value,
        "archive": job.archive,
        "state": job.state.value,
        "total": job.progress.total,
        "counts": counted.by_status,
        "reconciled": counted.as_json(),
        **({"refresh": job.refresh.as_json()} if job.refresh else {}),
    }


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
