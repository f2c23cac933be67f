"""Questions, their results and the report of a job."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from sqlalchemy import Connection

from ragllava.client.archives import Archives
from ragllava.client.checking import Deadline, QuestionFiles, Where, with_filter
from ragllava.client.connections import forwarded
from ragllava.client.jobs import Count, Jobs
from ragllava.client.pictures import Pictures
from ragllava.client.reporting import report_figures, report_rows, report_title, summarise
from ragllava.client.sources import Source, folder_of
from ragllava.errors import AnswerTimeout, UsageError
from ragllava.evaluation.metrics import JobFigures
from ragllava.jobs import views
from ragllava.jobs.views import ASKED, WITH_PICTURES
from ragllava.records import AnswerOptions, KnownAnswer, Priority, Question
from ragllava.settings import Settings
from ragllava.stages.answer.asked_pictures import CountBytes, read_picture_file
from ragllava.stages.answer.question_files import (
    MAX_QUESTION_CHARACTERS,
    WITHOUT_TEXT,
    QuestionFile,
)
from ragllava.stages.answer.submit import (
    Submission,
    Submitted,
    answered_lines,
    submit_questions,
    submit_refresh,
)
from ragllava.stages.record_files.opening import format_by_extension
from ragllava.stages.resources import Resources
from ragllava.stages.results.finalize import ResultPage, result_page, result_rows
from ragllava.stages.results.kept import fetch_or_make
from ragllava.stages.results.output_files import require_same_job
from ragllava.stages.results.report import MAX_CARDS, page_paths, require_own_report, write_report
from ragllava.stages.results.results import ResultRow, write_errors, write_results
from ragllava.stores.database import read_at_once
from ragllava.stores.jobs.earlier_answers import comparable_jobs
from ragllava.stores.jobs.result_pages import ResultQuery, failures_by_code

if TYPE_CHECKING:
    from ragllava.stages.answer.changes import OnProgress, RefreshPlan


_RESULT_FILES = (".jsonl", ".ndjson", ".csv", ".tsv", ".parquet")

Picture = str | Path | bytes  # an address (stages/answer/asked_pictures.py), a file of this machine, its bytes


@dataclass(frozen=True, slots=True)
class SavedResults:
    """How many lines the result file and its error file have."""

    lines: int
    errors: int


class Questions(QuestionFiles):
    """Question files, single questions and their results."""

    def submit(  # noqa: PLR0913 - each is an option of `ragllava submit`
        self,
        source: Source,
        archive: str,
        options: AnswerOptions | None = None,
        *,
        where: Where = None,
        skip_invalid: bool = False,
        idempotency_key: str | None = None,
        name: str | None = None,
        priority: Priority = Priority.NORMAL,
        deadline: Deadline = None,
        max_gpu_seconds: float | None = None,
        admitted: Callable[[int], AbstractContextManager[None]] = lambda lines: nullcontext(),
        count_bytes: CountBytes | None = None,
    ) -> Submitted:
        """Queue a question file (JSONL, JSON, CSV, Excel or Parquet), the content of one, or rows.

        The same key with the same questions makes one job.

        A row is a question, or a record with the keys of a line of a file. The job is made inside `admitted(lines)`;
        `count_bytes` is called in each transaction that notes a picture as the caller's, before its bytes are stored;
        what it raises undoes it. `name` is what the lists of jobs call it. `where` is a
        filter beside that of the options: an object, a condition as text, or several of these texts
        (ragllava/filters.py). What is not answered by the `deadline` (a time, a duration, or a text such as `2h` or
        `18:00`), or when workers have been busy with the job for `max_gpu_seconds`, ends as expired. Raises
        InvalidInput when lines are invalid and `skip_invalid` is not set, UsageError for an unknown archive, options
        out of range, a wrong filter, and a key that belongs to other questions.
        """
        how = Submission(
            archive,
            with_filter(options, where),
            skip_invalid,
            idempotency_key,
            priority,
            name=name,
            limits=self._limits(deadline, max_gpu_seconds),
        )
        with self._asked_pictures(archive, folder_of(source), count_bytes).storing() as store_picture:
            file = self._file(source, store_picture)
        with admitted(len(file.lines)):
            return self._queue(submit_questions, file, how)

    def ask(
        self,
        question: str,
        archive: str,
        options: AnswerOptions | None = None,
        *,
        where: Where = None,
        picture: Picture | None = None,
        timeout_s: float = 600.0,
    ) -> ResultRow:
        """Ask one question, before all bulk jobs, and wait for its result; `where` as in `submit`.

        With a `picture`, pictures like it are looked at first, and the question may be empty. Raises UsageError for an
        empty or too long question, a wrong filter and a picture that is not there, AnswerTimeout when there is no
        result after `timeout_s` seconds.
        """
        return self.wait_for_answer(self.begin(question, archive, options, where=where, picture=picture), timeout_s)

    def wait_for_answer(self, job_id: int, timeout_s: float) -> ResultRow:
        """The answer to a question that was begun. Raises AnswerTimeout after `timeout_s` seconds without one."""
        if not Jobs(self._connections).has_ended(job_id, timeout_s):
            raise AnswerTimeout(
                f"no answer within {timeout_s:g} s: no answer worker is free or running (`ragllava status`); "
                f"the question stays queued as job {job_id}"
            )
        return read_at_once(self._connections.engine, _first_result, job_id)

    def begin(
        self,
        question: str,
        archive: str,
        options: AnswerOptions | None = None,
        *,
        where: Where = None,
        picture: Picture | None = None,
        count_bytes: CountBytes | None = None,
    ) -> int:
        """Ask one question as `ask` does, and return its job without waiting for it; `count_bytes` as in `submit`."""
        text = question.strip() or ("" if picture is None else WITHOUT_TEXT)
        if not text or len(text) > MAX_QUESTION_CHARACTERS:
            raise UsageError(f"a question has 1 to {MAX_QUESTION_CHARACTERS} characters, this one has {len(text)}")
        sha256 = None if picture is None else self.store_picture(picture, archive, count_bytes)
        file = QuestionFile(ASKED, [Question(0, 1, "ask", text, picture=sha256)])
        how = Submission(archive, with_filter(options, where), priority=Priority.URGENT)
        return self._queue(submit_questions, file, how).job_id

    def store_picture(self, picture: Picture, archive: str, count_bytes: CountBytes | None = None) -> str:
        """Put a picture that a question to this archive will be asked with into the store; returns its sha256 (hex).

        What comes to no question within an hour is removed. Raises UsageError for one that is not there, or too large.
        """
        pictures = self._asked_pictures(archive, None, count_bytes)
        if isinstance(picture, Path):
            picture = read_picture_file(picture)
        return pictures.store_bytes(picture) if isinstance(picture, bytes) else pictures.store(picture)

    def results(self, job_id: int, *, with_metadata: bool = False) -> Iterator[ResultRow]:
        """A row for each input line that has an outcome, in input order; with the metadata that its evidence has now.

        Raises UsageError for other jobs.
        """
        Jobs(self._connections).require_answers(job_id)
        # Without a transaction: the caller may take any time over a row, and the server ends idle transactions.
        # The HTTP API takes none: it writes the rows to disk, and its transactions state what they may see.
        engine = self._connections.engine
        if not self._connections.for_tenants:
            engine = engine.execution_options(isolation_level="AUTOCOMMIT")
        with engine.connect() as connection:
            yield from result_rows(connection, job_id, with_metadata=with_metadata)

    def page(self, job_id: int, query: ResultQuery) -> ResultPage:
        """Rows of a job for people who look, in bounded time. Raises UsageError for other jobs."""
        Jobs(self._connections).require_answers(job_id)
        return self._do(result_page, job_id, query)

    failures_by_code = forwarded(failures_by_code)
    comparable_jobs = forwarded(comparable_jobs)

    def print_results(self, job_id: int, stream: BinaryIO, *, with_metadata: bool = False) -> int:
        """Write results as JSONL to a stream; returns the number of lines. Raises UsageError for other jobs."""
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "results.jsonl"
            saved = self.save_results(job_id, path, with_metadata=with_metadata)
            with path.open("rb") as file:
                shutil.copyfileobj(file, stream)
        stream.flush()
        return saved.lines

    def save_results(
        self, job_id: int, path: str | Path, *, with_metadata: bool = False, replace_any: bool = False
    ) -> SavedResults:
        """Write results to `path` (.jsonl, .csv or .parquet) and the failed lines to `<path>.errors.jsonl`.

        `with_metadata` adds the metadata of each image of the evidence. Without failed lines there is no error file
        afterwards. Raises UsageError for another ending, a job of another kind, and, unless `replace_any`, when a file
        is there that is not an earlier result file of this job.
        """
        path = Path(path)
        format = format_by_extension(path.name)
        if path.suffix.lower() not in _RESULT_FILES or format is None:
            raise UsageError(f"{path}: the name must end in .jsonl, .csv or .parquet")
        job = Jobs(self._connections).require_answers(job_id)
        if not replace_any:
            require_same_job(path, job_id, job.archive)
        top_n, is_refresh = job.spec["options"]["top_n"], job.refresh is not None
        rows = self.results(job_id, with_metadata=with_metadata)
        lines = write_results(
            rows,
            path,
            format,
            top_n=top_n,
            is_refresh=is_refresh,
            with_metadata=with_metadata,
            columns=job.spec.get("columns", ()),
            of_pictures=WITH_PICTURES in job.spec,
        )
        errors_path = path.with_name(path.name + ".errors.jsonl")
        errors = write_errors(self.results(job_id), errors_path)
        if not errors:
            errors_path.unlink()
        return SavedResults(lines, errors)

    def fetch_results(self, job_id: int, path: str | Path, *, with_metadata: bool = False) -> str | None:
        """As `save_results`, without an error file; of an ended job the file is made once and kept in the object store.

        Returns a tag that is the same for the same bytes; None while the job has not ended, and with metadata, which
        are those of now.
        """
        path = Path(path)
        format = format_by_extension(path.name)
        job = Jobs(self._connections).require_answers(job_id)

        def make(path: Path) -> None:
            self.save_results(job_id, path, with_metadata=with_metadata, replace_any=True)

        if with_metadata or format is None:
            make(path)
            return None
        return fetch_or_make(self._connections.engine, self._connections.objects, job, path, format, make)

    def save_report(
        self,
        job_id: int,
        path: str | Path,
        answers: Mapping[str, KnownAnswer] | None = None,
        figures: JobFigures | None = None,
        *,
        all_pages: bool = False,
        replace_any: bool = False,
    ) -> int:
        """Write the results of a job as one HTML page with its pictures; returns the number of questions on it.

        A page has at most 2,000 questions; with `all_pages`, those after it are on `<path>-2.html`, `-3.html`, ….

        `answers` has right answers by custom_id, which mark those of the job; `figures` are shown above them. Raises
        UsageError for other jobs, when the page cannot be written there, and, unless `replace_any`, when a file is
        there that is not an earlier report of this job.
        """
        job, archives = Jobs(self._connections).require_answers(job_id), Archives(self._connections)
        path = Path(path)
        pages = page_paths(path, sum(job.progress.by_status.values()) if all_pages else 1)
        for page in pages if not replace_any else ():
            require_own_report(page, job_id, job.archive)
        rows = self.results(job_id)
        first = list(islice(rows, MAX_CARDS))
        return write_report(
            path,
            title=report_title(job),
            summary=summarise(
                job,
                first,
                archives.get(job.archive).images,
                report_figures(figures),
                archives.strangeness(job.archive),
            ),
            rows=report_rows(chain(first, rows), answers or {}),
            pages=pages,
            thumbnail=Pictures(self._connections).thumbnail,
        )

    def refresh(self, job_id: int, count: Count | None = None) -> tuple[int, bool]:
        """Ask those questions of an ended job again for which something has changed, in a new job.

        Returns the job, and whether it is new: an open refresh of that job is returned again. `count` is called in the
        same transaction with the number of questions that may be asked again; what it raises undoes it. Raises
        UsageError when there is nothing to refresh.
        """
        return self._queue(_refresh, job_id, count)

    def plan_refresh(self, job_id: int, on_progress: OnProgress | None = None) -> RefreshPlan:
        """Count the questions that a refresh would ask again. Retrieves in this process, by this machine's retriever.

        `on_progress` is called with the questions compared so far and all of them. Raises UsageError when there is
        nothing to refresh, ModelUnavailable without the retriever, JobRefused when it is not the archive's.
        """
        from ragllava.stages.answer.changes import plan_refresh  # loads torch

        connections = self._connections
        with closing(Resources(connections.settings)) as resources:
            return plan_refresh(connections.engine, connections.settings, resources, job_id, on_progress)


def _refresh(connection: Connection, settings: Settings, job_id: int, count: Count | None) -> tuple[int, bool]:
    refresh_id, is_new = submit_refresh(connection, settings, job_id)
    if is_new and count is not None:  # which questions have changed, the workers find out
        count(connection, answered_lines(views.view(connection, job_id)))
    return refresh_id, is_new


def _first_result(connection: Connection, job_id: int) -> ResultRow:
    return next(result_rows(connection, job_id))
