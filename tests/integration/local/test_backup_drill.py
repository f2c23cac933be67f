"""The drill: everything is killed beside running work, the home is deleted, and a restore brings it back."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, TypeVar

import pytest
from PIL import Image
from sqlalchemy import Connection, Engine, select, text

import migrations
from ragllava.client import Client
from ragllava.jobs.runner import ShardContext
from ragllava.jobs.states import JobState
from ragllava.local.services import LocalServices, running_services
from ragllava.postcards.archive import draw_archive, write_archive
from ragllava.records import JobKind
from ragllava.settings import Settings
from ragllava.stages.answer.stage import answer_stage
from ragllava.stages.backup import backup
from ragllava.stages.ingest.stage import ingest_stage
from ragllava.stages.resources import Resources
from ragllava.stages.results.finalize import publish_missing_results
from ragllava.stages.results.results import ResultRow
from ragllava.stores.backup.snapshot import Snapshot, open_snapshot
from ragllava.stores.schema import jobs, shards
from tests.support.ingest_runs import changed, queue_pictures
from tests.support.run_command import Run, runner
from tests.support.saved_systems import problems
from tests.support.waiting import wait_for
from tests.support.workshop import Stage, Workshop, open_workshop, stages_replaced

if TYPE_CHECKING:
    from ragllava.models.bundle import ModelBundle
    from ragllava.models.generator import AnswerRequest, GeneratedAnswer
    from ragllava.models.reranker import Pair, Relevance

P = ParamSpec("P")
T = TypeVar("T")
QUESTIONS, POSTCARDS, PICTURES = 200, 12, 24
SIZES = {
    "questions_per_shard": 40,
    "questions_per_step": 20,
    "files_per_shard": 6,
    "files_per_step": 2,
    "leave_one_out": False,
}
ASKED = "asked"  # the archive of the questions
STAGES = {JobKind.ANSWER: answer_stage, JobKind.INGEST: ingest_stage}
# A slow machine may need more time between two snapshots than idle transactions have.
_UNLIMITED = text("SET LOCAL idle_in_transaction_session_timeout = 0")


class Killed(BaseException):
    """The end of a worker in the middle of a transaction. Nothing catches it, as nothing catches a kill."""


class Allowed:
    """Lets stages of two kinds commit as often as they are allowed to. A commit beyond that waits, with all rows
    written, until it is allowed or its worker is killed."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._left: Counter[str] = Counter()
        self._waiting: set[str] = set()
        self._is_over = False

    def stages(self) -> dict[str, Stage]:
        """In place of those of the two kinds."""
        return {kind: self._stage(kind, stage) for kind, stage in STAGES.items()}

    def _stage(self, kind: str, stage: Stage) -> Stage:
        wait = self._wait

        class Context(ShardContext[Resources]):
            def commit(self, work: Callable[Concatenate[Connection, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
                def held(connection: Connection) -> T:
                    result = work(connection, *args, **kwargs)
                    connection.execute(_UNLIMITED)
                    wait(kind)
                    return result

                return super().commit(held)

        return lambda context: stage(changed(context, Context))

    def _wait(self, kind: str) -> None:
        with self._changed:
            self._waiting.add(kind)
            self._changed.notify_all()
            assert self._changed.wait_for(lambda: self._is_over or self._left[kind] > 0, 600)
            if self._is_over:
                raise Killed
            self._left[kind] -= 1
            self._waiting.discard(kind)

    def each_once(self) -> None:
        """Let each of the two commit once; returns when each waits with its next commit."""
        with self._changed:
            assert self._changed.wait_for(self._all_wait, 600)
            self._left.update(list(STAGES))
            self._changed.notify_all()
            assert self._changed.wait_for(lambda: self._left.total() == 0 and self._all_wait(), 600)

    def _all_wait(self) -> bool:
        return self._waiting == set(STAGES)

    def kill(self) -> None:
        """Stop every commit from now on."""
        with self._changed:
            self._is_over = True
            self._changed.notify_all()


def digest(*parts: object) -> bytes:
    """Of texts, and of the pixels of pictures."""
    read = [part.tobytes() if isinstance(part, Image.Image) else repr(part).encode() for part in parts]
    return hashlib.sha256(b"|".join(read)).digest()


@dataclass(frozen=True)
class Quick:
    """A reranker or a generator whose networks are replaced by hashes of all that it is shown, each pixel included."""

    model: Any

    def __getattr__(self, name: str) -> Any:
        return getattr(self.model, name)

    def relevance(self, pairs: Sequence[Pair], batch_size: int) -> list[Relevance]:
        from ragllava.models.reranker import Relevance

        return [Relevance(digest(pair.question, pair.caption, pair.picture)[0] / 255) for pair in pairs]

    def answer(self, requests: Sequence[AnswerRequest], **_options: object) -> list[GeneratedAnswer]:
        from ragllava.models.generator import GeneratedAnswer

        shown = [digest(request.question, request.captions, *request.pictures) for request in requests]
        return [GeneratedAnswer(of_request.hex()[:12], 0.5 + of_request[0] / 512) for of_request in shown]


def quick(workshop: Workshop) -> Workshop:
    """The same workshop with quick models and small steps."""
    models = workshop.resources.models
    own = workshop.with_models(reranker=Quick(models.reranker), generator=Quick(models.generator))
    return own.with_settings(**SIZES)


@pytest.fixture
def homes(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Path]]:
    """Two homes, where nothing was started; the environment names no service."""
    for name in list(os.environ):
        if name.startswith("RAGLLAVA_"):
            monkeypatch.delenv(name)
    made = [Path(tempfile.mkdtemp(prefix="ragllava-tests-")) for _ in range(2)]
    yield made
    for home in made:
        shutil.rmtree(home, ignore_errors=True)


@contextmanager
def two_workers(shop: Workshop, allowed: Allowed) -> Iterator[list[Future[None]]]:
    """Each runs the shards of one kind; they are killed with the block."""
    desks = [shop.with_settings() for _ in STAGES]
    with stages_replaced(allowed.stages()), ThreadPoolExecutor(len(STAGES)) as threads:
        try:
            yield [threads.submit(run_kind, desk, kind) for desk, kind in zip(desks, STAGES, strict=True)]
        finally:
            allowed.kill()


def run_kind(desk: Workshop, kind: JobKind) -> None:
    """Run the shards of jobs of a kind until none is ready."""
    of_kind = select(shards.c.id).join(jobs).where(jobs.c.kind == kind, shards.c.state == "queued")
    while True:
        desk.dispatch()
        with desk.engine.begin() as connection:
            shard_id = connection.scalar(of_kind.order_by(shards.c.id).limit(1))
        if shard_id is None:
            return
        desk.run_shard(shard_id)


def commit_at_each_snapshot(monkeypatch: pytest.MonkeyPatch, allowed: Allowed) -> list[Engine]:
    """Before a backup opens a snapshot, both jobs commit once; returns the engines of the snapshots."""
    opened = list[Engine]()

    def later(engine: Engine) -> AbstractContextManager[Snapshot]:
        allowed.each_once()
        opened.append(engine)
        return open_snapshot(engine)

    monkeypatch.setattr(backup, "open_snapshot", later)
    return opened


def kill_services(services: LocalServices) -> None:
    for service in services._running:
        assert service.process is not None
        service.process.kill()
    services.stop()


def remove_home(home: Path) -> None:
    """Delete it, although what a killed Postgres has left running may still write there for a moment."""

    def is_gone() -> bool:
        shutil.rmtree(home, ignore_errors=True)
        return not home.exists()

    wait_for("the home to be deleted", is_gone)


def answers_of(rows: Sequence[ResultRow]) -> list[tuple[Any, ...]]:
    """Of each question what it ended with, and the names, captions and relevances of its evidence."""
    return [
        (
            row.custom_id,
            row.status,
            row.answer,
            tuple((c.image.source, c.image.caption, c.relevance) for c in row.evidence),
        )
        for row in rows
    ]


@dataclass(frozen=True)
class Lost:
    """What was there when a system was lost: the answers to all questions, and its open jobs with their outcomes."""

    answers: list[tuple[Any, ...]]
    open_jobs: list[int]
    outcomes: list[dict[str, int]]


def lose_everything(
    home: Path, models: ModelBundle, run: Run, monkeypatch: pytest.MonkeyPatch, work: Path, vault: Path
) -> Lost:
    """Ask all questions; then kill all in the middle of a job and of an ingest, after a backup beside both."""
    (work / "pictures").mkdir()
    drawn = draw_archive(seed=19, images=POSTCARDS, questions=QUESTIONS, two_image_share=0.0)
    written, texts = write_archive(work / "postcards", drawn), [question.text for question in drawn.questions]
    allowed = Allowed()
    monkeypatch.setenv("RAGLLAVA_HOME", str(home))
    services = LocalServices(Settings(home=home), outlive_us=False)
    settings = services.start()
    try:
        urls = settings.require_database(), settings.api_database()
        migrations.upgrade(settings.require_database_owner(), application_url=urls[0], api_url=urls[1])
        with open_workshop(settings, models) as workshop:
            shop = quick(workshop)
            shop.ingest(written.pictures, captions=written.captions, archive_name=ASKED)
            answers = answers_of(shop.ask(texts, ASKED))
            assert len(set(answers)) == QUESTIONS and len({row[2] for row in answers}) > QUESTIONS / 2
            open_jobs = [queue_pictures(shop, work / "pictures", PICTURES), shop.submit(texts, ASKED).job_id]
            with two_workers(shop, allowed) as workers:
                snapshots = commit_at_each_snapshot(monkeypatch, allowed)
                code, out, err = run("backup", vault)
                assert code == 0 and len(snapshots) > 1, out + err
                assert not any(worker.done() for worker in workers), "both run to the end of the backup"
                outcomes = [shop.job(job_id).progress.by_status for job_id in open_jobs]
            assert all(isinstance(worker.exception(), Killed) for worker in workers)
    finally:
        kill_services(services)
        remove_home(home)
    return Lost(answers, open_jobs, outcomes)


def test_after_the_loss_of_everything_a_restore_gives_the_same_answers(
    homes: list[Path],
    models: ModelBundle,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run, vault = runner(monkeypatch, capsys), tmp_path / "vault"
    lost = lose_everything(homes[0], models, run, monkeypatch, tmp_path, vault)
    monkeypatch.setenv("RAGLLAVA_HOME", str(homes[1]))
    code, out, err = run("restore", vault)
    assert code == 0, out + err
    with (
        running_services(Settings(home=homes[1])) as again,
        open_workshop(again, models) as workshop,
        Client(again.model_copy(update={"tick_s": 600.0})) as client,  # a worker is missed after three ticks
    ):
        shop = quick(workshop)
        restored = [shop.job(job_id) for job_id in lost.open_jobs]
        assert [(job.state, job.progress.by_status) for job in restored] == [
            (JobState.RUNNING, outcomes) for outcomes in lost.outcomes
        ]
        assert all(0 < job.progress.done < job.progress.total for job in restored), "both were in the middle"
        assert problems(client) == []
        shop.run()
        publish_missing_results(shop.engine, shop.resources.objects)
        assert [shop.job(job_id).state for job_id in lost.open_jobs] == [JobState.COMPLETED] * 2
        assert len(shop.images()) == shop.embedded() == PICTURES
        assert problems(client) == []
        assert answers_of(shop.rows(lost.open_jobs[1])) == lost.answers
