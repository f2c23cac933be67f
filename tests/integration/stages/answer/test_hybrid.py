"""Answers from candidates that pictures and captions find, reranked by need; with the mini models on real stores."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from pyarrow import parquet
from sqlalchemy import select

from ragllava.client import Client
from ragllava.feedback import NoisyReason
from ragllava.models.generator import AnswerRequest
from ragllava.models.reranker import Pair, Relevance
from ragllava.postcards.archive import KnownQuestion, draw_archive
from ragllava.postcards.questions import QuestionStyle
from ragllava.records import AnswerStatus, Candidate, Depth, Origin, Retrieval, by_relevance, by_retrieval
from ragllava.source_files import SourceFile
from ragllava.stages.ingest.uris import file_uri
from ragllava.stages.results.results import ResultRow
from ragllava.stores import schema
from ragllava.stores.archives import vector_search, vectors
from ragllava.stores.objects import content_key
from tests.conftest import environment_of
from tests.integration.conftest import Postcards
from tests.support.maintenance_tasks import do, report
from tests.support.run_command import runner
from tests.support.workshop import ARCHIVE, PAPER, Workshop

TOP_K = 2  # of 60 pictures: a question by name alone has its picture among them by chance


@pytest.fixture(scope="module")
def by_name(postcards: Postcards) -> list[KnownQuestion]:
    """Questions that name their postcard and say nothing of what it shows."""
    archive = draw_archive(seed=3, images=60, questions=24, two_image_share=0.0, style=QuestionStyle.NAME)
    assert archive.postcards == postcards.archive.postcards
    return list(archive.questions[:14])


@pytest.fixture(scope="module")
def about_two(postcards: Postcards) -> list[KnownQuestion]:
    """Questions that name two postcards."""
    archive = draw_archive(seed=3, images=60, questions=8, two_image_share=1.0, style=QuestionStyle.NAME)
    assert archive.postcards == postcards.archive.postcards
    return list(archive.questions)


def texts_of(questions: Sequence[KnownQuestion]) -> list[str]:
    return [question.text for question in questions]


@pytest.fixture(scope="module")
def job_id(whole_gallery: Workshop, by_name: list[KnownQuestion]) -> int:
    """A job of the questions by name with the default ways of retrieval and depth."""
    submitted = whole_gallery.submit(texts_of(by_name), top_k=TOP_K)
    whole_gallery.run()
    return submitted.job_id


@pytest.fixture(scope="module")
def hybrid(whole_gallery: Workshop, job_id: int) -> list[ResultRow]:
    return whole_gallery.rows(job_id)


@pytest.fixture(scope="module")
def paper(whole_gallery: Workshop, by_name: list[KnownQuestion]) -> list[ResultRow]:
    """The same questions in the paper's set-up."""
    return whole_gallery.ask(texts_of(by_name), top_k=TOP_K, **PAPER)


def sources(candidates: Sequence[Candidate]) -> list[str]:
    return [candidate.image.source for candidate in candidates]


def reranked(row: ResultRow) -> list[Candidate]:
    return [candidate for candidate in row.candidates if candidate.relevance is not None]


def unread(rows: Sequence[ResultRow]) -> list[Candidate]:
    return [candidate for row in rows for candidate in row.candidates if candidate.relevance is None]


def facts(row: ResultRow) -> tuple[object, ...]:
    """All that must not depend on the other questions of a batch; scores are equal but for rounding."""
    candidates = [
        (
            c.image,
            c.retrieval_rank,
            c.origin,
            c.caption_rank,
            c.evidence_no,
            *(pytest.approx(score, abs=1e-3) for score in (c.retrieval_score, c.caption_score)),
            pytest.approx(c.relevance, abs=1e-4),
        )
        for c in by_retrieval(row.candidates)
    ]
    return row.question, row.status, row.answer, row.note, row.models, candidates


# What is found


