"""Refreshing a job: what has changed is asked again, and nothing else; with the mini models on real stores."""

from __future__ import annotations

import csv
import json
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from pyarrow import parquet
from sqlalchemy import delete, func, select, update

from ragllava.cli.main import main
from ragllava.client import Client
from ragllava.errors import ScoreRejected, ServiceUnavailable, UsageError
from ragllava.jobs import control
from ragllava.jobs.states import JobState
from ragllava.models.bundle import ModelBundle
from ragllava.models.mllm import Mllm
from ragllava.models.reranker import Pair, Relevance
from ragllava.postcards.archive import draw_archive
from ragllava.postcards.questions import QuestionStyle
from ragllava.records import AnswerStatus, Change, Origin, Role
from ragllava.stages.answer.changes import RefreshPlan, plan_refresh
from ragllava.stages.answer.question_files import read_questions
from ragllava.stages.answer.submit import Submission, submit_questions, submit_refresh
from ragllava.stages.results.finalize import publish_missing_results
from ragllava.stages.results.results import ResultRow
from ragllava.stores.database import in_transaction
from ragllava.stores.learning import registry
from ragllava.stores.schema import answers, candidates, jobs
from tests.conftest import environment_of
from tests.integration.conftest import Postcards
from tests.support.random_adapters import promote_random_adapter
from tests.support.workshop import ARCHIVE, PAPER, Workshop

PICTURES = 16
QUESTIONS = 8
TOP_K = 3


class Watched:
    """The real reranker, which notes the questions that it is asked and refuses one; `fail` is raised instead, once."""

    def __init__(self, models: ModelBundle) -> None:
        self._models = models
        self.asked: list[str] = []
        self.refused: str | None = None
        self.fail: Exception | None = None

    @property
    def version(self) -> str:
        return self._models.reranker.version

    @property
    def mllm(self) -> Mllm:
        return self._models.reranker.mllm

    @property
    def sharing(self) -> Any:
        return self._models.reranker.sharing

    def relevance(self, pairs: Sequence[Pair], *, batch_size: int) -> list[Relevance]:
        if self.fail is not None:
            error, self.fail = self.fail, None
            raise error
        if self.refused in [pair.question for pair in pairs]:
            raise ScoreRejected("no number")
        self.asked += [pair.question for pair in pairs]
        return self._models.reranker.relevance(pairs, batch_size=batch_size)

    def taken(self) -> set[str]:
        """What was asked since the last call."""
        asked, self.asked = set(self.asked), []
        return asked


@dataclass
class Gallery:
    """A few postcards on disk and in an archive, an answered job, and the questions that the reranker is asked."""

    desk: Workshop
    folder: Path
    captions: Path
    texts: list[str]
    reranker: Watched
    job_id: int = 0
    options: Mapping[str, Any] = field(default_factory=lambda: {"top_k": TOP_K, **PAPER})

    def ingest(self) -> None:
        """Take over what has changed on disk."""
        self.desk.ingest(self.folder, captions=self.captions)

    def ask(self) -> int:
        """Answer all questions in a new job."""
        job_id = self.desk.submit(self.texts, **self.options).job_id
        self.desk.run()
        return job_id

    def refresh(self, job_id: int | None = None) -> int:
        """Refresh a job to its end; the reranker's notes begin with it."""
        self.reranker.taken()
        new_id, is_new = in_transaction(self.desk.engine, submit_refresh, self.desk.settings, job_id or self.job_id)
        assert is_new
        self.desk.run()
        return new_id

    def plan(self) -> RefreshPlan:
        return plan_refresh(self.desk.engine, self.desk.settings, self.desk.resources, self.job_id)

    def rows(self, job_id: int | None = None) -> list[ResultRow]:
        return self.desk.rows(job_id or self.job_id)

    def caption(self, source: str, caption: str) -> None:
        """Give a picture another caption, and ingest it."""
        lines = [json.loads(line) for line in self.captions.read_text().splitlines()]
        changed = [line | ({"caption": caption} if line["file"] == source else {}) for line in lines]
        self.captions.write_text("".join(json.dumps(line) + "\n" for line in changed))
        self.ingest()


