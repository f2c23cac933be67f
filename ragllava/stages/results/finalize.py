"""What is left to do when a job has ended: its result, and the files of an answer job in the object store."""

from __future__ import annotations

import json
import logging
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

from sqlalchemy import Connection, Engine

from ragllava.errors import ObjectMissing, UsageError
from ragllava.jobs import control, views
from ragllava.jobs.isolation import Isolation, LeftToAnother
from ragllava.jobs.kinds import kind_of
from ragllava.jobs.states import JobState
from ragllava.jobs.views import WITH_PICTURES, JobView
from ragllava.json_records import from_json
from ragllava.records import AnswerStatus, Candidate, FileFormat, evidence_of
from ragllava.stages.results.notices import announce_end
from ragllava.stages.results.outbox import Outbox, deliver
from ragllava.stages.results.results import Previous, ResultRow, write_errors, write_results
from ragllava.stores.access import webhooks
from ragllava.stores.archives import archive, graphs, vectors
from ragllava.stores.archives.vectors import IndexView
from ragllava.stores.database import in_transaction, locked_outside, record
from ragllava.stores.jobs import answers, earlier_answers
from ragllava.stores.jobs.outcomes import Reconciliation, reconcile
from ragllava.stores.jobs.result_pages import ResultQuery, find_rows
from ragllava.stores.maintenance.erasing_jobs import BEING_REMOVED
from ragllava.stores.objects import ObjectStore
from ragllava.whole_files import file_sha256

log = logging.getLogger(__name__)

RESULTS = "results.jsonl"
_PAGE = 500  # results whose metadata are loaded together


def result_rows(connection: Connection, job_id: int, *, with_metadata: bool = False) -> Iterator[ResultRow]:
    """One row for every input line that has an outcome, in input order; of an ended job that is every line.

    `with_metadata` adds the metadata that the images of the evidence have now.
    """
    searched, of_pictures = views.archive_of(connection, job_id), views.asks_with_pictures(connection, job_id)
    results = answers.iterate_results(connection, job_id)
    while page := list(islice(results, _PAGE)):
        yield from _as_result_rows(connection, job_id, searched, page, of_pictures, with_metadata=with_metadata)


@dataclass(frozen=True, slots=True)
class ResultPage:
    """Rows of a job, with the texts of those questions that have no outcome yet. `next_after` None: the end."""

    rows: list[ResultRow]
    open_questions: list[tuple[int, str]]  # line, text
    next_after: int | None


def result_page(connection: Connection, job_id: int, query: ResultQuery) -> ResultPage:
    """The next rows of a job that a person looks at. Raises UsageError for a job that cannot be compared with."""
    if query.against is not None:
        earlier_answers.require_comparable(connection, job_id, query.against)
    after = find_rows(connection, job_id, query)
    searched, of_pictures = views.archive_of(connection, job_id), views.asks_with_pictures(connection, job_id)
    rows = list(_as_result_rows(connection, job_id, searched, after.rows, of_pictures))
    if query.against is not None:
        rows = _compared(connection, job_id, query.against, rows, {row.line: row.question_no for row, _ in after.rows})
    waiting = [(row.line, row.question or "") for row, _ in after.rows if row.status is None]
    return ResultPage(rows, waiting, after.next_after)


def _compared(
    connection: Connection, job_id: int, other_id: int, rows: Sequence[ResultRow], numbers: Mapping[int, int]
) -> list[ResultRow]:
    """Rows whose previous outcome is that of another job, if that has the question; `numbers` are those of lines."""
    earlier = earlier_answers.earlier_answers(connection, job_id, other_id, list(numbers.values()))
    compared = []
    for row in rows:
        said = earlier.get(numbers[row.line])
        status = AnswerStatus(said.status) if said and said.status else None
        previous = Previous(other_id, status, said.answer, ()) if said else None
        compared.append(replace(row, previous=previous))
    return compared


