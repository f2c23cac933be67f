"""Questions in, results out."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

from ragllava.client.jobs import JobClient
from ragllava.errors import UsageError
from ragllava.records import Question
from ragllava.stages.answer.question_files import (
    MAX_QUESTION_CHARACTERS,
    QuestionFile,
    format_by_extension,
    read_questions,
)
from ragllava.stages.answer.refresh import submit_refresh
from ragllava.stages.answer.submit import ASK_PRIORITY, Submission, Submitted, submit_questions
from ragllava.stages.resources import Resources
from ragllava.stages.results.finalize import result_rows
from ragllava.stages.results.results import ResultRow, write_errors, write_results
from ragllava.stores.database import read_at_once

if TYPE_CHECKING:
    from ragllava.stages.answer.refresh_plan import OnProgress, RefreshPlan


class QuestionClient(JobClient):
    """What concerns questions and their answers."""

    def submit(self, path: Path, how: Submission) -> Submitted:
        """Queue a question file. Raises InvalidInput when lines are invalid and `how.skip_invalid` is not set."""
        submitted = submit_questions(self.engine, self.settings, read_questions(path, name=str(path)), how)
        self._dispatch()
        return submitted

    def ask(self, question: str, how: Submission, timeout_s: float = 600.0) -> ResultRow:
        """Ask one question now: it overtakes every bulk job. Raises UsageError when no answer came in time."""
        text = question.strip()
        if not text or len(text) > MAX_QUESTION_CHARACTERS:
            raise UsageError(f"a question has 1 to {MAX_QUESTION_CHARACTERS} characters, this one has {len(text)}")
        file = QuestionFile("ask", [Question(0, 1, "ask", text)])
        urgent = Submission(how.archive, how.options, priority=ASK_PRIORITY)
        submitted = submit_questions(self.engine, self.settings, file, urgent)
        self._dispatch()
        job = self.wait(submitted.job_id, timeout_s=timeout_s)
        if not job.is_final:
            raise UsageError(
                f"no answer within {timeout_s:g} s: no answer worker is free or running (`ragllava status`); "
                f"the question stays queued as job {job.job_id}"
            )
        return read_at_once(self.engine, lambda connection: next(result_rows(connection, job.job_id)))

    def results(self, job_id: int) -> Iterator[ResultRow]:
        """One row for every input line that has an outcome, in input order."""
        self._require_answers(job_id)
        with self.engine.connect() as connection:
            yield from result_rows(connection, job_id)

    def save_results(self, job_id: int, path: Path) -> tuple[int, int]:
        """Write results to `path` (.jsonl, .csv or .parquet) and the failed lines to `<path>.errors.jsonl`.

        Returns the number of result lines and of error lines; without any, no error file is left there.
        """
        form = format_by_extension(path.name)
        if form is None:
            raise UsageError(f"{path}: the name must end in .jsonl, .csv or .parquet")
        job = self._require_answers(job_id)
        top_n, is_refresh = job.spec["options"]["top_n"], job.refresh is not None
        lines = write_results(self.results(job_id), path, form, top_n=top_n, is_refresh=is_refresh)
        errors_path = path.with_name(path.name + ".errors.jsonl")
        errors = write_errors(self.results(job_id), errors_path)
        if not errors:
            errors_path.unlink()
        return lines, errors

    def refresh(self, job_id: int) -> tuple[int, bool]:
        """Ask those questions of an ended answer job again for which something has changed, in a new job.

        Returns that job, and whether it is new: a refresh that is open already is not begun twice. Raises UsageError
        when there is nothing to refresh.
        """
        submitted = submit_refresh(self.engine, self.settings, job_id)
        self._dispatch()
        return submitted

    def plan_refresh(self, job_id: int, on_progress: OnProgress | None = None) -> RefreshPlan:
        """What a refresh would ask again. Retrieves in this process, so the retriever must be on this machine."""
        from ragllava.stages.answer.refresh_plan import plan_refresh  # loads torch

        with closing(Resources(self.settings)) as resources:
            return plan_refresh(self.engine, self.settings, resources, job_id, on_progress)