@pytest.fixture
def gallery(workshop: Workshop, models: ModelBundle, postcards: Postcards, tmp_path: Path) -> Iterator[Gallery]:
    asked = postcards.archive.questions[:QUESTIONS]
    wanted = list(dict.fromkeys(source for question in asked for source in question.relevant))
    wanted += [card.file_name for card in postcards.archive.postcards if card.file_name not in wanted]
    folder, captions = tmp_path / "pictures", tmp_path / "captions.jsonl"
    folder.mkdir()
    for name in wanted[:PICTURES]:
        shutil.copy(postcards.written.pictures / name, folder)
    caption_of = {card.file_name: card.caption for card in postcards.archive.postcards}
    captions.write_text(
        "".join(json.dumps({"file": name, "caption": caption_of[name]}) + "\n" for name in wanted[:PICTURES])
    )
    reranker = Watched(models)
    desk = workshop.with_settings(questions_per_shard=4, questions_per_step=2, home=tmp_path / "home")
    desk = desk.with_models(reranker=reranker)
    made = Gallery(desk, folder, captions, [question.text for question in asked], reranker)
    made.ingest()
    made.job_id = made.ask()
    assert all(row.status in (AnswerStatus.ANSWERED, AnswerStatus.NO_EVIDENCE) for row in made.rows())
    yield made
    for role in Role:
        models.apply_adapter(role, None, None)


def retrieved(rows: list[ResultRow]) -> list[set[int]]:
    return [{candidate.image.image_id for candidate in row.candidates} for row in rows]


def outcome(rows: list[ResultRow]) -> list[tuple[object, ...]]:
    """What was answered, and from what."""
    return [(row.custom_id, row.status, row.answer, [c.image.source for c in row.evidence]) for row in rows]


def because(rows: list[ResultRow]) -> list[tuple[Change, ...]]:
    return [row.previous.changes for row in rows if row.previous]


# What is asked again


def test_where_nothing_has_changed_nothing_is_asked(gallery: Gallery) -> None:
    assert gallery.plan() == RefreshPlan(gallery.job_id, QUESTIONS, 0, 0, {})
    job_id = gallery.refresh()
    job, before, after = gallery.desk.job(job_id), gallery.rows(), gallery.rows(job_id)
    assert gallery.reranker.taken() == set()
    assert job.state is JobState.COMPLETED
    assert job.progress == gallery.desk.job(gallery.job_id).progress
    assert job.refresh is not None
    assert (job.refresh.taken_over, job.refresh.asked_again, job.refresh.changed) == (QUESTIONS, 0, 0)
    assert because(after) == [()] * QUESTIONS
    for old, new in zip(before, after, strict=True):
        assert (new.status, new.answer, new.confidence, new.note) == (old.status, old.answer, old.confidence, old.note)
        assert (new.candidates, new.models) == (old.candidates, old.models), "the makers are those that made it"
        assert new.previous is not None
        assert (new.previous.job_id, new.previous.answer, new.has_changed) == (gallery.job_id, old.answer, False)


def test_a_replaced_picture_asks_just_the_questions_that_retrieve_it(gallery: Gallery, postcards: Postcards) -> None:
    """The obvious way: ask everything again, and look which candidates differ."""
    before = gallery.rows()
    victim = next(row.evidence[0].image.source for row in before if row.evidence)
    unused = next(card for card in postcards.archive.postcards if not (gallery.folder / card.file_name).exists())
    shutil.copy(postcards.written.pictures / unused.file_name, gallery.folder / victim)
    gallery.ingest()
    complete = gallery.rows(gallery.ask())
    pairs = zip(complete, retrieved(before), retrieved(complete), strict=True)
    affected = {row.question for row, old_ids, new_ids in pairs if old_ids != new_ids}
    assert 0 < len(affected) < QUESTIONS
    assert gallery.plan() == RefreshPlan(
        gallery.job_id, QUESTIONS - len(affected), len(affected), 0, {"pictures": len(affected)}
    )
    after = gallery.rows(gallery.refresh())
    assert gallery.reranker.taken() == affected
    assert outcome(after) == outcome(complete)
    assert because(after) == [(Change.PICTURES,) if row.question in affected else () for row in after]
    differ = [old.answer != new.answer or old.status != new.status for old, new in zip(before, after, strict=True)]
    assert [row.has_changed for row in after] == differ and any(differ)