def test_questions_that_only_captions_answer_are_answered(
    hybrid: list[ResultRow], paper: list[ResultRow], by_name: list[KnownQuestion]
) -> None:
    far = [
        number
        for number, (row, question) in enumerate(zip(paper, by_name, strict=True))
        if question.relevant[0] not in sources(row.candidates)
    ]
    assert len(far) >= 5, "the pictures alone find them: the test shows nothing"
    for number in far:
        [image] = [c for c in hybrid[number].candidates if c.image.source == by_name[number].relevant[0]]
        assert image.origin is Origin.CAPTION and image.retrieval_rank >= TOP_K
        assert image.caption_rank == 0 and image.caption_score is not None and image.caption_score > 0
        assert image.relevance is not None
        assert image.retrieval_score < min(c.retrieval_score for c in paper[number].candidates) + 1e-4
    right = [hybrid[number].answer == by_name[number].answer for number in far]
    assert sum(right) >= 0.8 * len(far)


def test_the_nearest_pictures_are_never_displaced(
    whole_gallery: Workshop,
    by_name: list[KnownQuestion],
    about_two: list[KnownQuestion],
    ten_questions: list[str],
) -> None:
    texts = [*texts_of(by_name), *texts_of(about_two), *ten_questions, "What is the meaning of life?", "barn"]
    both = [
        whole_gallery.ask(texts, top_k=TOP_K, retrieval=retrieval)
        for retrieval in (Retrieval.HYBRID, Retrieval.PICTURE)
    ]
    for hybrid, picture in zip(*both, strict=True):
        nearest = [(c.image, c.retrieval_rank, c.retrieval_score) for c in by_retrieval(picture.candidates)]
        assert [(c.image, c.retrieval_rank, c.retrieval_score) for c in by_retrieval(hybrid.candidates)][
            :TOP_K
        ] == nearest
        assert [rank for _, rank, _ in nearest] == list(range(TOP_K))
        assert {c.origin for c in picture.candidates} == {Origin.PICTURE}
        assert {c.origin for c in by_retrieval(hybrid.candidates)[TOP_K:]} <= {Origin.CAPTION}
        ranks = [c.retrieval_rank for c in by_retrieval(hybrid.candidates)]
        assert ranks == list(range(len(ranks))), "each rank once"


def test_the_best_captions_of_both_names_are_read(whole_gallery: Workshop, about_two: list[KnownQuestion]) -> None:
    rows = whole_gallery.ask(texts_of(about_two), top_k=TOP_K)
    for row, question in zip(rows, about_two, strict=True):
        assert set(question.relevant) <= set(sources(reranked(row)))


def test_by_captions_alone_a_question_by_name_is_answered_and_any_other_has_no_candidate(
    whole_gallery: Workshop, by_name: list[KnownQuestion]
) -> None:
    *rows, other = whole_gallery.ask([*texts_of(by_name), "Wherefore?"], top_k=TOP_K, retrieval=Retrieval.CAPTION)
    for row, question in zip(rows, by_name, strict=True):
        assert {c.origin for c in row.candidates} == {Origin.CAPTION}
        assert by_retrieval(row.candidates)[0].image.source == question.relevant[0]
        assert [c.caption_rank for c in by_retrieval(row.candidates)] == list(range(len(row.candidates)))
    right = [row.answer == question.answer for row, question in zip(rows, by_name, strict=True)]
    assert sum(right) >= 0.8 * len(right)
    assert (other.status, other.candidates, other.note) == (
        AnswerStatus.NO_EVIDENCE,
        (),
        "no caption has a word of the question",
    )


@pytest.mark.parametrize("caption", [None, "A postcard of a barn"])
def test_captions_that_say_nothing_change_no_answer(
    workshop: Workshop, postcards: Postcards, by_name: list[KnownQuestion], caption: str | None
) -> None:
    pictures = [postcards.written.pictures / card.file_name for card in postcards.archive.postcards[:8]]
    workshop.ingest_files([SourceFile(path.name, file_uri(path), caption) for path in pictures])
    texts = [*texts_of(by_name[:4]), "What color is the barn?"]
    plain, joined = (
        workshop.ask(texts, top_k=TOP_K, retrieval=retrieval, depth=Depth.FIXED)
        for retrieval in (Retrieval.PICTURE, Retrieval.HYBRID)
    )
    for before, after in zip(plain, joined, strict=True):
        assert facts(replace(after, models=before.models)) == facts(before)
        assert len(after.candidates) == TOP_K


