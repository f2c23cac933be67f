"""A worker in this process for tests of the stages: real stores, the real mini models, no Celery."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from sqlalchemy import select, update

from ragllava.jobs.deadlines import NO_LIMITS, JobLimits
from ragllava.jobs.kinds import KINDS
from ragllava.jobs.runner import ShardContext, run_shard
from ragllava.jobs.views import JobView
from ragllava.models.bundle import ModelBundle
from ragllava.records import AnswerOptions, Depth, Retrieval
from ragllava.settings import Settings
from ragllava.source_files import SourceFile
from ragllava.stages.answer.question_files import read_questions
from ragllava.stages.answer.submit import Submission, Submitted, submit_questions
from ragllava.stages.ingest.captions import read_captions
from ragllava.stages.ingest.sources import list_sources
from ragllava.stages.ingest.submit import submit_files
from ragllava.stages.resources import Resources
from ragllava.stages.results.finalize import result_rows
from ragllava.stages.results.results import ResultRow
from ragllava.stores.archives import archive, vectors
from ragllava.stores.database import in_transaction, make_engine
from ragllava.stores.schema import files, images, shards
from tests.support.job_rows import WORKER, Desk

Stage = Callable[[ShardContext[Resources]], None]
ARCHIVE = "postcards"

# Options of the paper's set-up: the candidates are the nearest pictures, and all of them are reranked.
PAPER: Mapping[str, Any] = {"retrieval": Retrieval.PICTURE, "depth": Depth.FIXED}


@contextmanager
def stages_replaced(stages: Mapping[str, Stage]) -> Iterator[None]:
    """In this block, shards of these kinds run other stages than their own."""
    before = dict(KINDS)
    KINDS.update({name: replace(KINDS[name], stage=stage) for name, stage in stages.items()})
    try:
        yield
    finally:
        KINDS.update(before)


@dataclass(frozen=True)
class Workshop(Desk):
    """A desk whose worker has models, and the calls that tests of the stages make most often.

    `stages` run instead of those of their kinds.
    """

    resources: Resources
    stages: Mapping[str, Stage] = field(default_factory=dict)
    opened: list[Resources] = field(default_factory=list)

    def run(self, limit: int = 100) -> int:
        """Run shards until none is ready; returns how many runs that took."""
        for count in range(limit):
            ready = self.ids("queued") or self.dispatch()
            if not ready:
                return count
            self.run_shard(ready[0])
        raise AssertionError("the queue never runs dry")

    def run_once(self) -> int:
        """Run the first ready shard only; returns its id."""
        shard_id = (self.ids("queued") or self.dispatch())[0]
        assert self.run_shard(shard_id)
        return shard_id

    def run_shard(self, shard_id: int) -> bool:
        """Run a queued shard; returns whether it was there to run."""
        with stages_replaced(self.stages):
            return run_shard(shard_id, WORKER, self.settings, self.engine, self.resources)

    def ingest(self, *paths: Path, captions: Path | None = None, archive_name: str = ARCHIVE) -> JobView:
        """Ingest paths to the end, as `ragllava ingest` does."""
        book = read_captions(captions) if captions else None
        return self.ingest_files(list(list_sources(paths, book)), archive_name)

    def ingest_files(self, listed: Sequence[SourceFile], archive_name: str = ARCHIVE) -> JobView:
        """Ingest listed files to the end."""
        job_id = in_transaction(self.engine, submit_files, self.settings, archive_name=archive_name, files=listed)
        self.run()
        return self.job(job_id)

    def submit(
        self, texts: Sequence[str], archive_name: str = ARCHIVE, limits: JobLimits = NO_LIMITS, **options: Any
    ) -> Submitted:
        """Queue questions q0, q1, …; `options` are those of AnswerOptions."""
        lines = [json.dumps({"custom_id": f"q{number}", "question": text}) for number, text in enumerate(texts)]
        file = read_questions("\n".join(lines).encode(), name="questions.jsonl")
        how = Submission(archive_name, AnswerOptions(**options), limits=limits)
        return in_transaction(self.engine, submit_questions, self.settings, file, how)

    def ask(self, texts: Sequence[str], archive_name: str = ARCHIVE, **options: Any) -> list[ResultRow]:
        """Answer questions to the end; one row each, in order."""
        submitted = self.submit(texts, archive_name, **options)
        self.run()
        return self.rows(submitted.job_id)

    def rows(self, job_id: int) -> list[ResultRow]:
        """The results of a job as far as they are there."""
        with self.engine.begin() as connection:
            return list(result_rows(connection, job_id))

    def with_models(self, **replaced: object) -> Workshop:
        """The same desk with empty caches and some of the models (`reranker`, …) replaced."""
        return self._with(self.settings, _Models(self.resources.models, replaced))

    def with_settings(self, **values: Any) -> Workshop:
        """The same desk with other settings and empty caches."""
        return self._with(self.settings.model_copy(update=values), self.resources.models)

    def _with(self, settings: Settings, models: Any) -> Workshop:
        made = replace(self, settings=settings, resources=make_resources(settings, models))
        self.opened.append(made.resources)
        return made

    def close(self) -> None:
        """End the decoders and threads of this desk and of all that were made from it."""
        for resources in [self.resources, *self.opened]:
            resources.close()

    def archive_id(self, archive_name: str = ARCHIVE) -> int:
        """The id of an archive that is there."""
        with self.engine.begin() as connection:
            return archive.get_archive(connection, archive_name).archive_id

    def outcomes(self, job_id: int) -> list[tuple[str, str | None, str | None]]:
        """(source, status, reason) of each file of an ingest job, in order."""
        query = select(files.c.source, files.c.status, files.c.reason).where(files.c.job_id == job_id)
        with self.engine.begin() as connection:
            return [(row.source, row.status, row.reason) for row in connection.execute(query.order_by(files.c.file_no))]

    def images(self, archive_name: str = ARCHIVE) -> dict[str, Any]:
        """The rows of an archive's images that are not retired, by source, in the order in which they were stored."""
        query = select(images).where(images.c.archive_id == self.archive_id(archive_name), ~images.c.retired)
        with self.engine.begin() as connection:
            return {row.source: row for row in connection.execute(query.order_by(images.c.id))}

    def embedded(self, archive_name: str = ARCHIVE) -> int:
        """How many vectors the archive's active index holds."""
        with self.engine.begin() as connection:
            index = vectors.active_index(connection, archive.get_archive(connection, archive_name).archive_id)
            return vectors.count_embeddings(connection, index.index_id) if index else 0

    def let_wait_end(self) -> None:
        """Let shards that wait after a failed service be ready now."""
        with self.engine.begin() as connection:
            connection.execute(update(shards).values(not_before=None))


class _Models:
    """A model bundle of which some members are replaced."""

    def __init__(self, models: Any, replaced: Mapping[str, object]) -> None:
        self._models = models
        self._replaced = replaced

    def __getattr__(self, name: str) -> Any:
        return self._replaced[name] if name in self._replaced else getattr(self._models, name)


def make_resources(settings: Settings, models: Any) -> Resources:
    """Resources with models that are loaded already."""
    resources = Resources(settings)
    resources.models = models
    return resources


@contextmanager
def open_workshop(own: Settings, models: ModelBundle) -> Iterator[Workshop]:
    """A workshop on settings of a database of its own; what it started ends with the block."""
    # Workers are taken for gone after three ticks; here nobody ticks.
    unhurried = own.model_copy(update={"tick_s": 600.0})
    engine = make_engine(unhurried.require_database(), pool_size=5, name="test")
    workshop = Workshop(engine, unhurried, make_resources(unhurried, models))
    workshop.live_worker(queues=("query", "ingest"))
    try:
        yield workshop
    finally:
        workshop.close()
        engine.dispose()
