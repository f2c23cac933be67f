"""The queue of noisy cases on a real database: leases, versions, undo, second opinions, agreement."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

import pytest
from sqlalchemy import Connection, Engine, text

from ragllava.client import Client, Opinion, QueueFilter, acting
from ragllava.errors import Conflict, InvalidInput, NotFound, UsageError
from ragllava.feedback import NoisyReason, NoisyState, Verdict
from ragllava.records import AnswerStatus, Role
from ragllava.settings import Settings
from ragllava.stores.access.tenancy import Scope
from ragllava.stores.learning import review_counts, trainings
from ragllava.stores.learning.noisy import NoisyView
from ragllava.stores.learning.review_counts import PairCounts
from ragllava.stores.learning.reviewing import Reviewer
from ragllava.stores.maintenance import erasing_images
from ragllava.stores.maintenance.erasures import Pending
from tests.support.many_rows import unhurried
from tests.support.plans import visited_rows
from tests.support.reviewed_job import Review, add_job, open_review

As = Callable[[str], AbstractContextManager[None]]


@pytest.fixture
def review(settings: Settings, engine: Engine) -> Iterator[Review]:
    with open_review(settings, engine) as review:
        for number in (0, 1):
            review.doubt(number, NoisyReason.NEAR_THRESHOLD)
        yield review


@pytest.fixture
def client(settings: Settings) -> Iterator[Client]:
    """A client as the server has one: the reviewer is whoever acts."""
    with Client(settings, for_tenants=True, pool_size=8) as client:
        yield client


def by(name: str) -> AbstractContextManager[None]:
    """Act as this person."""
    return acting(Scope(None, name))


def says(case: NoisyView, save_id: str, verdict: Verdict | None = Verdict.RIGHT, **more: Any) -> Opinion:
    job_id, question_no = case.question.key
    return Opinion(job_id, question_no, case.version, save_id, verdict, **more)


def rows(engine: Engine, table: str) -> list[dict[str, Any]]:
    with engine.connect() as connection:
        listed = connection.execute(text(f"SELECT * FROM {table} ORDER BY 1, 2"))
        return [dict(row._mapping) for row in listed]


def case_rows(engine: Engine) -> list[dict[str, Any]]:
    """The cases without what every change and lease changes."""
    passing = ("version", "locked_by", "locked_tab", "locked_until")
    return [{name: value for name, value in row.items() if name not in passing} for row in rows(engine, "noisy_cases")]


def test_reviewers_and_tabs_get_different_cases(review: Review, client: Client) -> None:
    with by("ann"):
        [first] = client.reviewing.next("harbour", "tab 1")
        [second] = client.reviewing.next("harbour", "tab 2")
        assert client.reviewing.next("harbour", "tab 1", after=first.question.key) == []
    with by("bob"):
        assert client.reviewing.next("harbour", "tab 1") == []  # the name of a tab alone is nothing
        assert client.reviewing.open(first.question.key, "tab 1").locked_by == "ann"
        counts = client.reviewing.progress("harbour", "tab 1").counts
        assert (counts.open, counts.held) == (2, 2)
    assert [first.question.custom_id, second.question.custom_id] == ["q0", "q1"]
    with by("ann"):
        assert client.reviewing.release("tab 1") == 1
    with by("bob"):
        [free] = client.reviewing.next("harbour", "tab 1")
        assert free.question.key == first.question.key


def test_reviewers_at_once_share_the_queue(engine: Engine, review: Review, client: Client) -> None:
    with engine.begin() as connection:
        add_job(connection, review, 300)
    taken: dict[str, list[tuple[int, int]]] = {f"reviewer {number}": [] for number in range(6)}
    together = threading.Barrier(len(taken))

    def work(name: str) -> None:
        with by(name):
            together.wait(60)
            while cases := client.reviewing.next("harbour", "a", limit=7):
                taken[name] += [case.question.key for case in cases]
                for case in cases:
                    client.reviewing.save(says(case, f"{case.question.key}"), "a")

    threads = [threading.Thread(target=work, args=(name,)) for name in taken]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(240)
    everything = [key for keys in taken.values() for key in keys]
    assert len(everything) == len(set(everything)) == 302
    assert sum(bool(keys) for keys in taken.values()) > 1


def test_leases_are_renewed_and_end(review: Review, client: Client) -> None:
    with by("ann"):
        [case] = client.reviewing.next("harbour", "1")
        key = case.question.key
        end_leases(review)
        assert client.reviewing.renew([key], "1") == [key]
        end_leases(review)
    with by("bob"):
        assert client.reviewing.next("harbour", "1")[0].question.key == key
    with by("ann"):
        assert client.reviewing.renew([key], "1") == []
        with pytest.raises(Conflict, match="nothing was saved: bob has this case open until"):
            client.reviewing.save(says(case, "1"), "1")


def end_leases(review: Review) -> None:
    """Let all of them run out now."""
    with engine_of(review).begin() as connection:
        connection.execute(text("UPDATE noisy_cases SET locked_until = now() - interval '1 s'"))


def engine_of(review: Review) -> Engine:
    return review.client.engine


def test_the_queue_is_filtered_and_continues(engine: Engine, review: Review, client: Client) -> None:
    with engine.begin() as connection:
        newer = add_job(connection, review, 3)
    review.doubt(1, NoisyReason.NO_EVIDENCE)
    with by("ann"):
        listed = client.reviewing.next("harbour", "1", limit=4)
        assert [case.question.job_id for case in listed] == [newer] * 3 + [review.job_id]
        rest = client.reviewing.next("harbour", "1", limit=4, after=listed[-1].question.key)
        assert [case.question.custom_id for case in rest] == ["q1"]
        for which, number in (
            (QueueFilter(reason=NoisyReason.NO_EVIDENCE), 1),
            (QueueFilter(job_id=newer), 3),
            (QueueFilter(model="reranker@1"), 2),
            (QueueFilter(model="generator@2"), 3),
            (QueueFilter(model="none"), 0),
            (QueueFilter(second_opinion=True), 0),
        ):
            assert len(client.reviewing.next("harbour", "1", which, limit=50)) == number, which
        with pytest.raises(UsageError, match="from 1 to 50"):
            client.reviewing.next("harbour", "1", limit=51)


def test_a_review_is_a_label_with_its_reviewer(review: Review, client: Client) -> None:
    boats, bridge, tower, *_ = review.images
    with by("ann"):
        [case] = client.reviewing.next("harbour", "1")
        said = says(case, "s", irrelevant=(bridge.image_id,), relevant=(tower.image_id,))
        saved = client.reviewing.save(said, "1")
        assert saved.state is NoisyState.LABELLED and saved.version > case.version
        assert client.reviewing.save(said, "1") == saved  # repeated after a lost answer
    [row] = review.labels()
    assert (row.label.relevant, row.label.irrelevant) == ((tower.image_id, boats.image_id), (bridge.image_id,))
    assert (row.label.verdict, row.label.answer, row.label.reviewer) == (Verdict.RIGHT, "two", "ann")
    assert len(rows(engine_of(review), "labels")) == len(rows(engine_of(review), "reviews")) == 1


def test_labels_of_files_name_who_gave_them(review: Review) -> None:
    review.say({"custom_id": "q0", "verdict": "right"})
    [row] = review.labels()
    assert row.label.reviewer is not None and "@" in row.label.reviewer


def test_nothing_is_overwritten(review: Review, client: Client) -> None:
    with by("ann"):
        [case] = client.reviewing.next("harbour", "1")
        in_two_tabs = client.reviewing.open(case.question.key, "2")
        assert in_two_tabs.version == case.version
        with pytest.raises(Conflict, match="nothing was saved: another tab or window of yours has this case open"):
            client.reviewing.save(says(case, "a"), "1")
        client.reviewing.save(says(in_two_tabs, "b"), "2")
        with pytest.raises(Conflict, match="nothing was saved: you, in another tab or window, changed this case"):
            client.reviewing.save(says(case, "c", Verdict.WRONG, answer="three"), "1")
    with by("bob"), pytest.raises(Conflict, match="nothing was saved: ann changed this case after you opened it"):
        client.reviewing.save(says(case, "a", Verdict.WRONG, answer="three"), "1")
    [row] = review.labels()
    assert (row.label.verdict, row.label.reviewer) == (Verdict.RIGHT, "ann")


def test_a_save_id_of_another_case_saves_nothing(review: Review, client: Client) -> None:
    with by("ann"):
        first, second = client.reviewing.next("harbour", "1", limit=2)
        client.reviewing.save(says(first, "a"), "1")
        with pytest.raises(Conflict, match="nothing was saved: the save id 'a' belongs to another case"):
            client.reviewing.save(says(second, "a"), "1")
    assert len(rows(engine_of(review), "reviews")) == 1


def test_feedback_from_elsewhere_is_noticed(review: Review, client: Client) -> None:
    with by("ann"):
        [case] = client.reviewing.next("harbour", "1")
        review.say({"custom_id": "q0", "verdict": "wrong", "answer": "four"})
        with pytest.raises(Conflict, match="nothing was saved: somebody changed"):
            client.reviewing.save(says(case, "a"), "1")


def test_wrong_opinions_are_refused_in_a_sentence(review: Review, client: Client) -> None:
    with by("ann"):
        case, _ = client.reviewing.next("harbour", "1", limit=2)
        image = review.images[0].image_id
        with pytest.raises(InvalidInput, match="called relevant and irrelevant"):
            client.reviewing.save(says(case, "a", Verdict.WRONG, relevant=(image,), irrelevant=(image,)), "1")
        with pytest.raises(InvalidInput, match="no image with the id 999"):
            client.reviewing.save(says(case, "a", relevant=(999,)), "1")
        with pytest.raises(NotFound, match="question 3 of job"):
            client.reviewing.save(Opinion(case.question.job_id, 3, 0, "a", Verdict.RIGHT), "1")
    assert rows(engine_of(review), "reviews") == []


@pytest.mark.parametrize(
    ("verdict", "answer"), [(Verdict.RIGHT, None), (Verdict.WRONG, "three"), (Verdict.WRONG, None), (None, None)]
)
def test_undo_restores_case_and_label(
    review: Review, client: Client, verdict: Verdict | None, answer: str | None
) -> None:
    review.say({"custom_id": "q0", "verdict": "wrong"})  # the case has a reason of its own and a label before
    before = case_rows(review.client.engine), rows(review.client.engine, "labels")
    with by("ann"):
        [case] = client.reviewing.next("harbour", "1")
        client.reviewing.save(says(case, "a", verdict, answer=answer), "1")
        again = client.reviewing.undo("harbour", "1")
        assert again.question.key == case.question.key and again.version > case.version
        assert again.locked_by == "ann"
        assert (case_rows(review.client.engine), rows(review.client.engine, "labels")) == before
        with pytest.raises(Conflict, match="nothing to undo"):
            client.reviewing.undo("harbour", "1")
        client.reviewing.save(says(again, "b", verdict, answer=answer), "1")


def test_undo_of_one_save_leaves_later_ones(review: Review, client: Client) -> None:
    """Two tabs: what one of them undoes is its own last review, not that of the other."""
    with by("ann"):
        first, second = client.reviewing.next("harbour", "1", limit=2)
        for case, name in ((first, "a"), (second, "b")):
            client.reviewing.save(says(case, name), "1")
        assert client.reviewing.undo("harbour", "1", "a").question.key == first.question.key
        with pytest.raises(Conflict, match="no such review"):
            client.reviewing.undo("harbour", "1", "a")
    [row] = review.labels()
    assert row.label.key == second.question.key


def test_undo_goes_back_step_by_step_but_over_nobody_elses_work(review: Review, client: Client) -> None:
    before = case_rows(review.client.engine)
    with by("ann"):
        [first] = client.reviewing.next("harbour", "1")
        client.reviewing.save(says(first, "a", Verdict.WRONG, answer="three"), "1")
        again = client.reviewing.open(first.question.key, "1")
        client.reviewing.save(says(again, "b"), "1")
        client.reviewing.undo("harbour", "1")
        [row] = review.labels()
        assert row.label.answer == "three"
        client.reviewing.undo("harbour", "1")
    assert (case_rows(review.client.engine), review.labels()) == (before, [])
    with by("ann"):
        case = client.reviewing.open(first.question.key, "1")
        client.reviewing.save(says(case, "c"), "1")
    with by("bob"):
        case = client.reviewing.open(first.question.key, "1")
        client.reviewing.save(says(case, "d", Verdict.WRONG, answer="three"), "1")
    with by("ann"), pytest.raises(Conflict, match="changed by bob since"):
        client.reviewing.undo("harbour", "1")


def test_what_was_erased_does_not_come_back_with_an_undo(review: Review, client: Client) -> None:
    with by("ann"):
        [case] = client.reviewing.next("harbour", "1")
        client.reviewing.save(says(case, "a"), "1")
        with review.client.engine.begin() as connection:
            erasing_images.clean_reports(connection, review.archive_id, Pending(names=("boats.png",)))
        with pytest.raises(Conflict, match="something that it names was erased"):
            client.reviewing.undo("harbour", "1")
    assert len(review.labels()) == 1


def test_who_says_only_wrong_does_not_get_the_case_again(review: Review, client: Client) -> None:
    with by("ann"):
        [case] = client.reviewing.next("harbour", "1")
        assert client.reviewing.save(says(case, "a", Verdict.WRONG), "1").state is NoisyState.OPEN
        assert [c.question.custom_id for c in client.reviewing.next("harbour", "1", limit=9)] == ["q1"]
    with by("bob"):
        assert [c.question.custom_id for c in client.reviewing.next("harbour", "1", limit=9)] == ["q0"]


def test_second_opinions_and_agreement(engine: Engine, review: Review, client: Client) -> None:
    with engine.begin() as connection:
        job_id = add_job(connection, review, 10)
    first, second = review.images[:2]
    of_job, again = QueueFilter(job_id=job_id), QueueFilter(job_id=job_id, second_opinion=True)
    with by("ann"):
        for case in client.reviewing.next("harbour", "1", of_job, limit=50):
            client.reviewing.save(says(case, str(case.question.key), relevant=(first.image_id,)), "1")
        assert client.reviewing.next("harbour", "1", again, limit=50) == []  # not of one's own
        assert client.reviewing.progress("harbour").counts.second_opinions == 0
    labelled = rows(engine, "labels")
    with by("bob"):
        assert client.reviewing.progress("harbour").counts.second_opinions == 10
        for number, case in enumerate(client.reviewing.next("harbour", "1", again, limit=50)):
            wrong = {"verdict": Verdict.WRONG, "irrelevant": (first.image_id,)}
            said = wrong if number < 2 else {"relevant": (first.image_id,), "irrelevant": (second.image_id,)}
            client.reviewing.save(says(case, str(case.question.key), **said), "1")
        with engine.begin() as connection:  # so that all are of today, also when midnight has passed meanwhile
            connection.execute(text("UPDATE reviews SET created_at = created_at + interval '1 day'"))
        progress = client.reviewing.progress("harbour")
        assert client.reviewing.totals("harbour").mine == 10
    assert (progress.answers.count, progress.answers.raw, progress.answers.kappa) == (10, 0.8, 0.0)
    assert (progress.pictures.count, progress.pictures.raw) == (10, 0.8)
    assert len(progress.disagreed) == 2
    assert (progress.counts.mine_today, progress.counts.all_today) == (10, 20)
    assert len(rows(engine, "labels")) > len(labelled)
    with by("eve"):
        assert client.reviewing.next("harbour", "1", again, limit=50) == []  # two are enough


def test_progress_counts_by_state_and_reason(review: Review, client: Client) -> None:
    review.doubt(1, NoisyReason.NO_EVIDENCE)
    with by("ann"):
        case, _ = client.reviewing.next("harbour", "1", limit=2)
        assert client.reviewing.progress("harbour", "1").counts.held == 0  # those of this tab do not count
        client.reviewing.save(says(case, "x", None), "1")
        counts, totals = client.reviewing.progress("harbour", "1").counts, client.reviewing.totals("harbour")
    assert (counts.open, totals.labelled, totals.dismissed) == (1, 0, 1)
    assert counts.by_reason == {"near_threshold": 1, "no_evidence": 1}
    with by("ann"), pytest.raises(UsageError, match="no archive 'nowhere'"):
        client.reviewing.progress("nowhere")
    assert AnswerStatus.NO_EVIDENCE in {view.question.status for view in review.cases().values()}


def test_a_look_at_the_progress_does_not_read_the_history(engine: Engine, review: Review, client: Client) -> None:
    """Of 5,000 cases with two opinions each, all older than today, it reads those of the newest 60 reviews."""
    history, newest = 5_000, 60
    values = {"archive": review.archive_id, "job": review.job_id, "many": history}
    with unhurried(engine) as connection:
        for statement in _HISTORY:
            connection.execute(text(statement), values)
        connection.execute(text("ANALYZE reviews, noisy_cases, labels"))  # people are slower than autovacuum
    ann = Reviewer("ann", "1")

    def look(connection: Connection) -> None:
        recent = review_counts.recent_reviews(connection, review.archive_id, ann, newest)
        assert recent.answers == PairCounts(both_yes=15, only_first=15, only_second=0, both_no=0)
        assert len(recent.disagreed) == 15 and recent.disagreed[0] == (review.job_id, history + 100)
        assert (recent.counts.open, recent.counts.all_today, recent.counts.second_opinions) == (2, 0, 0)
        assert trainings.count_new_labels(connection, review.archive_id, Role.RERANKER) == 0

    visited = visited_rows(engine, look)
    assert len(visited) == 2  # a statement each
    assert all(each.rows < 20 * newest for each in visited), [each.rows for each in visited]


_HISTORY = (
    """
    INSERT INTO questions (job_id, question_no, place, line, custom_id, text)
    SELECT :job, n, n, n, 'h' || n, 'question ' || n FROM generate_series(101, :many + 100) n
    """,
    """
    INSERT INTO noisy_cases (job_id, question_no, archive_id, reasons, details, state)
    SELECT :job, n, :archive, '{}', '{}', 'labelled' FROM generate_series(101, :many + 100) n
    """,
    """
    INSERT INTO reviews (archive_id, job_id, question_no, reviewer, save_id, verdict, relevant, irrelevant, version,
                         created_at)
    SELECT :archive, :job, n, who, who || n, CASE WHEN who = 'bob' AND n % 2 = 0 THEN 'wrong' ELSE 'right' END,
           '{}', '{}', 1, now() - interval '3 days' + make_interval(secs => n)
    FROM generate_series(101, :many + 100) n, unnest(ARRAY['ann', 'bob']) WITH ORDINALITY AS each (who, place)
    ORDER BY n, place
    """,
    """
    INSERT INTO labels (archive_id, job_id, question_no, verdict, relevant, irrelevant, source, created_at)
    SELECT :archive, :job, n, 'right', '{}', '{}', 'person', now() - interval '3 days'
    FROM generate_series(101, :many + 100) n
    """,
    """
    WITH begun AS (
        INSERT INTO jobs (kind, archive_id, state, spec, total, spec_digest)
        VALUES ('train', :archive, 'completed', '{"archives": ["harbour"]}', 1, '') RETURNING id)
    INSERT INTO trainings (job_id, role, phase) SELECT id, 'reranker', 'ended' FROM begun
    """,
)