# Misspelt names


class NotingAnswers:
    """The real generator, which notes the questions that it is asked."""

    def __init__(self, generator: Any) -> None:
        self._generator = generator
        self.version = generator.version
        self.questions: list[str] = []

    def answer(self, requests: Sequence[AnswerRequest], **options: Any) -> Any:
        self.questions += [request.question for request in requests]
        return self._generator.answer(requests, **options)


def test_a_surely_misspelt_name_is_read_as_its_caption_spells_it(whole_gallery: Workshop, postcards: Postcards) -> None:
    card = postcards.archive.postcards[3].landmark
    name, city = card.entity.name, card.entity.city
    right = f"In what year was the {card.title} in {city} pictured?"
    wrong_name = name[:2] + name[2] + name[2:]
    wrong = right.replace(name, wrong_name)
    reranker = Counting(whole_gallery.resources.models.reranker)
    generator = NotingAnswers(whole_gallery.resources.models.generator)
    noting = whole_gallery.with_models(reranker=reranker, generator=generator)
    [row, as_written] = noting.ask([wrong, right], top_k=TOP_K)
    assert (row.question, row.answer) == (wrong, str(card.entity.year))
    assert row.note == f'"{wrong_name}", which the archive does not have, was read as "{name}"'
    assert [c.relevance for c in row.evidence] == pytest.approx([c.relevance for c in as_written.evidence], abs=1e-5)
    assert as_written.note is None
    assert {question for question, _ in reranker.pairs} == {*generator.questions} == {right}

    reranker.pairs.clear()
    [by_picture] = noting.ask([wrong], top_k=TOP_K, retrieval=Retrieval.PICTURE)
    assert {question for question, _ in reranker.pairs} == {wrong}
    assert wrong_name not in (by_picture.note or "")


# The paper's set-up


def test_the_paper_s_set_up_is_a_direct_computation(
    whole_gallery: Workshop, ten_questions: list[str], postcards: Postcards
) -> None:
    """The slow and obvious way: the nearest vectors, each pair alone, the best two above the threshold, one answer."""
    models, archive_id = whole_gallery.resources.models, whole_gallery.archive_id()
    threshold, images = models.profile.threshold, {row.id: row for row in whole_gallery.images().values()}
    with whole_gallery.engine.begin() as connection:
        index = vectors.active_index(connection, archive_id)
        assert index is not None
        nearest = vector_search.search_exact(connection, index, models.retriever.embed_texts(ten_questions), 8)

    def opened(image_id: int) -> Image.Image:
        return Image.open(postcards.written.pictures / images[image_id].source).convert("RGB")

    rows = whole_gallery.ask(ten_questions, top_k=8, **PAPER)
    assert {row.status for row in rows} <= {AnswerStatus.ANSWERED, AnswerStatus.NO_EVIDENCE}
    for row, text, hits in zip(rows, ten_questions, nearest, strict=True):
        found = by_retrieval(row.candidates)
        assert [(c.image.image_id, c.retrieval_rank) for c in found] == [(h.image_id, r) for r, h in enumerate(hits)]
        assert [c.retrieval_score for c in found] == pytest.approx([h.retrieval_score for h in hits], abs=1e-3)
        pairs = [Pair(text, images[hit.image_id].caption, opened(hit.image_id)) for hit in hits]
        [*scores] = (models.reranker.relevance([pair], batch_size=1)[0].value for pair in pairs)
        assert [c.relevance for c in found] == pytest.approx(scores, abs=1e-5)
        kept = [
            hit.image_id
            for score, hit in sorted(zip(scores, hits, strict=True), key=lambda pair: -pair[0])[:2]
            if score >= threshold
        ]
        assert [c.image.image_id for c in row.evidence] == kept
        if kept:
            captions = tuple(images[image_id].caption for image_id in kept)
            [answer] = models.generator.answer(
                [AnswerRequest(text, captions, tuple(map(opened, kept)))],
                max_tokens=whole_gallery.settings.max_answer_tokens,
                with_captions=True,
                batch_size=1,
            )
            assert row.answer == answer.text
            assert row.confidence == pytest.approx(answer.confidence, abs=1e-4)
        assert (row.status is AnswerStatus.ANSWERED) == bool(kept)
        assert {(c.origin, c.caption_rank, c.caption_score) for c in found} == {(Origin.PICTURE, None, None)}