def test_a_changed_caption_asks_the_questions_that_look_at_it(gallery: Gallery) -> None:
    before = gallery.rows()
    victim = before[0].candidates[0].image
    affected = {row.question for row, ids in zip(before, retrieved(before), strict=True) if victim.image_id in ids}
    assert 0 < len(affected) < QUESTIONS
    gallery.caption(victim.source, "Nothing of the kind, Nowhere, 1900")
    plan = gallery.plan()
    assert (plan.asked_again, plan.because) == (len(affected), {"captions": len(affected)})
    job_id = gallery.refresh()
    assert gallery.reranker.taken() == affected
    job = gallery.desk.job(job_id)
    assert job.refresh is not None
    assert (job.refresh.asked_again, job.refresh.because) == (len(affected), {"captions": len(affected)})
    gallery.refresh(job_id)
    assert gallery.reranker.taken() == set(), "the refresh can itself be refreshed"


def test_a_new_generator_asks_only_what_it_has_answered(gallery: Gallery, postcards: Postcards) -> None:
    with gallery.desk.engine.begin() as connection:
        registry.ensure_champions(connection, "mini", gallery.desk.resources.base_versions())
    of_others = [q for q in postcards.archive.questions if not (gallery.folder / q.relevant[0]).exists()]
    gallery.texts = gallery.texts[:4] + [question.text for question in of_others[:4]]
    gallery.job_id = gallery.ask()
    without = {row.question for row in gallery.rows() if row.status is AnswerStatus.NO_EVIDENCE}
    assert 0 < len(without) < QUESTIONS
    promote_random_adapter(gallery.desk, Role.GENERATOR, "writer-1", seed=2)
    assert gallery.plan().because == {"generator": QUESTIONS - len(without)}
    new = gallery.rows(gallery.refresh())
    assert gallery.reranker.taken() == set(gallery.texts) - without
    assert {row.models["generator"] for row in new if row.models and row.question not in without} == {"writer-1"}


def test_a_new_reranker_asks_everything(gallery: Gallery) -> None:
    with gallery.desk.engine.begin() as connection:
        registry.ensure_champions(connection, "mini", gallery.desk.resources.base_versions())
    promote_random_adapter(gallery.desk, Role.RERANKER, "ranker-1", seed=1)
    assert gallery.plan().because == {"reranker": QUESTIONS, "threshold": QUESTIONS}
    new = gallery.rows(gallery.refresh())
    assert gallery.reranker.taken() == set(gallery.texts)
    assert because(new) == [(Change.RERANKER, Change.THRESHOLD)] * QUESTIONS


def test_an_answer_that_does_not_say_what_it_was_made_of_is_asked_again(gallery: Gallery) -> None:
    with gallery.desk.engine.begin() as connection:  # as answers of an older version are
        connection.execute(update(answers).where(answers.c.question_no == 2).values(candidates_digest=None))
    after = gallery.rows(gallery.refresh())
    assert gallery.reranker.taken() == {gallery.texts[2]}
    assert after[2].previous is not None and after[2].previous.changes == (Change.UNKNOWN,)


def test_a_job_that_is_removed_meanwhile_has_its_questions_asked_again(gallery: Gallery) -> None:
    job_id, _ = in_transaction(gallery.desk.engine, submit_refresh, gallery.desk.settings, gallery.job_id)
    before = gallery.rows()
    gallery.reranker.taken()
    gallery.desk.run_once()  # a shard of four
    with gallery.desk.engine.begin() as connection:
        connection.execute(delete(jobs).where(jobs.c.id == gallery.job_id))
    gallery.desk.run()
    after = gallery.rows(job_id)
    assert gallery.reranker.taken() == set(gallery.texts[4:])
    assert outcome(after) == outcome(before)
    assert [row.previous.answer for row in after if row.previous] == [row.answer for row in before]
    assert because(after) == [()] * 4 + [(Change.UNKNOWN,)] * 4