def _as_result_rows(
    connection: Connection,
    job_id: int,
    searched: str | None,
    page: Sequence[tuple[Any, tuple[Candidate, ...]]],
    of_pictures: bool,
    *,
    with_metadata: bool = False,
) -> Iterator[ResultRow]:
    kept = {candidate.image.image_id for _, candidates in page for candidate in evidence_of(candidates)}
    metadata = archive.load_metadata(connection, kept) if with_metadata else None
    uris = archive.ambiguous_uris(connection, kept)
    for row, candidates in page:
        if row.status is not None:
            yield record(
                ResultRow,
                row,
                job_id=job_id,
                archive=searched,
                candidates=_told_apart(candidates, uris) if uris else candidates,
                previous=_previous(row.previous, row.changes) if row.previous else None,
                metadata=metadata,
                of_pictures=of_pictures,
            )


def _told_apart(candidates: Sequence[Candidate], uris: Mapping[int, str]) -> tuple[Candidate, ...]:
    """The candidates, of which those with an ambiguous name have their uri."""
    return tuple(
        replace(candidate, image=replace(candidate.image, uri=uris[candidate.image.image_id]))
        if candidate.image.image_id in uris
        else candidate
        for candidate in candidates
    )


def _previous(stored: dict[str, Any], changes: list[str] | None) -> Previous:
    evidence = [(image["image_id"], image["source"]) for image in stored["evidence"]]
    return from_json(Previous, {**stored, "job_id": stored["job"], "evidence": evidence, "changes": changes or ()})


def publish_missing_results(engine: Engine, objects: ObjectStore) -> int:
    """Finish every ended job that has no result yet; returns how many.

    Runs on every tick. A job that another process finishes at this moment is left to it. A job that cannot be finished
    holds up no other; it is postponed with its reason.
    """
    published = 0
    subjects = {f"job {job_id}": job_id for job_id in in_transaction(engine, views.jobs_without_result)}
    isolation = Isolation(engine, "results", subjects)
    for subject, job_id in subjects.items():
        if not isolation.is_postponed(subject):
            published += isolation.run(subject, _publish, engine, objects, job_id) or 0
    return published


def _publish(engine: Engine, objects: ObjectStore, job_id: int) -> int:
    return int(publish_result(engine, objects, job_id, again=False))


def publish_result(engine: Engine, objects: ObjectStore, job_id: int, *, again: bool = True) -> bool:
    """Do what is left to do after the end of a job (`Kind.finish`), then store its result: counts and all that it adds.

    A job whose inputs and outcomes do not add up any more has `failed`. One process at a time does this for a job, so
    that none writes files of what it read before an erasure over those that the erasure wrote. With `again`, it waits
    for another one, and begins when that one has ended; else only a job without a result is finished, unless another
    process does so: then it raises LeftToAnother. Returns whether the job was finished; a job that is being removed is
    not.
    """
    with result_lock(engine, job_id, wait=again) as is_held:
        if not is_held:
            raise LeftToAnother
        job = in_transaction(engine, views.view, job_id)
        if job.error == BEING_REMOVED or (job.result is not None and not again):
            return False
        _publish_locked(engine, objects, job)
        return True


def result_lock(engine: Engine, job_id: int, *, wait: bool = True) -> AbstractContextManager[bool]:
    """The lock of who writes, or removes, the result files of a job; whether it is held (`locked_outside`)."""
    return locked_outside(engine, "result", job_id, wait=wait)


def _publish_locked(engine: Engine, objects: ObjectStore, job: JobView) -> None:
    kind = kind_of(job.kind)
    counted = in_transaction(engine, reconcile, kind.inputs, job.job_id)
    if counted.problem is not None and job.state is not JobState.FAILED:
        job = _fail(engine, job, counted.problem)
    added = resolve_name(kind.finish)(engine, objects, job, counted) if kind.finish else {}
    in_transaction(engine, _store_result, job, _facts(job, counted) | added)


def _store_result(connection: Connection, job: JobView, result: dict[str, Any]) -> None:
    control.set_result(connection, job, result)
    webhooks.announce_end(connection, job.job_id)
    announce_end(connection, job)


def kept_folder(job_id: int) -> str:
    """Where further files that were made of the results of a job are kept (kept.py)."""
    return f"jobs/{job_id}/kept/"