# Depth by need


class Counting:
    """The real reranker, which notes the pairs that it is given."""

    def __init__(self, reranker: Any) -> None:
        self._reranker = reranker
        self.version, self.sharing = reranker.version, reranker.sharing
        self.pairs: list[tuple[str, str | None]] = []

    def relevance(self, pairs: Sequence[Pair], batch_size: int) -> list[Relevance]:
        self.pairs += [(pair.question, pair.caption) for pair in pairs]
        scored: list[Relevance] = self._reranker.relevance(pairs, batch_size=batch_size)
        return scored


def test_by_need_fewer_pairs_are_reranked_and_none_twice(whole_gallery: Workshop, by_name: list[KnownQuestion]) -> None:
    texts = texts_of(by_name)
    counting = [Counting(whole_gallery.resources.models.reranker) for _ in range(2)]
    need, fixed = (
        whole_gallery.with_models(reranker=reranker).ask(texts, top_k=20, depth=depth)
        for reranker, depth in zip(counting, (Depth.NEED, Depth.FIXED), strict=True)
    )
    few, all_pairs = (reranker.pairs for reranker in counting)
    assert len(few) == len(set(few)) == sum(len(reranked(row)) for row in need)
    assert len(all_pairs) == sum(len(row.candidates) for row in fixed)
    assert len(few) <= 0.4 * len(all_pairs)
    assert unread(fixed) == [] and len(unread(need)) == len(all_pairs) - len(few)
    for row, complete in zip(need, fixed, strict=True):
        found = {c.image.image_id: c for c in complete.candidates}
        assert found.keys() == {c.image.image_id for c in row.candidates}
        for candidate in reranked(row):
            assert candidate.relevance == pytest.approx(found[candidate.image.image_id].relevance, abs=1e-5)
        # What stopped early has evidence that all candidates would have given too.
        assert {c.image.image_id for c in row.evidence[:1]} <= {c.image.image_id for c in complete.evidence}
        assert row.status is complete.status


def test_a_question_has_the_same_result_beside_any_others(
    whole_gallery: Workshop,
    hybrid: list[ResultRow],
    by_name: list[KnownQuestion],
    about_two: list[KnownQuestion],
    ten_questions: list[str],
) -> None:
    texts = texts_of(by_name)
    expected = {row.question: facts(row) for row in hybrid}
    assert unread(hybrid), "all candidates were reranked: the test shows nothing"
    alone = whole_gallery.ask(texts[:1], top_k=TOP_K) + whole_gallery.ask(texts[5:6], top_k=TOP_K)
    others = [*texts_of(about_two), *ten_questions]
    beside = whole_gallery.ask([*others[:9], *reversed(texts), *others[9:]], top_k=TOP_K)
    shards = whole_gallery.with_settings(questions_per_shard=3, questions_per_step=2, pairs_per_batch=5)
    split = whole_gallery.with_settings(shard_seconds=0.001, questions_per_step=3)
    rows = [*alone, *beside, *shards.ask(texts, top_k=TOP_K), *split.ask(texts, top_k=TOP_K)]
    compared = [row for row in rows if row.question in expected]
    assert len(compared) == 2 + 3 * len(texts)
    for row in compared:
        assert facts(row) == expected[row.question]