# Where captions find candidates too


@pytest.fixture
def by_name(gallery: Gallery) -> Gallery:
    """The gallery with a job of questions by name, with the default ways of retrieval and depth."""
    drawn = draw_archive(seed=3, images=60, questions=24, two_image_share=0.0, style=QuestionStyle.NAME)
    known = [question.text for question in drawn.questions if (gallery.folder / question.relevant[0]).exists()]
    gallery.texts = [*known[:7], "What color is the Zweigart Chapel in Nimmerland?"]
    gallery.options = {"top_k": 1}  # few enough that the nearest pictures do not find all
    gallery.job_id = gallery.ask()
    origins = {candidate.origin for row in gallery.rows() for candidate in row.candidates}
    assert Origin.CAPTION in origins
    assert any(candidate.relevance is None for row in gallery.rows() for candidate in row.candidates)
    return gallery


def not_found(rows: Sequence[ResultRow], gallery: Gallery) -> str:
    """A picture that is a candidate of no question."""
    found = {candidate.image.source for row in rows for candidate in row.candidates}
    return next(source for source in gallery.desk.images() if source not in found)


def caption_of(gallery: Gallery, source: str) -> str:
    return str(gallery.desk.images()[source].caption)


def test_candidates_of_captions_are_taken_over_with_how_they_were_found(by_name: Gallery) -> None:
    before = by_name.rows()
    assert by_name.plan() == RefreshPlan(by_name.job_id, len(by_name.texts), 0, 0, {})
    after = by_name.rows(by_name.refresh())
    assert by_name.reranker.taken() == set()
    assert because(after) == [()] * len(by_name.texts)
    for old, new in zip(before, after, strict=True):
        assert new.candidates == old.candidates, "with origin, ranks and scores"
        assert new.models == old.models and new.models is not None
        assert (new.models["retrieval"], new.models["depth"]) == ("hybrid-1", "need-2")


def test_a_caption_that_names_the_thing_now_finds_another_picture(by_name: Gallery) -> None:
    before = by_name.rows()
    source = not_found(before, by_name)
    by_name.caption(source, "Zweigart Chapel, Nimmerland, 1911")
    assert by_name.plan().because == {"pictures": 1}
    after = by_name.rows(by_name.refresh())
    assert by_name.reranker.taken() == {by_name.texts[-1]}
    assert because(after) == [()] * (len(after) - 1) + [(Change.PICTURES,)]
    [new] = [c for c in after[-1].candidates if c.image.source == source]
    assert (new.origin, new.caption_rank, new.retrieval_rank) == (Origin.CAPTION, 0, 1)
    assert new.relevance is not None
    assert outcome(after[:-1]) == outcome(before[:-1])


def test_another_caption_of_a_picture_that_it_still_finds_is_another_caption(by_name: Gallery) -> None:
    before = by_name.rows()
    row, victim = next((r, c.image) for r in before for c in r.candidates if c.origin is Origin.CAPTION and r.evidence)
    affected = {r.question for r, ids in zip(before, retrieved(before), strict=True) if victim.image_id in ids}
    by_name.caption(victim.source, caption_of(by_name, victim.source) + ", hand-coloured")
    assert by_name.plan().because == {"captions": len(affected)}
    after = by_name.rows(by_name.refresh())
    assert by_name.reranker.taken() == affected and row.question in affected
    assert because(after) == [(Change.CAPTIONS,) if r.question in affected else () for r in after]
    assert retrieved(after) == retrieved(before)


def test_a_caption_that_names_the_thing_no_more_takes_the_picture_away(by_name: Gallery) -> None:
    before = by_name.rows()
    row, victim = next((r, c.image) for r in before for c in r.candidates if c.origin is Origin.CAPTION)
    by_name.caption(victim.source, "Anything else")
    after = by_name.rows(by_name.refresh())
    [again] = [r for r in after if r.question == row.question]
    assert again.previous is not None and again.previous.changes == (Change.PICTURES,)
    assert victim.source not in [c.image.source for c in again.candidates]


