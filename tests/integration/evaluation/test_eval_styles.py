"""Rows of an evaluation that compare ways of retrieval and styles of questions, against jobs and against each other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest

from ragllava.evaluation.datasets.load import load_dataset, postcard_set
from ragllava.evaluation.datasets.records import EvaluationSet
from ragllava.evaluation.evaluate import Evaluation, evaluate
from ragllava.evaluation.metrics import score_job
from ragllava.evaluation.pools import Workbench, ingest_pool
from ragllava.evaluation.rankings import RankedQuestion, rank, rank_further, rank_hybrid, retrieve, scored_candidates
from ragllava.evaluation.run_figures import style_table
from ragllava.evaluation.runs import RunOptions
from ragllava.evaluation.threshold import adaptive_threshold
from ragllava.postcards.archive import draw_archive
from ragllava.postcards.questions import QuestionStyle
from ragllava.records import Depth, Retrieval
from ragllava.stages.results.results import ResultRow
from tests.support.webqa_postcards import write_webqa
from tests.support.workshop import Workshop

IMAGES, QUESTIONS, TOP_K = 60, 10, 4
BRIEF = RunOptions(oracle=False)


def drawn(
    style: QuestionStyle, seed: int = 5, images: int = IMAGES, questions: int = QUESTIONS, two_image_share: float = 0.2
) -> EvaluationSet:
    return postcard_set(draw_archive(seed, images, questions, two_image_share, style=style), "test")


@pytest.fixture
def bench(workshop: Workshop, tmp_path: Path) -> Workbench:
    settings = workshop.settings.model_copy(update={"home": tmp_path, "top_k": TOP_K})
    return Workbench(workshop.engine, settings, workshop.resources)


def row_of(evaluation: Evaluation, label: str, style: QuestionStyle = QuestionStyle.NAME) -> dict[str, Any]:
    rows = evaluation.by_style[style].as_json()["rows"]["all"]
    [row] = [row for row in rows if row["label"] == label]
    return dict(row)


def as_job(
    workshop: Workshop, dataset: EvaluationSet, evaluation: Evaluation, retrieval: Retrieval, depth: Depth
) -> list[ResultRow]:
    """The results of a job that asks the same questions with the threshold of hybrid candidates."""
    assert evaluation.hybrid_threshold is not None
    rows = workshop.ask(
        [question.text for question in dataset.questions],
        evaluation.pool.archive_name,
        top_k=TOP_K,
        top_n=dataset.top_n,
        threshold=evaluation.hybrid_threshold.value,
        retrieval=retrieval,
        depth=depth,
    )
    return [replace(row, custom_id=question.custom_id) for row, question in zip(rows, dataset.questions, strict=True)]


@pytest.mark.parametrize(
    ("style", "depth"), [(QuestionStyle.MISSPELT, Depth.NEED), (QuestionStyle.NAME, Depth.FIXED)], ids=str
)
def test_the_hybrid_rows_are_those_of_a_job(
    bench: Workbench, workshop: Workshop, style: QuestionStyle, depth: Depth
) -> None:
    dataset = drawn(style)
    evaluation = evaluate(dataset, None, bench, replace(BRIEF, depth=depth))
    rows = as_job(workshop, dataset, evaluation, Retrieval.HYBRID, depth)
    job = score_job(dataset.questions, rows).all
    labels = ("hybrid retrieval", "hybrid, reranked, adaptive η")
    retrieved, reranked = (row_of(evaluation, label, style) for label in labels)
    assert any("was read as" in (row.note or "") for row in rows) is (style is QuestionStyle.MISSPELT)
    assert retrieved["recall_of_all"] == reranked["recall_of_all"] == round(job.candidate_recall, 4)
    assert retrieved["candidates"] == round(fmean(len(row.candidates) for row in rows), 4)
    assert retrieved["reranked"] is None
    counts = [sum(candidate.relevance is not None for candidate in row.candidates) for row in rows]
    assert reranked["reranked"] == round(fmean(counts), 4)
    assert (reranked["reranked"] == reranked["candidates"]) is (depth is Depth.FIXED)
    assert reranked["answer_score"] == round(job.answer_accuracy, 4)
    sources = {question.custom_id: question.relevant for question in dataset.questions}
    kept = [candidate.image.source in sources[row.custom_id or ""] for row in rows for candidate in row.evidence]
    assert reranked["precision"] == round(sum(kept) / len(kept), 4)


def test_captions_find_what_pictures_do_not(bench: Workbench) -> None:
    """The questions give nothing that can be seen but the kind of thing."""
    evaluation = evaluate(drawn(QuestionStyle.NAME), None, bench, BRIEF)
    picture, caption, hybrid = (row_of(evaluation, f"{way}retrieval") for way in ("", "caption ", "hybrid "))
    assert picture["recall_of_all"] < 0.7
    assert min(caption["recall_of_all"], hybrid["recall_of_all"]) >= 0.9
    assert picture["candidates"] == TOP_K < hybrid["candidates"]
    assert [hybrid[f"recall_at_{k}"] for k in (1, 2)] == [picture[f"recall_at_{k}"] for k in (1, 2)]
    answers = [row_of(evaluation, f"{way}reranked, adaptive η")["answer_score"] for way in ("", "hybrid, ")]
    assert answers[0] < answers[1]


def test_every_style_asks_about_the_same_pool(bench: Workbench) -> None:
    sets = [drawn(style, images=40, questions=6) for style in QuestionStyle]
    options = RunOptions(hide_captions=True, noise=(0.5,))
    evaluation = evaluate(sets[0], None, bench, options, sets[1:])
    assert list(evaluation.by_style) == [*QuestionStyle]
    assert evaluation.by_style[QuestionStyle.CUES] == evaluation.figures
    alone = evaluate(sets[1], None, bench, replace(options, hide_captions=False, noise=()))
    assert evaluation.by_style[QuestionStyle.NAME].as_json() == alone.figures.as_json()
    labels = [row.label for row in evaluation.by_style[QuestionStyle.MISSPELT].rows["all"]]
    assert "labelled images" in labels
    assert not [label for label in labels if "hidden" in label or "wrong" in label]
    written = evaluation.as_json()
    assert (written["style"], list(written["by_style"])) == ("cues", [style.value for style in QuestionStyle])
    table = style_table(evaluation.by_style).splitlines()
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in table]
    assert lines[0] == ["", "questions", "retrieval", "R@20", "R@all", "candidates", "reranked", "answers"]
    assert [(line[0], line[2]) for line in lines[2:5]] == [
        ("cues, one image", way) for way in ("picture", "caption", "hybrid")
    ]
    assert len(lines) == 2 + len(QuestionStyle) * 2 * 3


def test_the_row_of_the_paper_is_that_of_a_job_with_its_options(bench: Workbench, workshop: Workshop) -> None:
    dataset = drawn(QuestionStyle.CUES)
    evaluation = evaluate(dataset, None, bench, BRIEF)
    job = score_job(dataset.questions, as_job(workshop, dataset, evaluation, Retrieval.PICTURE, Depth.FIXED)).all
    row = row_of(evaluation, "reranked, adaptive η", QuestionStyle.CUES)
    assert (row["answer_score"], row["reranked"]) == (round(job.answer_accuracy, 4), TOP_K)


def relevances(ranked: Sequence[RankedQuestion]) -> list[dict[str, float]]:
    return [question.relevances for question in ranked]


@pytest.mark.parametrize("style", [QuestionStyle.NAME, QuestionStyle.MISSPELT])
def test_candidates_that_are_ranked_already_are_not_ranked_again(
    bench: Workbench, monkeypatch: pytest.MonkeyPatch, style: QuestionStyle
) -> None:
    """But for those of a question that a caption corrects."""
    dataset = drawn(style)
    pool = ingest_pool(dataset, bench)
    ranked = rank(dataset, pool, bench)
    every = rank_hybrid(dataset, pool, bench, threshold=0.0, depth=Depth.FIXED)
    reranker = type(bench.resources.models.reranker)
    pairs: list[int] = []
    score = reranker.relevance

    def counting(self: Any, asked: Sequence[Any], batch_size: int) -> Any:
        pairs.append(len(asked))
        return score(self, asked, batch_size)

    monkeypatch.setattr(reranker, "relevance", counting)
    further = rank_further(dataset, pool, bench, ranked)
    for ours, theirs in zip(relevances(further), relevances(every), strict=True):
        assert ours == pytest.approx(theirs, abs=1e-5)
    assert [question.ranking for question in further] == [question.ranking for question in every]
    corrected = sum(any(candidate.spellings for candidate in question.candidates) for question in every)
    assert (corrected > 0) is (style is QuestionStyle.MISSPELT)
    assert sum(pairs) == sum(map(len, relevances(every))) - TOP_K * (QUESTIONS - corrected) > 0


def test_the_threshold_of_hybrid_candidates_is_fitted_on_all_of_them(bench: Workbench) -> None:
    calibration = drawn(QuestionStyle.NAME, 1005, questions=40, two_image_share=0.0)
    evaluation = evaluate(drawn(QuestionStyle.NAME), calibration, bench, BRIEF)
    pool = ingest_pool(calibration, bench)
    ranked = rank_further(calibration, pool, bench, rank(calibration, pool, bench))
    scored = scored_candidates(ranked)
    expected = adaptive_threshold(scored.relevance, scored.is_labelled)
    assert expected.method == "adaptive"
    assert evaluation.hybrid_threshold is not None
    assert evaluation.hybrid_threshold.fit == expected
    assert row_of(evaluation, "hybrid, reranked, adaptive η")["threshold"] == expected.value
    assert evaluation.as_json()["hybrid_threshold"]["value"] == expected.value
    candidates = retrieve(calibration, pool, bench, Retrieval.HYBRID)
    assert expected.correct_count + expected.wrong_count == sum(len(question.candidates) for question in candidates)


def test_images_without_captions_have_no_hybrid_row(bench: Workbench) -> None:
    dataset = drawn(QuestionStyle.CUES, images=12, questions=2, two_image_share=0.0)
    bare = replace(dataset, images=tuple(replace(image, caption=None) for image in dataset.images))
    evaluation = evaluate(bare, None, bench, BRIEF)
    labels = [row.label for row in evaluation.figures.rows["all"]]
    assert labels == ["retrieval", "reranked", "reranked, natural η", "reranked, adaptive η"]
    assert evaluation.hybrid_threshold is None


def test_a_set_in_the_form_of_webqa_has_a_hybrid_row_beside_the_picture_row(bench: Workbench, tmp_path: Path) -> None:
    archive = draw_archive(5, IMAGES, QUESTIONS, style=QuestionStyle.NAME)
    write_webqa(tmp_path, archive)
    dataset = load_dataset("webqa", tmp_path, "val")
    assert (len(dataset.images), len(dataset.questions)) == (IMAGES, QUESTIONS)
    evaluation = evaluate(dataset, None, bench, BRIEF)
    rows = {row["label"]: row for row in evaluation.as_json()["rows"]["all"]}
    as_postcards = evaluate(postcard_set(archive, "test"), None, bench, BRIEF)
    for label in ("retrieval", "caption retrieval", "hybrid retrieval", "hybrid, reranked, adaptive η"):
        assert rows[label]["recall_of_all"] == row_of(as_postcards, label)["recall_of_all"]
    assert rows["retrieval"]["recall_of_all"] < rows["hybrid retrieval"]["recall_of_all"]
    assert rows["hybrid, reranked, adaptive η"]["answer_score"] > rows["reranked, adaptive η"]["answer_score"]
    assert evaluation.by_style == {}
    assert style_table({"webqa": evaluation.figures}).splitlines()[2].startswith("| webqa, one image")
