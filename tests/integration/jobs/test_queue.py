"""The queue's promises, on a real Postgres: one owner, a fence, nothing lost, nothing twice."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
from sqlalchemy import Engine, func, select, text, update

from ragllava.errors import LeaseLost, ShardInterrupted, UsageError
from ragllava.jobs import control, dispatch, queue
from ragllava.jobs.retry import Limits
from ragllava.jobs.states import JobState
from ragllava.records import Answer, AnswerStatus
from ragllava.settings import Settings
from ragllava.stores.jobs import answers, outcomes, workers
from ragllava.stores.schema import answers as answers_table
from ragllava.stores.schema import jobs, shards
from tests.support.job_rows import WORKER, Desk, without_ticks


@pytest.fixture
def desk(engine: Engine, settings: Settings) -> Desk:
    desk = Desk(engine, without_ticks(settings))
    desk.live_worker()
    return desk


def test_a_job_is_cut_into_shards_that_cover_every_question_once(desk: Desk, engine: Engine) -> None:
    job_id = desk.questions_job(10, per_shard=4)
    with engine.begin() as connection:
        bounds = connection.execute(select(shards.c.lo, shards.c.hi).where(shards.c.job_id == job_id)).all()
    assert sorted(map(tuple, bounds)) == [(0, 4), (4, 8), (8, 10)]


def test_all_shards_done_completes_the_job(desk: Desk) -> None:
    job_id = desk.questions_job(10, per_shard=4)
    assert desk.drain() == 3
    job = desk.job(job_id)
    assert job.state == JobState.COMPLETED
    assert job.progress.by_status == {"answered": 10}
    assert job.started_at is not None and job.finished_at is not None


def test_of_many_claims_exactly_one_gets_the_lease(desk: Desk) -> None:
    desk.questions_job(1, per_shard=1)
    [shard_id] = desk.dispatch()
    with ThreadPoolExecutor(8) as threads:
        leases = list(threads.map(lambda number: desk.claim(shard_id, f"w{number}"), range(8)))
    assert sum(lease is not None for lease in leases) == 1


def test_a_message_that_comes_twice_or_for_a_finished_shard_finds_nothing_to_do(desk: Desk) -> None:
    desk.questions_job(1, per_shard=1)
    lease = desk.claim_next()
    assert desk.claim(lease.shard_id) is None
    desk.answer(lease)
    assert desk.claim(lease.shard_id) is None


def test_a_worker_that_lost_its_lease_cannot_write(desk: Desk, engine: Engine) -> None:
    job_id = desk.questions_job(2, per_shard=2)
    slow = desk.claim_next()
    desk.expire_leases()
    quick = desk.claim_next()
    assert quick.epoch == slow.epoch + 1
    with pytest.raises(LeaseLost):
        desk.answer(slow)
    desk.answer(quick)
    with pytest.raises(LeaseLost):
        desk.answer(slow)
    with engine.begin() as connection:
        assert connection.scalar(select(func.count()).select_from(answers_table)) == 2
    assert desk.job(job_id).state == JobState.COMPLETED


def test_finish_without_the_fence_raises_and_leaves_the_shard_to_its_owner(desk: Desk, engine: Engine) -> None:
    desk.questions_job(1, per_shard=1)
    slow = desk.claim_next()
    desk.expire_leases()
    quick = desk.claim_next()
    with pytest.raises(LeaseLost), engine.begin() as connection:
        queue.finish(connection, slow)
    assert desk.ids("running") == [quick.shard_id]


def test_a_lost_message_is_sent_again_after_the_timeout_and_not_before(desk: Desk, engine: Engine) -> None:
    desk.questions_job(1, per_shard=1)
    [shard_id] = desk.dispatch()
    assert desk.dispatch() == []
    with engine.begin() as connection:
        age = desk.settings.queued_timeout_s + 1
        connection.execute(update(shards).values(queued_at=text(f"now() - interval '{age} s'")))
    assert desk.dispatch() == [shard_id]


def age_messages(desk: Desk) -> None:
    with desk.engine.begin() as connection:
        age = desk.settings.queued_timeout_s + 1
        connection.execute(update(shards).values(queued_at=text(f"queued_at - interval '{age} s'")))


def test_a_message_behind_a_busy_slot_is_not_sent_again(desk: Desk) -> None:
    desk.questions_job(3, per_shard=1)
    running = desk.claim_next()
    waiting = desk.ids("queued")
    assert len(waiting) == 1
    waiting += desk.dispatch()
    for _ in range(3):
        age_messages(desk)
        assert desk.dispatch() == []
    assert desk.ids("queued") == waiting
    desk.answer(running)
    assert desk.dispatch()[:1] == waiting  # now a slot is free, and nobody has taken it


def test_a_message_is_sent_again_when_another_worker_of_its_queue_is_free(desk: Desk) -> None:
    desk.questions_job(3, per_shard=1)
    desk.claim_next()
    desk.dispatch()
    desk.live_worker("second@test")
    desk.live_worker("train@test", queues=("train",))
    age_messages(desk)
    assert len(desk.dispatch()) >= 2


def test_one_of_many_workers_that_is_free_proves_a_loss_only_after_long(desk: Desk) -> None:
    """Each worker is free for a moment between two shards. What waits behind the others would be sent twice."""
    desk.questions_job(60, per_shard=1)
    desk.live_worker("many@test", slots=24)
    first, *others = (desk.claim(shard_id, "many@test") for shard_id in desk.dispatch()[:25])
    assert first is not None and None not in others
    with desk.engine.begin() as connection:  # 25 slots run one each
        connection.execute(update(shards).where(shards.c.id == first.shard_id).values(worker=WORKER))
    waiting = set(desk.ids("queued"))
    assert len(waiting) == 25
    desk.answer(first)
    age_messages(desk)
    assert not waiting & set(desk.dispatch())
    for _ in range(10):
        age_messages(desk)
    assert waiting <= set(desk.dispatch())


def test_backlog_in_redis_is_bounded_by_live_slots(desk: Desk) -> None:
    desk.questions_job(100, per_shard=1)
    assert len(desk.dispatch()) == dispatch.MESSAGES_PER_SLOT
    assert desk.dispatch() == []
    desk.live_worker("another@test", slots=3)
    assert len(desk.dispatch()) == 3 * dispatch.MESSAGES_PER_SLOT


def test_nothing_is_published_while_no_worker_is_live(engine: Engine, settings: Settings) -> None:
    desk = Desk(engine, without_ticks(settings))
    desk.questions_job(3, per_shard=1)
    assert desk.dispatch() == []
    desk.live_worker(queues=("ingest",))
    assert desk.dispatch() == []
    desk.live_worker("second@test")
    assert len(desk.dispatch()) == 2


def test_an_urgent_job_overtakes_a_bulk_job_whose_messages_fill_the_queue(desk: Desk) -> None:
    desk.questions_job(100, per_shard=1)
    desk.dispatch()
    urgent = desk.questions_job(1, per_shard=1, priority=10)
    with desk.engine.begin() as connection:
        messages = dispatch.choose(connection, desk.settings)
    assert [message.priority for message in messages] == [10]
    lease = desk.claim(messages[0].shard_id)
    assert lease is not None and lease.job_id == urgent


def test_jobs_of_equal_priority_take_turns(desk: Desk, engine: Engine) -> None:
    first, second = desk.questions_job(10, per_shard=1), desk.questions_job(10, per_shard=1)
    desk.live_worker(slots=3)
    chosen = desk.dispatch()
    with engine.begin() as connection:
        rows = connection.execute(select(shards.c.id, shards.c.job_id).where(shards.c.id.in_(chosen)))
        owner = {row.id: row.job_id for row in rows}
    assert [owner[shard_id] for shard_id in chosen] == [first, second] * 3


def test_poison_ends_alone_as_dead_and_the_others_are_answered(desk: Desk, engine: Engine) -> None:
    """A worker that dies whenever question 5 is in its shard: the halving of docs/reliability.md D5 finds it."""
    job_id = desk.questions_job(16, per_shard=16)
    claims = 0
    for _ in range(200):
        ready = desk.ids("queued") or desk.dispatch()
        if not ready:
            break
        lease = desk.claim(ready[0])
        assert lease is not None
        claims += 1
        if lease.lo <= 5 < lease.hi:
            desk.expire_leases()
        else:
            desk.answer(lease)
    job = desk.job(job_id)
    assert job.progress.by_status == {"answered": 15, "dead": 1}
    assert job.state == JobState.COMPLETED_WITH_ERRORS
    with engine.begin() as connection:
        [dead] = connection.execute(select(answers_table).where(answers_table.c.status == "dead")).all()
    assert dead.question_no == 5
    assert "given up after 4 attempts" in dead.error
    assert claims <= 2 * 5 + 2 + 5  # two tries on each of the sizes 16 … 1, two more on 1, the five good halves


def test_answers_committed_before_a_crash_are_not_asked_again(desk: Desk, engine: Engine) -> None:
    job_id = desk.questions_job(4, per_shard=4)
    lease = desk.claim_next()
    with engine.begin() as connection:
        queue.fence(connection, lease, 60.0)
        first = [Answer(0, AnswerStatus.ANSWERED, text="first"), Answer(1, AnswerStatus.NO_EVIDENCE)]
        answers.insert_answers(connection, job_id, 1, lease.shard_id, lease.epoch, first)
    desk.expire_leases()
    again = desk.claim_next()
    with engine.begin() as connection:
        open_questions = answers.open_questions(connection, job_id, 1, again.lo, again.hi)
    assert [question.question_no for question in open_questions] == [2, 3]
    desk.answer(again)
    assert desk.job(job_id).progress.by_status == {"answered": 3, "no_evidence": 1}


def test_the_last_question_of_a_shard_is_not_blamed_for_attempts_that_made_progress(desk: Desk) -> None:
    job_id = desk.questions_job(4, per_shard=4)
    for numbers in ([0, 1], [2]):  # two workers vanish, each after it has answered something
        lease = desk.claim_next()
        desk.answer_some(lease, numbers)
        desk.expire_leases()
    for _ in range(2):
        desk.claim_next()
        desk.expire_leases()
    assert desk.drain() == 1
    assert desk.job(job_id).progress.by_status == {"answered": 4}


def test_a_service_that_is_away_costs_no_attempt_and_is_tried_later(desk: Desk, engine: Engine) -> None:
    desk.questions_job(1, per_shard=1)
    lease = desk.claim_next()
    limits = Limits(max_attempts=2, max_transient_attempts=3, backoff_s=60.0)
    with engine.begin() as connection:
        queue.fail(connection, lease, "the object store is away", limits, is_transient=True)
    assert desk.dispatch() == []
    with engine.begin() as connection:
        row = connection.execute(select(shards)).one()
        assert (row.state, row.attempts, row.transient_attempts) == ("pending", 0, 1)
        connection.execute(update(shards).values(not_before=text("now()")))
    assert desk.dispatch() == [lease.shard_id]


def test_transient_failures_end_after_their_limit(desk: Desk, engine: Engine) -> None:
    job_id = desk.questions_job(1, per_shard=1)
    limits = Limits(max_attempts=1, max_transient_attempts=3, backoff_s=0.0)
    for _ in range(3):
        lease = desk.claim_next()
        with engine.begin() as connection:
            queue.fail(connection, lease, "the object store is away", limits, is_transient=True)
    job = desk.job(job_id)
    assert job.progress.by_status == {"dead": 1}
    assert job.state == JobState.FAILED


def test_transient_failures_with_progress_between_them_do_not_add_up(desk: Desk, engine: Engine) -> None:
    job_id = desk.questions_job(6, per_shard=6)
    limits = Limits(max_attempts=1, max_transient_attempts=3, backoff_s=0.0)
    for number in range(5):
        lease = desk.claim_next()
        desk.answer_some(lease, [number])
        with engine.begin() as connection:
            queue.fail(connection, lease, "the object store is away", limits, is_transient=True)
    assert desk.drain() == 1
    assert desk.job(job_id).progress.by_status == {"answered": 6}


def test_handing_back_costs_no_attempt_and_keeps_what_was_answered(desk: Desk, engine: Engine) -> None:
    desk.questions_job(2, per_shard=2)
    lease = desk.claim_next()
    with engine.begin() as connection:
        queue.hand_back(connection, lease)
    with engine.begin() as connection:
        row = connection.execute(select(shards)).one()
    assert (row.state, row.attempts) == ("pending", 0)
    with pytest.raises(LeaseLost):
        desk.answer(lease)


def test_cancel_ends_what_has_not_begun_and_keeps_answers(desk: Desk, engine: Engine) -> None:
    job_id = desk.questions_job(6, per_shard=2)
    desk.answer(desk.claim_next())
    running = desk.claim_next()
    with engine.begin() as connection:
        control.cancel(connection, job_id)
    assert desk.job(job_id).state == JobState.CANCELLING
    with engine.begin() as connection:
        assert isinstance(queue.heartbeat(connection, running, 60.0), ShardInterrupted)
        queue.hand_back(connection, running)
    job = desk.job(job_id)
    assert job.state == JobState.CANCELLED
    assert job.progress.by_status == {"answered": 2, "cancelled": 4}


def test_cancel_while_the_worker_dies_still_ends_the_job(desk: Desk, engine: Engine) -> None:
    job_id = desk.questions_job(2, per_shard=2)
    desk.claim_next()
    with engine.begin() as connection:
        control.cancel(connection, job_id)
    desk.expire_leases()
    desk.dispatch()
    assert desk.job(job_id).state == JobState.CANCELLED


def test_a_paused_job_is_neither_dispatched_nor_claimed_until_resumed(desk: Desk, engine: Engine) -> None:
    job_id = desk.questions_job(4, per_shard=1)
    queued = desk.dispatch()
    running = desk.claim(queued[0])
    assert running is not None
    with engine.begin() as connection:
        control.pause(connection, job_id)
        assert isinstance(queue.heartbeat(connection, running, 60.0), ShardInterrupted)
        queue.hand_back(connection, running)
    assert desk.claim(queued[1]) is None
    assert desk.dispatch() == []
    with engine.begin() as connection:
        control.resume(connection, job_id)
    assert desk.drain() == 4
    assert desk.job(job_id).state == JobState.COMPLETED


def test_a_draining_worker_is_asked_to_hand_back(desk: Desk, engine: Engine) -> None:
    desk.questions_job(1, per_shard=1)
    lease = desk.claim_next()
    with engine.begin() as connection:
        assert queue.heartbeat(connection, lease, 60.0) is None
        connection.execute(text("UPDATE workers SET state = 'draining' WHERE name = :name"), {"name": WORKER})
        assert isinstance(queue.heartbeat(connection, lease, 60.0), ShardInterrupted)


def test_retry_asks_only_what_went_wrong_and_keeps_the_earlier_run(desk: Desk, engine: Engine) -> None:
    job_id = desk.questions_job(3, per_shard=3)
    lease = desk.claim_next()
    with engine.begin() as connection:
        queue.fence(connection, lease, 60.0)
        results = [
            Answer(0, AnswerStatus.ANSWERED, text="yes"),
            Answer(1, AnswerStatus.FAILED, error_code="ScoreRejected", error="NaN"),
            Answer(2, AnswerStatus.NO_EVIDENCE),
        ]
        answers.insert_answers(connection, job_id, 1, lease.shard_id, lease.epoch, results)
        queue.finish(connection, lease)
    assert desk.job(job_id).state == JobState.COMPLETED_WITH_ERRORS
    with engine.begin() as connection:
        assert control.retry(connection, job_id, per_shard=16) == 1
    assert desk.drain() == 1
    job = desk.job(job_id)
    assert job.state == JobState.COMPLETED
    assert job.progress.by_status == {"answered": 2, "no_evidence": 1}
    with engine.begin() as connection:
        runs = connection.execute(
            select(answers_table.c.run_no, answers_table.c.status)
            .where(answers_table.c.question_no == 1)
            .order_by(answers_table.c.run_no)
        ).all()
        assert control.retry(connection, job_id, per_shard=16) == 0
    assert [tuple(run) for run in runs] == [(1, "failed"), (2, "answered")]


def test_a_running_job_cannot_be_retried(desk: Desk, engine: Engine) -> None:
    job_id = desk.questions_job(1, per_shard=1)
    with pytest.raises(UsageError, match="only an ended job"), engine.begin() as connection:
        control.retry(connection, job_id, per_shard=1)


def test_the_same_key_makes_one_job_and_another_content_is_refused(desk: Desk) -> None:
    first = desk.questions_job(2, per_shard=1, key="monday", digest="a")
    assert desk.questions_job(2, per_shard=1, key="monday", digest="a") == first
    with pytest.raises(UsageError, match="'monday' belongs to job"):
        desk.questions_job(2, per_shard=1, key="monday", digest="b")


def test_submits_at_once_with_one_key_make_one_job(desk: Desk, engine: Engine) -> None:
    with ThreadPoolExecutor(6) as threads:
        made = set(threads.map(lambda _: desk.questions_job(3, per_shard=1, key="same"), range(6)))
    assert len(made) == 1
    with engine.begin() as connection:
        assert connection.scalar(select(func.count()).select_from(jobs)) == 1


def test_a_job_that_lost_an_input_is_failed(desk: Desk, engine: Engine) -> None:
    job_id = desk.questions_job(3, per_shard=3)
    with engine.begin() as connection:
        connection.execute(text("DELETE FROM questions WHERE question_no = 1"))
    desk.drain()
    job = desk.job(job_id)
    assert job.state == JobState.FAILED
    assert job.error == "made with 3 inputs, of which 2 are there: the job does not add up"


def test_a_job_that_does_not_add_up_is_failed(desk: Desk, engine: Engine) -> None:
    """A shard marked done without its answers: what a bug in a stage would do."""
    job_id = desk.questions_job(2, per_shard=2)
    lease = desk.claim_next()
    with engine.begin() as connection:
        queue.finish(connection, lease)
    job = desk.job(job_id)
    assert job.state == JobState.FAILED
    assert job.error == "2 inputs but 0 outcomes: the job does not add up"


def test_the_row_of_a_worker_that_was_not_seen_for_a_day_is_removed(desk: Desk, engine: Engine) -> None:
    desk.live_worker("dead@container")
    with engine.begin() as connection:
        old = text("UPDATE workers SET seen_at = now() - interval '25 hours' WHERE name = 'dead@container'")
        connection.execute(old)
        assert workers.remove_silent(connection) == 1
        assert [worker.name for worker in workers.list_workers(connection)] == [WORKER]


def test_two_reaps_at_once_settle_each_shard_once(desk: Desk, engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch, "_REAPING_S", 60.0)
    desk.live_worker(slots=20)
    desk.questions_job(20, per_shard=1)
    for shard_id in desk.dispatch():
        desk.claim(shard_id)
    desk.expire_leases()

    def reap(_: int) -> None:
        dispatch.reap(engine, desk.settings)

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(reap, range(4)))
    dispatch.reap(engine, desk.settings)  # where two met, both have left the shard to the next call
    with engine.begin() as connection:
        rows = connection.execute(select(shards.c.state, shards.c.attempts)).all()
    assert [tuple(row) for row in rows] == [("pending", 1)] * 20


def test_several_jobs_are_counted_together_as_each_alone(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outcomes, "COUNTED_AT_ONCE", 5)
    sizes = (3, 2, 4, 9, 1)
    made = [desk.questions_job(size, per_shard=3) for size in sizes]
    for _ in range(4):
        desk.answer(desk.claim_next())
    inputs = outcomes.QuestionInputs()
    totals = dict(zip(made, sizes, strict=True))
    with desk.engine.begin() as connection:
        alone = {job_id: inputs.count(connection, job_id, total) for job_id, total in totals.items()}
        assert inputs.count_many(connection, totals) == alone
        assert inputs.count_many(connection, {}) == {}
    assert sum(sum(counts.values()) for counts in alone.values()) > 0 and {} in alone.values()
