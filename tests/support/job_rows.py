"""Small makers of rows for tests of the queue and the stages."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import Connection, Engine, select, text, update

from ragllava.jobs import control, dispatch, queue, views
from ragllava.jobs.control import NewJob
from ragllava.jobs.deadlines import NO_LIMITS, JobLimits
from ragllava.jobs.queue import Lease
from ragllava.json_records import to_json
from ragllava.records import Answer, AnswerOptions, AnswerStatus, JobKind
from ragllava.settings import Settings
from ragllava.stores.archives import archive
from ragllava.stores.jobs import answers, workers
from ragllava.stores.schema import shards

WORKER = "answer@test"


def without_ticks(settings: Settings) -> Settings:
    """Settings of a desk beside which nobody ticks. However slow the machine is, no worker is taken for gone after
    three ticks, and no message for lost."""
    return settings.model_copy(update={"tick_s": 600.0, "queued_timeout_s": 600.0})


@dataclass(frozen=True)
class Desk:
    """A database with one live worker, and the calls that a test makes most often."""

    engine: Engine
    settings: Settings

    def questions_job(
        self,
        questions: int,
        per_shard: int,
        *,
        priority: int = 0,
        key: str | None = None,
        digest: str = "",
        limits: JobLimits = NO_LIMITS,
    ) -> int:
        """An answer job of numbered questions on an empty archive."""

        def work(connection: Connection) -> int:
            job_id, is_new = control.create(
                connection,
                NewJob(
                    kind=JobKind.ANSWER,
                    archive_id=archive.ensure_archive(connection, "test").archive_id,
                    spec={"options": to_json(AnswerOptions())},
                    total=questions,
                    per_shard=per_shard,
                    priority=priority,
                    idempotency_key=key,
                    content_digest=digest,
                    limits=limits,
                ),
            )
            if is_new:
                rows = ((number, number + 1, f"q{number}", f"question {number}?") for number in range(questions))
                answers.insert_questions(connection, job_id, rows)
            return job_id

        with self.engine.begin() as connection:
            return work(connection)

    def live_worker(self, name: str = WORKER, queues: tuple[str, ...] = ("query",), slots: int = 1) -> None:
        """A worker that has reported ready."""
        with self.engine.begin() as connection:
            workers.register(connection, name, list(queues), slots)
            workers.report_ready(connection, name, {"test": "1"})

    def dispatch(self) -> list[int]:
        """Reap and choose; the ids of the shards whose messages would be published, in order."""
        dispatch.reap(self.engine, self.settings)
        with self.engine.begin() as connection:
            return [message.shard_id for message in dispatch.choose(connection, self.settings)]

    def claim(self, shard_id: int, worker: str = WORKER, lease_s: float = 60.0) -> Lease | None:
        """Claim in a transaction of its own."""
        with self.engine.begin() as connection:
            return queue.claim(connection, shard_id, worker, lease_s)

    def claim_next(self, lease_s: float = 60.0) -> Lease:
        """Dispatch if needed, and claim the first queued shard."""
        queued = self.ids("queued") or self.dispatch()
        lease = self.claim(queued[0], lease_s=lease_s)
        assert lease is not None
        return lease

    def answer(self, lease: Lease) -> None:
        """Do what the answer stage does with a shard, in one transaction."""
        with self.engine.begin() as connection:
            queue.fence(connection, lease, 60.0)
            questions = answers.open_questions(connection, lease.job_id, lease.run_no, lease.lo, lease.hi)
            results = [
                Answer(question.question_no, AnswerStatus.ANSWERED, text="yes", prompt_tokens=12, completion_tokens=3)
                for question in questions
            ]
            answers.insert_answers(connection, lease.job_id, lease.run_no, lease.shard_id, lease.epoch, results)
            queue.finish(connection, lease)

    def answer_some(self, lease: Lease, numbers: list[int]) -> None:
        """Commit the answers of these questions, and go on: the shard stays leased."""
        with self.engine.begin() as connection:
            queue.fence(connection, lease, 60.0)
            results = [Answer(number, AnswerStatus.ANSWERED, text="yes") for number in numbers]
            answers.insert_answers(connection, lease.job_id, lease.run_no, lease.shard_id, lease.epoch, results)

    def drain(self, limit: int = 1000) -> int:
        """Answer every shard that dispatch hands out; returns how many there were."""
        for count in range(limit):
            ready = self.ids("queued") or self.dispatch()
            if not ready:
                return count
            lease = self.claim(ready[0])
            assert lease is not None or not self.claims_all()
            if lease is not None:
                self.answer(lease)
        raise AssertionError("the queue never runs dry")

    def claims_all(self) -> bool:
        """Whether nobody else changes the jobs, so that each shard that is ready can be claimed."""
        return True

    def expire_leases(self) -> None:
        """Let every lease run out now."""
        with self.engine.begin() as connection:
            connection.execute(
                update(shards).where(shards.c.state == "running").values(lease_until=text("now() - interval '1 s'"))
            )

    def ids(self, state: str) -> list[int]:
        """Shards in a state, oldest first."""
        with self.engine.begin() as connection:
            return list(connection.scalars(select(shards.c.id).where(shards.c.state == state).order_by(shards.c.id)))

    def job(self, job_id: int) -> views.JobView:
        """The job as people see it."""
        with self.engine.begin() as connection:
            return views.view(connection, job_id)