def test_a_picture_that_another_question_cannot_read_stays_a_candidate(
    workshop: Workshop, postcards: Postcards
) -> None:
    """It was not reranked for the question, so it does not matter whether it can be read."""
    cards = postcards.archive.postcards[:8]
    workshop.ingest(
        *(postcards.written.pictures / card.file_name for card in cards), captions=postcards.written.captions
    )
    texts = [f"What color is the {card.landmark.title} in {card.landmark.entity.city}?" for card in cards]
    before = workshop.ask(texts, top_k=8)
    spared = {row.question: {c.image.source for c in row.candidates if c.relevance is None} for row in before}
    lost = next(card for card in cards if any(card.file_name in names for names in spared.values()))
    needed = next(row.question for row in before if card_read(row, lost.file_name))
    unneeded = next(question for question, names in spared.items() if lost.file_name in names)
    workshop.resources.objects.delete(content_key(workshop.images()[lost.file_name].sha256))
    fresh = workshop.with_settings()
    [alone] = fresh.ask([str(unneeded)], top_k=8)
    first, second = fresh.ask([str(needed), str(unneeded)], top_k=8)
    assert first.note is not None and f"{lost.file_name}: " in first.note
    assert lost.file_name not in sources(first.candidates)
    assert facts(second) == facts(alone)
    assert second.note is None and lost.file_name in sources(second.candidates)


def card_read(row: ResultRow, source: str) -> bool:
    return any(c.image.source == source and c.relevance is not None for c in row.candidates)


def test_after_a_wave_without_any_readable_picture_comes_the_next(
    workshop: Workshop, postcards: Postcards, by_name: list[KnownQuestion]
) -> None:
    workshop.ingest(postcards.written.pictures, captions=postcards.written.captions)
    question = by_name[0]
    [whole] = workshop.ask([question.text], top_k=TOP_K)
    first_wave = [c.image for c in reranked(whole)]
    assert question.relevant[0] in [image.source for image in first_wave] and unread([whole])
    for image in first_wave:
        workshop.resources.objects.delete_content(image.sha256)
    [row] = workshop.with_settings().ask([question.text], top_k=TOP_K)
    assert {c.image.image_id for c in row.candidates} == {c.image.image_id for c in unread([whole])}
    assert reranked(row), "the next wave was reranked"
    assert row.note is not None and all(f"{image.source}: " in row.note for image in first_wave)


# What is stored and shown


def test_how_a_candidate_was_found_is_stored(whole_gallery: Workshop, job_id: int, hybrid: list[ResultRow]) -> None:
    table = schema.candidates
    with whole_gallery.engine.begin() as connection:
        rows = connection.execute(select(table).where(table.c.job_id == job_id)).all()
    stored = {(row.question_no, row.image_id): row for row in rows}
    assert len(stored) == len(rows) == sum(len(row.candidates) for row in hybrid)
    for number, row in enumerate(hybrid):
        assert list(row.candidates) == by_relevance(row.candidates), "those that were not reranked are last"
        for candidate in row.candidates:
            kept = stored[number, candidate.image.image_id]
            assert (kept.origin, kept.retrieval_rank, kept.relevance) == (
                candidate.origin.value,
                candidate.retrieval_rank,
                candidate.relevance,
            )
            assert (kept.caption_rank, kept.caption_score) == (candidate.caption_rank, candidate.caption_score)
            assert (candidate.caption_rank is None) == (candidate.origin is Origin.PICTURE)
            assert (candidate.caption_score is None) == (candidate.origin is Origin.PICTURE)
    assert sum(row.relevance is None for row in rows) == len(unread(hybrid)) > 0
    assert all(c.evidence_no is None for c in unread(hybrid))


def test_result_files_say_how_evidence_was_found(
    whole_gallery: Workshop, job_id: int, hybrid: list[ResultRow], tmp_path: Path
) -> None:
    client = Client(whole_gallery.settings)
    for ending in ("jsonl", "csv", "parquet"):
        client.questions.save_results(job_id, tmp_path / f"out.{ending}")
    client.close()
    lines = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert parquet.read_table(tmp_path / "out.parquet").to_pylist() == lines
    with (tmp_path / "out.csv").open(newline="", encoding="utf-8-sig") as file:
        cells = list(csv.DictReader(file))
    by_caption = 0
    for line, cell, row in zip(lines, cells, hybrid, strict=True):
        assert (line["models"]["retrieval"], line["models"]["depth"]) == ("hybrid-1", "need-2")
        assert (cell["model_retrieval"], cell["model_depth"]) == ("hybrid-1", "need-2")
        for number, (shown, candidate) in enumerate(zip(line["evidence"], row.evidence, strict=True), start=1):
            by_caption += candidate.origin is Origin.CAPTION
            rank = None if candidate.caption_rank is None else candidate.caption_rank + 1
            assert (shown["origin"], shown["retrieval_rank"]) == (candidate.origin.value, candidate.retrieval_rank + 1)
            assert shown["caption_rank"] == rank
            assert shown["caption_score"] == (rank and pytest.approx(candidate.caption_score, abs=1e-6))
            for key in ("origin", "retrieval_rank", "caption_rank", "caption_score"):
                assert cell[f"evidence_{number}_{key}"] == ("" if shown[key] is None else str(shown[key]))
    assert by_caption >= 5


