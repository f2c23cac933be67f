"""The Python client: what the command line does, for programs.

    client = Client(load_settings())
    job = client.submit(Path("questions.jsonl"), Submission(archive="harbour"))
    client.wait(job.job_id)
    for row in client.results(job.job_id): ...

Everything is written to Postgres first; the message to the workers is only a hint, so a submit succeeds with no
broker in reach, and a worker finds the job at its next tick.
"""

from __future__ import annotations

import io
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from PIL import Image
from sqlalchemy import Connection, Engine

from ragllava.errors import ImageRejected, ObjectCorrupt, ObjectMissing, UsageError
from ragllava.images import decode
from ragllava.jobs import control
from ragllava.jobs.control import JobView, ShardView
from ragllava.jobs.states import JobState
from ragllava.models.profiles import get_profile
from ragllava.records import JobKind, NoisyReason, NoisyState, Question, Role, StoredImage
from ragllava.settings import Settings
from ragllava.stages.binding import bind_archive, unbind_archive
from ragllava.stages.bound import ScanReport, scan
from ragllava.stages.captions import CaptionBook, read_captions
from ragllava.stages.feedback import QuestionView, StoredFeedback, store_feedback, view_question
from ragllava.stages.feedback_files import feedback_of, read_feedback
from ragllava.stages.finalize import result_rows
from ragllava.stages.gaps import Gap, find_gaps
from ragllava.stages.label_studio import read_annotations
from ragllava.stages.question_files import (
    MAX_QUESTION_CHARACTERS,
    QuestionFile,
    format_by_extension,
    read_questions,
)
from ragllava.stages.refresh import submit_refresh
from ragllava.stages.reindex import ReindexRequest, submit_reindex, submit_switch
from ragllava.stages.resources import Resources
from ragllava.stages.results import ResultRow, write_errors, write_results
from ragllava.stages.sources import list_sources
from ragllava.stages.submit import ASK_PRIORITY, Submission, Submitted, submit_files, submit_questions
from ragllava.stages.watched import FolderChanges, WatchedFolder
from ragllava.stores import archive, indexes, noisy, presence, registry
from ragllava.stores.archive import ArchiveSummary, RejectedFile
from ragllava.stores.bindings import Binding, BindingRole, BindingView, view_bindings
from ragllava.stores.database import in_transaction, make_engine
from ragllava.stores.indexes import IndexDetails
from ragllava.stores.noisy import NoisyView
from ragllava.stores.objects import ObjectStore, content_key
from ragllava.stores.presence import WorkerView
from ragllava.stores.registry import ModelVersion, VersionView
from ragllava.training.request import TrainingPlan, TrainingRequest, plan_training, submit_training

if TYPE_CHECKING:
    from ragllava.stages.refresh_plan import OnProgress, RefreshPlan

T = TypeVar("T")

THUMBNAIL_SIDE = 256


@dataclass(frozen=True, slots=True)
class Ingested:
    """A submitted ingest job, and the captions of the caption file that fit no file."""

    job_id: int
    total: int
    unused_captions: list[str]


