"""Question files before they are submitted: what is in them, and how long a job of them would take."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from ragllava.client.connections import Namespace
from ragllava.client.requests import Requests
from ragllava.client.sources import Source, folder_of, read_source
from ragllava.errors import LineError
from ragllava.filters import joined_filters, parse_where
from ragllava.jobs.deadlines import LONGEST_S, JobLimits, parse_limits
from ragllava.records import AnswerOptions, Priority, Question
from ragllava.stages.answer.asked_pictures import AskedPictures, CountBytes
from ragllava.stages.answer.estimating import Estimate, TimedSample, estimate_job
from ragllava.stages.answer.question_files import QuestionFile, StorePicture
from ragllava.stages.answer.remote_pictures import RemotePictures
from ragllava.stages.answer.submit import Submission, check_questions
from ragllava.stores.access.uploads import get_upload
from ragllava.stores.archives.archive import Archive

Where = str | Iterable[str] | Mapping[str, Any] | None
Deadline = str | timedelta | datetime | None
MOST_TIMED = 64  # questions of a sample
MOST_GPU_SECONDS = LONGEST_S  # of a budget


@dataclass(frozen=True, slots=True)
class Checked:
    """What is in a question file: its lines, the valid questions, every error, and how long its job would take."""

    total: int
    valid: list[Question]
    errors: list[LineError]
    notes: tuple[str, ...]
    estimate: Estimate


class QuestionFiles(Namespace):
    """What is done with question files without making a job."""

    def check(
        self,
        source: Source,
        archive: str,
        options: AnswerOptions | None = None,
        *,
        where: Where = None,
        priority: Priority = Priority.NORMAL,
    ) -> Checked:
        """What `submit` would find in a question file, and how long its job would take, by earlier jobs; creates
        nothing.

        Raises InvalidInput when the whole file cannot be read, UsageError as `submit`.
        """
        return self.estimate(source, archive, options, where=where, priority=priority, sample=0)

    def estimate(  # noqa: PLR0913 - each is an option of `ragllava submit --estimate`, or of its caller
        self,
        source: Source,
        archive: str,
        options: AnswerOptions | None = None,
        *,
        where: Where = None,
        priority: Priority = Priority.NORMAL,
        sample: int = 32,
        admitted: Callable[[int], AbstractContextManager[None]] = lambda questions: nullcontext(),
        timeout_s: float = 120.0,
    ) -> Checked:
        """As `check`; if no earlier job tells, a worker is timed with so many of the questions first (0: none; at most
        64), inside `admitted(number)`. The answers of these are not stored. Raises AnswerTimeout when the worker takes
        more than `timeout_s` seconds."""
        how = Submission(archive, with_filter(options, where), priority=priority)
        file = self._file(source, self._asked_pictures(archive, folder_of(source)).check)
        searched, chosen, file = self._do(check_questions, file, how)
        estimate = self._estimate(searched, chosen, file, how, None)
        asked = [question for question in file.valid if question.picture is None]
        if sample and asked and estimate.slots and estimate.basis == "nothing":
            most = min(sample, MOST_TIMED)
            chosen_few = asked[:: max(1, len(asked) // most)][:most]
            with admitted(len(chosen_few)):
                timed = Requests(self._connections).time_questions(archive, chosen_few, chosen, timeout_s)
            estimate = self._estimate(searched, chosen, file, how, timed)
        return Checked(len(file.lines), file.valid, file.errors, file.notes, estimate)

    def _estimate(
        self, searched: Archive, options: AnswerOptions, file: QuestionFile, how: Submission, timed: TimedSample | None
    ) -> Estimate:
        settings, number = self._connections.settings, len(file.valid)
        return self._do(estimate_job, settings, searched.archive_id, options, number, how.priority, timed)

    def _limits(self, deadline: Deadline, max_gpu_seconds: float | None) -> JobLimits:
        """Times without a zone are those of this machine, of callers of the HTTP API those of UTC."""
        if isinstance(deadline, timedelta):
            deadline = f"{max(0, round(deadline.total_seconds()))}s"
        elif isinstance(deadline, datetime):
            deadline = deadline.isoformat()
        return parse_limits(deadline, max_gpu_seconds, UTC if self._connections.for_tenants else None)

    def _file(self, source: Source, store_picture: StorePicture) -> QuestionFile:
        """What was sent; callers of the HTTP API gave its name and no folder."""
        file = read_source(source, store_picture)
        if self._connections.for_tenants and isinstance(source, str | Path):
            return replace(file, name=Path(source).name)
        return file

    def _asked_pictures(
        self, archive: str, folder: Path | None, count_bytes: CountBytes | None = None
    ) -> AskedPictures:
        """Where questions may have their pictures from; callers of the HTTP API read no files of the server."""
        connections = self._connections
        return AskedPictures(
            connections.engine,
            connections.objects,
            archive,
            RemotePictures.of(connections.settings),
            upload=lambda file_id: self._do(get_upload, file_id),
            folder=None if connections.for_tenants else folder,
            count_bytes=count_bytes,
        )


def with_filter(options: AnswerOptions | None, where: Where) -> AnswerOptions:
    """The options with one more filter."""
    options = options or AnswerOptions()
    return replace(options, filter=joined_filters(options.filter, parse_where(where)))