def test_the_report_counts_what_was_not_reranked(
    whole_gallery: Workshop, job_id: int, hybrid: list[ResultRow], tmp_path: Path
) -> None:
    client = Client(whole_gallery.settings)
    assert client.questions.save_report(job_id, tmp_path / "report.html") == len(hybrid)
    client.close()
    page = (tmp_path / "report.html").read_text()
    assert page.count("not reranked: the evidence sufficed") == sum(bool(unread([row])) for row in hybrid) > 0
    shown = [c for row in hybrid for c in reranked(row)]
    assert page.count("by its caption · ") == sum(c.origin is Origin.CAPTION for c in shown) > 0
    assert page.count("by picture and caption · ") == sum(c.origin is Origin.BOTH for c in shown)


def test_noisy_cases_show_and_export_what_was_not_reranked(
    whole_gallery: Workshop,
    by_name: list[KnownQuestion],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    unsure = whole_gallery.with_settings(low_confidence=1.0, leave_one_out=False)
    job_id = unsure.submit(texts_of(by_name), top_k=TOP_K).job_id
    unsure.run()
    rows = {row.custom_id: row for row in unsure.rows(job_id)}
    for name, value in environment_of(unsure.settings).items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)
    run = runner(monkeypatch, capsys)
    tasks_code, _, _ = run("noisy", "export", "tasks.json", "--archive", ARCHIVE, "--reason", "low_confidence")
    tasks = [task["data"] for task in json.loads(Path("tasks.json").read_text())]
    tasks = [task for task in tasks if task["job"] == job_id]
    assert tasks_code == 0 and tasks
    partly = [task for task in tasks if unread([rows[task["custom_id"]]])]
    assert partly
    for task in partly:
        row = rows[task["custom_id"]]
        expected = [(c.image.source, c.relevance is None) for c in row.candidates]
        assert [(c["source"], c["relevance"] is None) for c in task["candidates"]] == expected
        assert expected == sorted(expected, key=lambda pair: pair[1]), "those that were not reranked are last"
        code, out, _ = run("noisy", "show", job_id, row.custom_id)
        assert code == 0
        assert out.count("not reranked") == len(unread([row]))
        shown = json.loads(run("noisy", "show", job_id, row.custom_id, "--json")[1])["candidates"]
        assert [(c["source"], c["relevance"] is None) for c in shown] == expected
        assert [c["origin"] for c in shown] == [c.origin.value for c in row.candidates]


def test_an_image_found_by_its_caption_is_no_disagreement_of_ranks(
    whole_gallery: Workshop, hybrid: list[ResultRow], job_id: int
) -> None:
    """It is behind all of the nearest pictures, and well retrieved."""
    assert any(row.evidence and row.evidence[0].origin is Origin.CAPTION for row in hybrid)
    job = do(whole_gallery, "find-noisy", ARCHIVE)
    assert report(job)["jobs"] >= 1
    cases = schema.noisy_cases
    with whole_gallery.engine.begin() as connection:
        stored = connection.execute(select(cases.c.question_no, cases.c.reasons).where(cases.c.job_id == job_id)).all()
    for row in stored:
        best = hybrid[row.question_no].candidates[0]
        assert NoisyReason.RANKS_DISAGREE not in row.reasons or best.origin is Origin.PICTURE