def write_files(engine: Engine, objects: ObjectStore, job: JobView, counted: Reconciliation) -> dict[str, Any]:
    """Write `jobs/<id>/results.jsonl`, `errors.jsonl` and, last, `manifest.json`; returns the manifest.

    Of a job that came through an inbox the outbox gets the same.
    """
    prefix = f"jobs/{job.job_id}"
    objects.remove_prefix(kept_folder(job.job_id))  # of earlier results
    with tempfile.TemporaryDirectory() as folder:
        results, errors = Path(folder) / RESULTS, Path(folder) / "errors.jsonl"
        lines = {results: _write_results(engine, job, results, FileFormat.JSONL)}
        with engine.begin() as connection:
            lines[errors] = write_errors(result_rows(connection, job.job_id), errors)
        for file in lines:
            with file.open("rb") as stream:
                objects.put_stream(f"{prefix}/{file.name}", stream, file.stat().st_size, "application/x-ndjson")
        if lines[results] != counted.outcomes:
            problem = f"{counted.outcomes} outcomes but {lines[results]} lines of results: they do not add up"
            job = _fail(engine, job, problem)
        files = {
            path.name: {"key": f"{prefix}/{path.name}", "lines": number, "sha256": file_sha256(path)}
            for path, number in lines.items()
        }
        manifest = _facts(job, counted) | {"files": files}
        objects.put(f"{prefix}/manifest.json", json.dumps(manifest, indent=2).encode(), "application/json")
        if "outbox" in job.spec:
            manifest["outbox"] = _deliver(engine, objects, job, counted, lines)
    facts = {"action": "results_published", "job": job.job_id, "lines": lines[results], "errors": lines[errors]}
    log.info("results written", extra=facts)
    return manifest


def build_graph(engine: Engine, _objects: ObjectStore, job: JobView, _counted: Reconciliation) -> dict[str, Any]:
    """Build the graph of an index that has become large, after the ingest, not during it (docs/reliability.md D11)."""
    index = in_transaction(engine, _active_index, job.archive)
    has_graph = index is not None and graphs.build_hnsw(engine, index.index_id)
    return {"index": index.index_id if index else None, "has_hnsw": has_graph}


def _active_index(connection: Connection, archive_name: str) -> IndexView | None:
    return vectors.active_index(connection, archive.get_archive(connection, archive_name).archive_id)


def _write_results(engine: Engine, job: JobView, path: Path, format: FileFormat) -> int:
    top_n, is_refresh, columns = job.spec["options"]["top_n"], job.refresh is not None, job.spec.get("columns", ())
    with engine.begin() as connection:
        rows = result_rows(connection, job.job_id)
        return write_results(
            rows,
            path,
            format,
            top_n=top_n,
            is_refresh=is_refresh,
            columns=columns,
            of_pictures=WITH_PICTURES in job.spec,
        )


def _deliver(
    engine: Engine, objects: ObjectStore, job: JobView, counted: Reconciliation, lines: dict[Path, int]
) -> dict[str, str]:
    """Write the outbox, with the results in the format of the questions; `lines` has the lines of the JSONL files.

    Returns its address, or why it cannot be written; the results are in our own bucket in any case. Raises
    ServiceUnavailable; then the next tick writes all of it again.
    """
    outbox = from_json(Outbox, job.spec["outbox"])
    results, errors = lines
    if outbox.format is not FileFormat.JSONL:
        results = results.with_name(f"results.{outbox.format.value}")
        lines = {results: _write_results(engine, job, results, outbox.format), errors: lines[errors]}
    files = {path: {"lines": number, "sha256": file_sha256(path)} for path, number in lines.items()}
    try:
        return {"folder": deliver(objects, outbox, job.job_id, files, _facts(job, counted))}
    except (ObjectMissing, UsageError) as error:
        log.warning(str(error), extra={"action": "outbox_not_written", "job": job.job_id})
        return {"error": str(error)}


def _fail(engine: Engine, job: JobView, problem: str) -> JobView:
    log.error(problem, extra={"action": "job_does_not_add_up", "job": job.job_id})
    in_transaction(engine, control.fail_unreconciled, job, problem)
    return in_transaction(engine, views.view, job.job_id)


def _facts(job: JobView, counted: Reconciliation) -> dict[str, Any]:
    """Inputs = the sum of all outcomes, or the job has `failed`."""
    return {
        "job": job.job_id,
        "kind": job.kind,
        "archive": job.archive,
        "state": job.state.value,
        "total": job.progress.total,
        "counts": counted.by_status,
        "reconciled": counted.as_json(),
        **(job.detail_json() if kind_of(job.kind).result_has_detail else {}),
    }