# Lines without an answer


def test_lines_without_an_answer_stay_as_they_are_until_they_are_retried(gallery: Gallery) -> None:
    lines = [json.dumps({"custom_id": f"q{n}", "question": text}) for n, text in enumerate(gallery.texts[:2])]
    file = read_questions("\n".join([*lines, "no json"]).encode(), name="questions.jsonl")
    desk = gallery.desk.with_settings(questions_per_step=1)
    submitted = in_transaction(
        desk.engine, submit_questions, desk.settings, file, Submission(ARCHIVE, skip_invalid=True)
    )
    gallery.reranker.refused = gallery.texts[0]
    desk.run()
    assert [row.status for row in desk.rows(submitted.job_id)] == ["failed", "answered", "failed"]
    job_id = gallery.refresh(submitted.job_id)
    assert gallery.reranker.taken() == set()
    assert outcome(gallery.rows(job_id)) == outcome(gallery.rows(submitted.job_id))
    job = desk.job(job_id)
    assert (job.state, job.progress.by_status) == (JobState.COMPLETED_WITH_ERRORS, {"answered": 1, "failed": 2})
    assert [row.error_code for row in gallery.rows(job_id)] == ["ScoreRejected", None, "invalid_json_line"]
    with desk.engine.begin() as connection:
        assert control.retry(connection, job_id, per_shard=4) == 1
    gallery.reranker.refused = None
    desk.run()
    first, second, third = gallery.rows(job_id)
    assert gallery.reranker.taken() == {gallery.texts[0]}
    assert [row.status for row in (first, second, third)] == ["answered", "answered", "failed"]
    assert first.previous is not None and first.previous.status == "failed"
    assert first.has_changed and not second.has_changed and not third.has_changed


def test_what_cannot_be_refreshed_is_refused(gallery: Gallery) -> None:
    desk = gallery.desk
    with pytest.raises(UsageError, match="there is no job 999"):
        in_transaction(desk.engine, submit_refresh, desk.settings, 999)
    with pytest.raises(UsageError, match="is of the kind ingest; only an answer job can be refreshed"):
        in_transaction(desk.engine, submit_refresh, desk.settings, gallery.job_id - 1)
    running = desk.submit(gallery.texts[:1]).job_id
    with pytest.raises(UsageError, match=f"job {running} is running; only an ended job can be refreshed"):
        in_transaction(desk.engine, submit_refresh, desk.settings, running)
    with desk.engine.begin() as connection:
        control.cancel(connection, running)
    with pytest.raises(UsageError, match=f"no answer to refresh; `ragllava jobs retry {running}`"):
        in_transaction(desk.engine, submit_refresh, desk.settings, running)


def test_a_refresh_that_is_open_is_not_begun_twice(gallery: Gallery) -> None:
    first = in_transaction(gallery.desk.engine, submit_refresh, gallery.desk.settings, gallery.job_id)
    assert in_transaction(gallery.desk.engine, submit_refresh, gallery.desk.settings, gallery.job_id) == (
        first[0],
        False,
    )
    gallery.desk.run()
    assert in_transaction(gallery.desk.engine, submit_refresh, gallery.desk.settings, gallery.job_id)[1]


# Crashes


def test_a_shard_that_is_interrupted_goes_on_where_it_was(gallery: Gallery) -> None:
    desk = gallery.desk.with_settings(retry_backoff_s=60.0)  # it must not be ready again while the other one runs
    with desk.engine.begin() as connection:
        connection.execute(update(answers).where(answers.c.question_no.in_([1, 2])).values(candidates_digest=None))
    gallery.reranker.fail = ServiceUnavailable("the store is away")
    job_id, _ = in_transaction(desk.engine, submit_refresh, desk.settings, gallery.job_id)
    desk.run()
    assert len(gallery.rows(job_id)) == QUESTIONS - 2, "taken over, before the others were asked"
    desk.let_wait_end()
    desk.run()
    job = desk.job(job_id)
    assert (job.state, job.progress.done) == (JobState.COMPLETED, QUESTIONS)
    assert job.refresh is not None and (job.refresh.taken_over, job.refresh.asked_again) == (QUESTIONS - 2, 2)
    with desk.engine.begin() as connection:
        written = connection.scalar(select(func.count()).select_from(candidates).where(candidates.c.job_id == job_id))
    assert written == QUESTIONS * TOP_K


