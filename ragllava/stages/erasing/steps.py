"""The steps of an erasure: short transactions that any process can continue after a crash (stores/maintenance/).

An erasure begins with one transaction that inserts its line and makes sure that nothing new refers to what is erased.
`continue_erasure` does the steps that are left, in an order in which a reference goes before what it refers to, and
rows go before objects. Commands call it at once; the tick continues what a killed command left.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Concatenate, ParamSpec, TypeVar

from sqlalchemy import Connection, Engine

from ragllava.errors import UsageError
from ragllava.jobs import views
from ragllava.jobs.isolation import Isolation
from ragllava.records import JobKind
from ragllava.stages.results.finalize import publish_result, result_lock
from ragllava.stores.archives import blobs, word_index
from ragllava.stores.database import in_transaction
from ragllava.stores.learning import trainings
from ragllava.stores.maintenance import erasing_content, erasing_images, erasing_jobs, erasures
from ragllava.stores.maintenance.erasures import ErasureKind, OpenErasure, Pending
from ragllava.stores.objects import ObjectStore

log = logging.getLogger(__name__)
P = ParamSpec("P")
T = TypeVar("T")

IDLE_S = 30.0  # without progress, after which the tick continues an erasure

Step = Callable[[str], None]  # called before each step, with its name; what it raises stops the erasure there


def no_step(_name: str) -> None:
    """Nothing happens between the steps."""


@dataclass(frozen=True, slots=True)
class Eraser:
    """The connections of an erasure; `before_step` is called before each of its steps."""

    engine: Engine
    objects: ObjectStore
    before_step: Step = no_step

    def continue_erasure(self, erasure_id: int) -> tuple[int, ...]:
        """Do the steps that are left; returns the jobs that it waits for: their rows are cleaned when they have ended.

        Raises ServiceUnavailable. Two processes may do the same steps at once.
        """
        erasure = in_transaction(self.engine, erasures.load, erasure_id)
        if erasure is None:
            return ()
        waits_for: tuple[int, ...] = ()
        if erasure.kind is ErasureKind.JOB and erasure.target_id is not None:
            self._erase_job(erasure_id, erasure.target_id)
        elif erasure.kind is ErasureKind.ARCHIVE and erasure.archive_id is not None:
            self._erase_archive(erasure_id, erasure.archive_id)
        elif erasure.archive_id is not None:
            waits_for = self._erase_images(erasure, erasure.archive_id)
        if not waits_for:
            self.before_step("finish")
            in_transaction(self.engine, erasures.finish, erasure_id)
            log.info("erased", extra={"action": "erased", "erasure": erasure_id, "kind": erasure.kind.value})
        return waits_for

    def continue_all(self, idle_s: float = IDLE_S) -> int:
        """Continue all erasures without progress for so many seconds; returns how many are finished now."""
        finished = 0
        open_ids = {
            f"removal {erasure_id}": erasure_id
            for erasure_id in in_transaction(self.engine, erasures.open_erasures, idle_s)
        }
        isolation = Isolation(self.engine, "removals", open_ids)
        for subject, erasure_id in open_ids.items():
            # Without an idle time a person asks, who does not wait for the next attempt.
            if idle_s == 0 or not isolation.is_postponed(subject):
                # None: it failed. An empty list of jobs that it waits for: it is finished.
                finished += isolation.run(subject, self.continue_erasure, erasure_id) == ()
        return finished

    # Images

    def _erase_images(self, erasure: OpenErasure, archive_id: int) -> tuple[int, ...]:
        pending = erasure.pending
        if pending.is_requested:
            pending = self._commit("retire", _retire, erasure.erasure_id, archive_id, pending)
        # A running shard may still write a candidate: its job is cleaned now, and again when it has ended.
        waits_for = in_transaction(self.engine, erasing_jobs.unfinished_jobs, pending.jobs)
        if pending.is_waiting and waits_for == set(pending.jobs):
            in_transaction(self.engine, erasures.progress, erasure.erasure_id, {})
            return pending.jobs
        for job_id in pending.jobs:
            for first in in_transaction(self.engine, erasing_images.question_range, job_id):
                pending = self._commit("answers", _clean_answers, erasure.erasure_id, job_id, first, pending)
            left = pending if job_id in waits_for else pending.without(job_id)
            self._count("job", erasure.erasure_id, erasing_images.clean_job, job_id, pending)
            in_transaction(self.engine, erasures.progress, erasure.erasure_id, {}, left)
            pending = left
        self._commit("reports", erasing_images.clean_reports, archive_id, pending)
        is_removal = erasure.kind is ErasureKind.PICTURES
        for start in range(0, len(pending.images), erasing_images.IMAGES_PER_STEP):
            page = pending.images[start : start + erasing_images.IMAGES_PER_STEP]
            self._count("images", erasure.erasure_id, erasing_images.delete, archive_id, page, is_removal)
        self._commit("words", word_index.forget, archive_id, pending.words)
        self._delete_content(erasure.erasure_id, pending.hashes)
        self._republish(erasure.erasure_id, pending)
        in_transaction(self.engine, erasures.progress, erasure.erasure_id, {}, replace(pending, is_waiting=True))
        return tuple(sorted(waits_for))

    def _republish(self, erasure_id: int, pending: Pending) -> None:
        """Write the result files of the jobs again, also those in an outbox. An open job has none yet."""
        still_open = in_transaction(self.engine, erasing_jobs.unfinished_jobs, pending.republished)
        for job_id in pending.republished:
            if job_id in still_open:
                continue
            self.before_step("results")
            try:
                publish_result(self.engine, self.objects, job_id)
            except UsageError:  # the job was removed meanwhile, with its files
                continue
            in_transaction(self.engine, erasures.progress, erasure_id, {"results_written_again": 1})

    # Jobs

    def _erase_job(self, erasure_id: int, job_id: int) -> None:
        while self._count("inputs", erasure_id, erasing_jobs.delete_inputs, job_id):
            pass
        # The pictures of its questions, also those that an interrupted erasure has marked.
        if marked := in_transaction(self.engine, erasing_content.marked_content):
            self._delete_content(erasure_id, marked)
        self.before_step("files")
        with result_lock(self.engine, job_id):  # who writes them at this moment would write them again
            removed = self.objects.remove_prefix(f"jobs/{job_id}/")
        folder = in_transaction(self.engine, _training_folder, job_id)
        if folder is not None and folder not in in_transaction(self.engine, erasing_jobs.training_folders):
            removed += self.objects.remove_prefix(f"{folder}/")
        in_transaction(self.engine, erasures.progress, erasure_id, {"files_of_jobs": removed})
        # Last, as its row says which folder is a training's.
        self._count("job", erasure_id, erasing_jobs.delete_job, job_id)

    # Archives

    def _erase_archive(self, erasure_id: int, archive_id: int) -> None:
        while self._commit("bound objects", erasing_jobs.delete_bound_objects, archive_id):
            pass
        self._commit("bindings", erasing_jobs.delete_bindings, archive_id)
        while job_ids := in_transaction(self.engine, erasing_jobs.jobs_of_archive, archive_id):
            for job_id in job_ids:
                self._commit("job", erasing_jobs.stop_job, job_id)
                self._erase_job(erasure_id, job_id)
        while self._commit("indexes", erasing_jobs.drop_next_index, archive_id):
            pass
        while self._count("images", erasure_id, erasing_jobs.delete_images, archive_id):
            pass
        self._delete_content(erasure_id, in_transaction(self.engine, erasing_content.marked_content))
        while words := self._commit("word counts", erasing_jobs.delete_word_counts, archive_id):
            self._commit("vocabulary", word_index.forget, None, sorted(set(words)))
        self._count("archive", erasure_id, erasing_jobs.delete_archive, archive_id)

    # Steps

    def _delete_content(self, erasure_id: int, hashes: Iterable[str]) -> None:
        """Each object in its own transaction, so that an importer of the same bytes waits for no other."""
        deleted = 0
        for sha256 in self._commit("content", erasing_content.mark_content, list(hashes)):
            self.before_step("object")
            deleted += in_transaction(self.engine, blobs.delete_blob, sha256, self.objects.delete_content)
        in_transaction(self.engine, erasures.progress, erasure_id, {"objects": deleted})

    def _commit(self, name: str, work: Callable[Concatenate[Connection, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        self.before_step(name)
        return in_transaction(self.engine, work, *args, **kwargs)

    def _count(
        self,
        name: str,
        erasure_id: int,
        work: Callable[Concatenate[Connection, P], Counter[str]],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> Counter[str]:
        """A step whose counts are added to the erasure's line in the same transaction."""

        def with_progress(connection: Connection) -> Counter[str]:
            counts = work(connection, *args, **kwargs)
            erasures.progress(connection, erasure_id, counts)
            return counts

        return self._commit(name, with_progress)


def _retire(connection: Connection, erasure_id: int, archive_id: int, requested: Pending) -> Pending:
    """What is left to do when the images that somebody asked for are retired, which is stored at once."""
    pending = erasing_images.retire(connection, archive_id, requested.images)
    erasures.progress(connection, erasure_id, {}, pending)
    return pending


def _clean_answers(connection: Connection, erasure_id: int, job_id: int, first: int, pending: Pending) -> Pending:
    """A page of questions; returns what is left to do, which is stored in the same transaction."""
    counts = erasing_images.clean_answers(connection, job_id, first, pending)
    if counts.pop("results", 0) and job_id not in pending.republished:
        pending = replace(pending, republished=(*pending.republished, job_id))
    erasures.progress(connection, erasure_id, counts, pending)
    return pending


def _training_folder(connection: Connection, job_id: int) -> str | None:
    """The folder of a training that is still there."""
    try:
        job = views.view(connection, job_id)
    except UsageError:
        return None
    return trainings.folder_of(job_id, job.created_at) if job.kind == JobKind.TRAIN else None
