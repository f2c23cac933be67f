"""Jobs with a deadline, by the mini models: depth is cut where the forecast is too late, and what is left expires."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from sqlalchemy import func, literal, select, text, true, update

from ragllava.client.reporting import estimate_line, estimate_lines
from ragllava.jobs import ending
from ragllava.jobs.deadlines import JobLimits
from ragllava.jobs.runner import ShardContext
from ragllava.jobs.states import JobState
from ragllava.records import AnswerOptions, Depth, JobKind, Retrieval
from ragllava.stages.answer.estimating import EstimateOutcome, compare_estimate, estimate_job, stored_estimate
from ragllava.stages.answer.parts import DepthPace, depth_key
from ragllava.stages.answer.stage import answer_stage
from ragllava.stages.answer.submit import submit_refresh
from ragllava.stages.resources import Resources
from ragllava.stores.database import in_transaction, make_engine
from ragllava.stores.schema import jobs
from tests.support.many_rows import unhurried
from tests.support.plans import watching_rows
from tests.support.workshop import Workshop

OPTIONS = AnswerOptions(top_k=6, retrieval=Retrieval.PICTURE, depth=Depth.FIXED)
CHOSEN: dict[str, Any] = {"top_k": 6, "retrieval": Retrieval.PICTURE, "depth": Depth.FIXED}
_COPIED = ("kind", "archive_id", "state", "spec", "spec_digest", "timing", "finished_at")
HOUR = JobLimits(within_s=3_600.0)


@pytest.fixture
def desk(whole_gallery: Workshop) -> Workshop:
    """Three questions at once, and versions by which a job knows its profile. However slow the first questions are, for
    which the models are loaded, none of their shards is split."""
    whole_gallery.run()  # what other tests have left
    with whole_gallery.engine.begin() as connection:
        connection.exec_driver_sql("""UPDATE workers SET versions = '{"profile": "mini"}'""")
    return whole_gallery.with_settings(questions_per_step=3, shard_seconds=3_600.0)


def slow(desk: Workshop) -> None:
    """As if a question with six candidates took a day in this process."""
    pace = DepthPace(seconds_per_cost=20_000.0)
    pace.pairs.extend([OPTIONS.top_k] * 4)
    desk.resources.pace.of_depth[depth_key(OPTIONS)] = pace
    desk.resources.pace.learn(1.0, cost=1e6)


def test_enough_time_changes_nothing(desk: Workshop, ten_questions: list[str]) -> None:
    free = desk.submit(ten_questions, **CHOSEN).job_id
    limited = desk.submit(ten_questions, limits=HOUR, **CHOSEN).job_id
    desk.run()
    rows, expected = desk.rows(limited), desk.rows(free)
    assert [(row.status, row.answer, row.models, row.note) for row in rows] == [
        (row.status, row.answer, row.models, row.note) for row in expected
    ]
    assert desk.job(limited).timing is not None and desk.job(limited).timing["cut_to"] is None  # type: ignore[index]


def test_a_late_forecast_cuts_the_depth_and_every_result_says_so(desk: Workshop, ten_questions: list[str]) -> None:
    slow(desk)
    job_id = desk.submit(ten_questions, limits=HOUR, **CHOSEN).job_id
    desk.run()
    rows, job = desk.rows(job_id), desk.job(job_id)
    cut = [row for row in rows if "-cut-" in (row.models or {})["depth"]]
    assert cut, "the first question at least"
    for row in rows:
        reranked = [candidate for candidate in row.candidates if candidate.relevance is not None]
        limit = (row.models or {})["depth"].partition("fixed-1")[2]
        assert len(reranked) == (int(limit.removeprefix("-cut-")) if limit else OPTIONS.top_k) >= OPTIONS.top_n
        assert {c.retrieval_rank for c in reranked} == set(range(len(reranked))), "the strongest ones"
        assert (row.note is not None and "a limit of the job" in row.note) == bool(limit)
    assert job.state is JobState.COMPLETED and job.timing is not None
    assert job.timing["cut_to"] == OPTIONS.top_n

    refresh_id, _ = in_transaction(desk.engine, submit_refresh, desk.settings, job_id)
    desk.run()
    again = desk.job(refresh_id)
    assert again.refresh is not None and again.refresh.because == {"depth": len(cut)}


def test_what_is_left_at_the_deadline_expires_and_is_named(desk: Workshop, ten_questions: list[str]) -> None:
    """The deadline comes while the first part is answered."""
    reranker = desk.resources.models.reranker

    class Late:
        """The real reranker, after whose first call the time is over."""

        def __getattr__(self, name: str) -> Any:
            return getattr(reranker, name)

        def relevance(self, *args: Any, **options: Any) -> Any:
            with desk.engine.begin() as connection:
                connection.execute(update(jobs).where(jobs.c.id == job_id).values(deadline_at=func.now()))
            return reranker.relevance(*args, **options)

    def stage(context: ShardContext[Resources]) -> None:
        answer_stage(replace(context, stop=lambda: None))  # the heartbeat, too, would stop it at the deadline

    late = replace(desk.with_models(reranker=Late()), stages={JobKind.ANSWER: stage})
    job_id = late.submit(ten_questions, limits=HOUR, **CHOSEN).job_id
    late.run()
    ending.end_jobs(desk.engine)
    job, rows = late.job(job_id), late.rows(job_id)
    assert job.state is JobState.COMPLETED_WITH_ERRORS
    assert job.progress.by_status == {"answered": 3, "expired": 7}, "the part that was begun is finished"
    assert [row.custom_id for row in rows] == [f"q{number}" for number in range(10)]
    assert {row.error for row in rows if row.status == "expired"} == {job.error}


def test_a_shard_of_a_job_with_limits_reads_few_rows_however_many_wait(
    desk: Workshop, ten_questions: list[str]
) -> None:
    limits = JobLimits(within_s=3_600.0, max_gpu_s=3_600.0)
    job_id = desk.submit(ten_questions, limits=limits, **CHOSEN).job_id
    more = """
        INSERT INTO shards (job_id, lo, hi, state)
        SELECT :job_id, n, n + 1, CASE WHEN n < 3000 THEN 'done' ELSE 'pending' END FROM generate_series(10, 9000) n
    """
    with unhurried(desk.engine) as connection:
        connection.execute(text(more), {"job_id": job_id})
    [shard_id, *_] = desk.dispatch()
    watcher = make_engine(desk.settings.require_database(), name="test")
    try:
        with watching_rows(but=watcher) as visited:
            assert desk.run_shard(shard_id)
        with watcher.begin() as connection:
            answered = text("SELECT count(*) FROM answers WHERE job_id = :job_id")
            assert connection.scalar(answered, {"job_id": job_id}) == 10
            connection.execute(text("DELETE FROM shards WHERE job_id = :job_id AND lo >= 10"), {"job_id": job_id})
    finally:
        watcher.dispose()
    rooms = [look for look in visited if "last_hi" in look.statement]
    assert len(rooms) > 1, "before the parts of the shard"
    assert {look.statement: look.rows for look in visited if look.rows > 1_500} == {}
    ending.end_jobs(desk.engine)


def test_the_estimate_of_a_job_is_compared_with_what_came_out(desk: Workshop, ten_questions: list[str]) -> None:
    options = {**CHOSEN, "top_k": 5}
    first = desk.submit(ten_questions, **options).job_id
    unknown = stored_estimate(desk.job(first).estimate)
    assert unknown is not None and (unknown.time, unknown.basis, unknown.questions) == (None, "nothing", 10)
    assert estimate_line(desk.job(first)) == "estimated: unknown"
    desk.run()
    with desk.engine.connect() as connection:  # nothing of it stays
        single = select(
            *(jobs.c[name] for name in _COPIED),
            literal(1),
            literal({"answered": 1}, jobs.c.counts.type),
        ).select_from(jobs.join(func.generate_series(1, 12).table_valued("n"), true()))
        names = [*_COPIED, "total", "counts"]
        connection.execute(jobs.insert().from_select(names, single.where(jobs.c.id == first)))
        crowded = estimate_job(connection, desk.settings, desk.archive_id(), AnswerOptions(**options), 10)
    assert crowded.based_on == 1, "single questions do not hide the last bulk job"
    second = desk.submit(ten_questions, **options).job_id
    estimate = stored_estimate(desk.job(second).estimate)
    assert estimate is not None and estimate.time is not None and estimate.busy is not None
    assert (estimate.basis, estimate.based_on, estimate.candidates, estimate.slots) == ("jobs", 1, 5, 1)
    timing = desk.job(first).timing
    assert timing is not None and estimate.busy.expected_s == pytest.approx(timing["busy_s"])
    assert estimate.busy.low_s < estimate.busy.expected_s < estimate.busy.high_s
    waiting = in_transaction(desk.engine, estimate_job, desk.settings, desk.archive_id(), AnswerOptions(**options), 5)
    assert waiting.jobs_before == 1
    assert waiting.before_s == pytest.approx(timing["busy_s"] / 2)
    assert any("1 open job" in line for line in estimate_lines(waiting))
    desk.run()
    job = desk.job(second)
    outcome = compare_estimate(job.estimate, job.timing)
    assert isinstance(outcome, EstimateOutcome) and outcome.error is not None
    assert outcome.error == pytest.approx(outcome.took_s / estimate.time.expected_s - 1)
    assert "than expected" in str(estimate_line(job))