class Client:
    """Talks to Postgres and the object store; tells the workers through the queue."""

    def __init__(self, settings: Settings) -> None:
        """Connects at the first call."""
        self.settings = settings

    @cached_property
    def engine(self) -> Engine:
        """The connection pool; `close` it when done."""
        return make_engine(self.settings.require_database(), name="ragllava client")

    @cached_property
    def objects(self) -> ObjectStore:
        """The S3 store."""
        return ObjectStore(self.settings)

    def close(self) -> None:
        """Close the connections, if there are any."""
        if "engine" in self.__dict__:  # else asking for it here would make one
            self.engine.dispose()

    def ingest(self, paths: Sequence[Path], archive_name: str, captions: Path | None = None) -> Ingested:
        """Queue the pictures under `paths` for an archive, which is created if it is new.

        The paths are read by the ingest workers, which must see them under the same names. Raises UsageError when
        there is nothing to ingest.
        """
        book = read_captions(captions) if captions else None
        files = list(list_sources(paths, book))
        if not files:
            raise UsageError(f"no pictures in {', '.join(map(str, paths))}")
        submitted = submit_files(self.engine, self.settings, archive_name=archive_name, files=files)
        self._dispatch()
        return Ingested(submitted.job_id, submitted.total, _unused(book))

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
        job = self.wait(submitted.job_id, timeout_s=timeout_s, poll_s=0.05)
        if not job.is_final:
            raise UsageError(
                f"no answer within {timeout_s:g} s: no answer worker is free or running (`ragllava status`); "
                f"the question stays queued as job {job.job_id}"
            )
        return next(self.results(submitted.job_id))

    def plan_training(self, request: TrainingRequest) -> TrainingPlan:
        """What a training now would learn from. Raises UsageError for what no training can do."""
        return self._do(lambda c: plan_training(c, request, self.settings))

    def train(self, request: TrainingRequest, idempotency_key: str | None = None) -> int:
        """Queue a training; returns its job.

        Raises UsageError when too little is labelled, or while another job trains this role.
        """
        job_id, _ = submit_training(self.engine, self.settings, request, idempotency_key)
        self._dispatch()
        return job_id

    def bind(
        self, archive_name: str, address: str, role: BindingRole, options: Mapping[str, Any] | None = None
    ) -> Binding:
        """Bind `s3://bucket/prefix/` to an archive, which is created if it is new.

        Raises UsageError for an address that is none, a bucket that is not there or is our own, and an overlap.
        """
        return bind_archive(self.engine, self.objects, archive_name, address, role, dict(options or {}))

    def unbind(self, archive_name: str, address: str) -> Binding:
        """Forget a binding; what it brought stays in the archive. Raises UsageError for what is not bound to it."""
        return unbind_archive(self.engine, archive_name, address)

    def bindings(self, archive_name: str) -> list[BindingView]:
        """Which parts of buckets feed an archive, and what is known of them."""
        return self._do(lambda c: view_bindings(c, archive.get_archive(c, archive_name).archive_id))

    def scan(self, archive_name: str) -> list[ScanReport]:
        """Compare the buckets that an archive is bound to with what is known of them, and repair the difference."""
        reports = scan(self.engine, self.settings, self.objects, archive_name)
        self._dispatch()
        return reports

    def follow(self, watched: WatchedFolder) -> FolderChanges:
        """Make an archive what a folder is now; `watched` remembers what was offered. Raises UsageError."""
        changes = watched.compare(self.engine, self.settings)
        if changes.job_id is not None:
            self._dispatch()
        return changes

    def job(self, job_id: int) -> JobView:
        """One job. Raises UsageError for an unknown id."""
        return self._do(lambda c: control.view(c, job_id))

    def jobs(self, *, limit: int = 50, only_open: bool = False) -> list[JobView]:
        """The newest jobs first."""
        return self._do(lambda c: control.list_jobs(c, limit=limit, only_open=only_open))

    def troubles(self, job_id: int) -> list[ShardView]:
        """The shards of a job that run or went wrong, with the reason."""
        return self._do(lambda c: control.troubled_shards(c, job_id))

    def cancel(self, job_id: int) -> None:
        """Stop a job; answers that are there stay."""
        self._do(lambda c: control.cancel(c, job_id))

    def pause(self, job_id: int) -> None:
        """Let nothing new of a job begin."""
        self._do(lambda c: control.pause(c, job_id))

    def resume(self, job_id: int) -> None:
        """Let a paused job go on."""
        self._do(lambda c: control.resume(c, job_id))
        self._dispatch()

    def retry(self, job_id: int) -> int:
        """Try the failed, dead and cancelled inputs of an ended job again; returns how many."""
        per_shard = {
            JobKind.ANSWER: self.settings.questions_per_shard,
            JobKind.INGEST: self.settings.files_per_shard,
            JobKind.TRAIN: 1,
            JobKind.REINDEX: self.settings.files_per_shard,
            JobKind.CHORE: 1,
        }[self.job(job_id).kind]
        number = self._do(lambda c: control.retry(c, job_id, per_shard))
        self._dispatch()
        return number

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
        from ragllava.stages.refresh_plan import plan_refresh  # loads torch

        with closing(Resources(self.settings)) as resources:
            return plan_refresh(self.engine, self.settings, resources, job_id, on_progress)

    def wait(
        self,
        job_id: int,
        *,
        on_progress: Callable[[JobView], None] | None = None,
        timeout_s: float | None = None,
        poll_s: float = 0.5,
    ) -> JobView:
        """Wait until a job has ended, or until `timeout_s`; the view returned says which."""
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        while True:
            job = self.job(job_id)
            if on_progress is not None:
                on_progress(job)
            if job.is_final or (deadline is not None and time.monotonic() > deadline):
                return job
            time.sleep(poll_s)

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

    def feedback(
        self,
        said: Path | Iterable[Mapping[str, Any]],
        *,
        job_id: int | None = None,
        source: str = "person",
        skip_invalid: bool = False,
    ) -> StoredFeedback:
        """Store what a file (.jsonl, .csv), or records with the same keys, say about answers; see stages/feedback.py.

        Raises InvalidInput when a line is invalid and `skip_invalid` is not set; then nothing was stored.
        """
        file = (
            read_feedback(said, name=str(said), job_id=job_id)
            if isinstance(said, Path)
            else feedback_of(said, job_id=job_id)
        )
        return store_feedback(self.engine, file, source=source, skip_invalid=skip_invalid)

    def noisy_cases(
        self,
        archive_name: str,
        *,
        state: NoisyState | None = None,
        reason: NoisyReason | None = None,
        limit: int | None = None,
    ) -> list[NoisyView]:
        """The noisy cases of an archive, those of the newest job first."""
        return self._do(
            lambda c: noisy.list_cases(
                c, archive.get_archive(c, archive_name).archive_id, state=state, reason=reason, limit=limit
            )
        )

    def look_into(self, job_id: int, custom_id: str) -> QuestionView:
        """One question with its candidates, reasons and newest label. Raises UsageError for an unknown one."""
        self._require_answers(job_id)
        return self._do(lambda c: view_question(c, job_id, custom_id))

    def picture_address(self, image: StoredImage, expires_s: int | None = None) -> str:
        """Where Label Studio finds a picture: its `s3://` address, or a signed one that ends after `expires_s`."""
        key = content_key(image.sha256)
        if expires_s is None:
            return f"s3://{self.objects.bucket}/{key}"
        return self.objects.presigned_url(key, expires_s)

    def review(self, path: Path, *, skip_invalid: bool = False) -> tuple[StoredFeedback, int]:
        """Store the labels of Label Studio's JSON export; also returns how many tasks nobody has annotated yet."""
        file, waiting = read_annotations(path, name=str(path))
        return store_feedback(self.engine, file, skip_invalid=skip_invalid), waiting

    def thumbnail(self, sha256: str) -> bytes | None:
        """A small JPEG of a stored picture, None when it cannot be read."""
        try:
            picture = decode(self.objects.get_content(sha256), max_side=THUMBNAIL_SIDE).picture
        except (ObjectMissing, ObjectCorrupt, ImageRejected):
            return None
        return _jpeg(picture)

    def archive(self, name: str) -> ArchiveSummary:
        """What an archive holds. Raises UsageError for an unknown name."""
        return self._do(lambda c: archive.archive_summary(c, archive.get_archive(c, name)))

    def archives(self) -> list[ArchiveSummary]:
        """All archives by name."""
        return self._do(lambda c: [archive.archive_summary(c, found) for found in archive.list_archives(c)])

    def rejected(self, name: str) -> list[RejectedFile]:
        """The files of an archive whose latest ingest was refused, with the reason."""
        return self._do(lambda c: archive.rejected_files(c, archive.get_archive(c, name).archive_id))

    def gaps(self, name: str) -> list[Gap]:
        """The images of an archive that no question can find, and why."""
        return self._do(lambda c: find_gaps(c, archive.get_archive(c, name).archive_id))

    def reindex(self, request: ReindexRequest) -> int:
        """Queue a reindexing; returns its job. Raises UsageError for what cannot be done."""
        job_id = submit_reindex(self.engine, self.settings, request)
        self._dispatch()
        return job_id

    def indexes(self, archive_name: str | None = None) -> list[IndexDetails]:
        """The indexes of an archive, or of all, by archive and age."""
        if archive_name is None:
            return self._do(indexes.all_indexes)
        return self._do(lambda c: indexes.all_indexes(c, archive.get_archive(c, archive_name).archive_id))

    def index(self, index_id: int) -> IndexDetails:
        """One index. Raises UsageError for an unknown id."""
        return self._do(lambda c: indexes.find_index(c, index_id))

    def switch_index(self, index_id: int) -> int:
        """Queue a job that fills this index and then answers from it; returns the job."""
        job_id = submit_switch(self.engine, self.settings, index_id)
        self._dispatch()
        return job_id

    def drop_index(self, index_id: int) -> None:
        """Forget an index and its vectors. Raises UsageError for the active one, and for one that a job fills."""
        self._do(lambda c: indexes.drop_index(c, index_id))

    def versions(self, role: Role | None = None) -> list[VersionView]:
        """The model versions of this profile, by role, the newest first."""
        return self._do(lambda c: registry.list_versions(c, self.profile_name, role))

    def version(self, name: str, role: Role | None = None) -> VersionView:
        """One version by its name or the beginning of it. Raises UsageError for none or several."""
        return self._do(lambda c: registry.find_version(c, self.profile_name, name, role))

    def promote(self, name: str, role: Role, reason: str) -> ModelVersion:
        """Make a version champion: workers take it up at their next shard. Raises UsageError for an unknown one."""
        return self._do(lambda c: registry.promote(c, self.profile_name, role, name, reason))

    def rollback(self, role: Role) -> ModelVersion:
        """Bring back what the champion replaced. Raises UsageError when there is nothing to go back to."""
        profile = self.profile_name
        before = self._do(lambda c: registry.champion(c, role, profile))

        def once(connection: Connection) -> ModelVersion:
            # Tried again after a commit whose answer was lost, it must not go one version further back.
            present = registry.champion(connection, role, profile)
            return present if present and present != before else registry.rollback(connection, profile, role)

        return self._do(once)

    @property
    def profile_name(self) -> str:
        """The profile whose versions are meant. Raises SettingsError for a wrong one."""
        return get_profile(self.settings).name

    def workers(self) -> list[WorkerView]:
        """All known workers."""
        return self._do(presence.list_workers)

    def _do(self, work: Callable[[Connection], T]) -> T:
        return in_transaction(self.engine, work)

    def _dispatch(self) -> None:
        from workers.app import dispatch_now

        dispatch_now(self.engine, self.settings)

    def _require_answers(self, job_id: int) -> JobView:
        job = self.job(job_id)
        if job.kind != JobKind.ANSWER:
            article = "an" if job.kind is JobKind.INGEST else "a"
            raise UsageError(
                f"job {job_id} is {article} {job.kind} job and has no answers; see `ragllava jobs show {job_id}`"
            )
        return job


def is_success(state: JobState) -> bool:
    """Whether a command that waited for a job should exit with 0: at least one input succeeded."""
    return state in (JobState.COMPLETED, JobState.COMPLETED_WITH_ERRORS)


def _unused(book: CaptionBook | None) -> list[str]:
    return list(book.unused()) if book else []


def _jpeg(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=85)
    return buffer.getvalue()