# What people see


@pytest.fixture
def changed(gallery: Gallery) -> tuple[Gallery, int]:
    """A refresh of which the first question found another caption."""
    gallery.caption(gallery.rows()[0].candidates[0].image.source, "Nothing of the kind, Nowhere, 1900")
    job_id = gallery.refresh()
    publish_missing_results(gallery.desk.engine, gallery.desk.resources.objects)
    return gallery, job_id


def test_result_files_say_which_answers_differ(changed: tuple[Gallery, int], tmp_path: Path) -> None:
    gallery, job_id = changed
    client = Client(gallery.desk.settings)
    paths = [tmp_path / f"out.{ending}" for ending in ("jsonl", "csv", "parquet")]
    for path in paths:
        client.questions.save_results(job_id, path)
    client.close()
    lines = [json.loads(line) for line in paths[0].read_text().splitlines()]
    before = [row.as_json() for row in gallery.rows()]
    for line, old in zip(lines, before, strict=True):
        previous = line["previous"]
        assert (previous["job"], previous["status"], previous["answer"]) == (
            gallery.job_id,
            old["status"],
            old["answer"],
        )
        assert [image["image_id"] for image in previous["evidence"]] == [e["image_id"] for e in old["evidence"]]
        assert previous["changed"] == ((line["status"], line["answer"]) != (old["status"], old["answer"]))
    assert lines[0]["previous"]["asked_again"] and lines[0]["previous"]["because"] == ["captions"]
    assert parquet.read_table(paths[2]).to_pylist() == lines
    with paths[1].open(newline="", encoding="utf-8-sig") as file:
        cells = list(csv.DictReader(file))
    assert [cell["previous_changed"] for cell in cells] == [str(line["previous"]["changed"]).lower() for line in lines]
    assert (cells[0]["previous_job"], cells[0]["previous_because"]) == (str(gallery.job_id), "captions")


def test_the_summary_counts_what_was_asked_again(
    changed: tuple[Gallery, int], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    gallery, job_id = changed
    for name, value in environment_of(gallery.desk.settings).items():
        monkeypatch.setenv(name, value)

    def call(*words: object) -> str:
        monkeypatch.setattr(sys, "argv", ["ragllava", *map(str, words)])
        try:
            main()
        except SystemExit as end:
            assert not end.code, capsys.readouterr().err
        return capsys.readouterr().out

    refresh: Any = gallery.desk.job(job_id).refresh
    assert (
        f"refreshes job {gallery.job_id}: {refresh.taken_over} answers taken over, {refresh.asked_again} asked again "
        f"(captions {refresh.asked_again}), {refresh.changed} of the answers differ\n"
    ) in call("jobs", "show", job_id)
    manifest = json.loads(gallery.desk.resources.objects.get(f"jobs/{job_id}/manifest.json"))
    assert manifest["refresh"] == refresh.as_json()
    planned = call("jobs", "refresh", gallery.job_id, "--dry-run")
    assert planned.splitlines() == [
        f"job {gallery.job_id}: {refresh.asked_again} questions would be asked again (captions {refresh.asked_again})",
        f"{refresh.taken_over} answers would be taken over",
    ]
    assert json.loads(call("jobs", "refresh", job_id, "--dry-run", "--json"))["asked_again"] == 0
    third = json.loads(call("jobs", "refresh", job_id, "--json"))
    assert (third["refresh"]["refreshes"], third["is_new"]) == (job_id, True)
    assert "refreshes it already" in call("jobs", "refresh", job_id)
