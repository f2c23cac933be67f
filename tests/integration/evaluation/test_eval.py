"""An evaluation on real services with the mini models: its figures against those of jobs."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import astuple, replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, ImageChops
from sqlalchemy import func, select

from ragllava.errors import JobRefused, ServiceUnavailable, UsageError
from ragllava.evaluation.datasets.load import load_dataset, postcard_set
from ragllava.evaluation.datasets.records import (
    EvaluationImage,
    EvaluationQuestion,
    EvaluationSet,
    FilePicture,
)
from ragllava.evaluation.evaluate import Evaluation, evaluate
from ragllava.evaluation.metrics import score_job
from ragllava.evaluation.pools import Workbench, archive_name, ingest_pool
from ragllava.evaluation.rankings import Ranker, apply_champions, as_questions, rank
from ragllava.evaluation.runs import Answerer, RunArm, RunOptions, rank_by_all, run_arms
from ragllava.evaluation.threshold import adaptive_threshold
from ragllava.jobs.inline import run_job, take_pending
from ragllava.jobs.runner import ShardContext
from ragllava.json_records import to_json
from ragllava.models.mllm import Mllm
from ragllava.postcards.archive import draw_archive
from ragllava.prompts import PromptParts
from ragllava.records import AnswerOptions, JobKind, Retrieval
from ragllava.stages.answer import pipeline
from ragllava.stages.answer.stage import answer_stage
from ragllava.stages.answer.tools import prepare
from ragllava.stages.resources import Resources
from ragllava.stages.results.results import ResultRow
from ragllava.stores.archives import archive
from ragllava.stores.schema import images, jobs
from tests.integration.conftest import Postcards
from tests.support.dataset_fixtures import copied, write_rows
from tests.support.picture_files import encoded, grainy
from tests.support.workshop import Workshop, stages_replaced

QUESTIONS = 10
TOP_K = 8


def drawn(seed: int, images: int = 24, questions: int = QUESTIONS, two_image_share: float = 0.2) -> EvaluationSet:
    return postcard_set(draw_archive(seed, images, questions, two_image_share), "test")


@pytest.fixture
def bench(workshop: Workshop, tmp_path: Path) -> Workbench:
    settings = workshop.settings.model_copy(update={"home": tmp_path, "top_k": TOP_K})
    return Workbench(workshop.engine, settings, workshop.resources)


def ask_as_job(workshop: Workshop, dataset: EvaluationSet, archive: str, threshold: float) -> list[ResultRow]:
    rows = workshop.ask(
        [question.text for question in dataset.questions],
        archive,
        top_k=TOP_K,
        top_n=dataset.top_n,
        threshold=threshold,
    )
    return [replace(row, custom_id=question.custom_id) for row, question in zip(rows, dataset.questions, strict=True)]


def figures(found: Evaluation, group: str, label: str) -> dict[str, Any]:
    rows = found.as_json()["rows"][group]
    [row] = [row for row in rows if row["label"] == label]
    return dict(row)


def arms_of(dataset: EvaluationSet, found: Evaluation, bench: Workbench, options: RunOptions) -> list[RunArm]:
    return run_arms(dataset, found.pool, bench, rank_by_all(dataset, found.pool, bench, options), [], options)


def test_figures_are_those_of_a_job_with_the_same_threshold(bench: Workbench, workshop: Workshop) -> None:
    dataset = drawn(seed=5)
    found = evaluate(dataset, None, bench, RunOptions(oracle=False))
    job = score_job(dataset.questions, ask_as_job(workshop, dataset, found.pool.archive_name, threshold=0.5))
    for group, expected in {"all": job.all, "one_image": job.one_image, "two_images": job.two_image}.items():
        assert expected is not None
        clip, reranked = figures(found, group, "retrieval"), figures(found, group, "reranked")
        assert clip["recall_at_1"] == round(expected.retrieval_recall[1], 4)
        assert clip["recall_at_5"] == round(expected.retrieval_recall[5], 4)
        assert reranked["recall_at_2"] == round(expected.reranked_recall[2], 4)
        assert figures(found, group, "reranked, natural η")["answer_score"] == round(expected.answer_accuracy, 4)
    outcomes = found.figures.outcomes["reranked, natural η"]
    assert outcomes.get("no_evidence", 0) == job.all.no_evidence
    by_type = found.figures.by_type["reranked, natural η"]
    assert {name: astuple(kind) for name, kind in by_type.items()} == {
        name: pytest.approx(astuple(kind)) for name, kind in job.by_type.items()
    }
    assert {"profile", "retriever", "reranker", "generator", "prompt"} == set(found.models)


def test_a_second_evaluation_finds_its_archive_again(bench: Workbench, workshop: Workshop) -> None:
    dataset = drawn(seed=6, images=12, questions=2)
    first, second = ingest_pool(dataset, bench), ingest_pool(dataset, bench)
    assert second == first
    assert set(first.images) == {image.image_id for image in dataset.images}
    with workshop.engine.begin() as connection:
        assert connection.scalar(select(func.count()).select_from(images)) == 12
        kinds = connection.execute(select(jobs.c.kind, jobs.c.state)).all()
    assert [tuple(row) for row in kinds] == [(JobKind.INGEST, "completed")] * 2
    assert ingest_pool(drawn(seed=7, images=12, questions=2), bench).archive_name != first.archive_name


def test_the_threshold_is_fitted_on_the_other_set_alone(bench: Workbench) -> None:
    reported, calibration = drawn(seed=5), drawn(seed=1005, images=60, questions=40, two_image_share=0.0)
    found = evaluate(reported, calibration, bench, RunOptions(oracle=False))
    pool = ingest_pool(calibration, bench)
    pairs = [
        (relevance, source in question.relevant)
        for question, one in zip(calibration.questions, rank(calibration, pool, bench), strict=True)
        for source, relevance in one.relevances.items()
    ]
    expected = adaptive_threshold([relevance for relevance, _ in pairs], [correct for _, correct in pairs])
    assert found.threshold is not None
    assert found.threshold.fit == expected
    assert expected.method == "adaptive"
    assert expected.correct_count + expected.wrong_count == 40 * TOP_K
    assert pool.archive_name in found.threshold.source
    assert figures(found, "all", "reranked, adaptive η")["threshold"] == expected.value


def test_where_no_threshold_can_be_fitted_the_rerankers_own_serves(bench: Workbench) -> None:
    reported, calibration = drawn(seed=5, images=12, questions=2), drawn(seed=1005, images=12, questions=2)
    pool = ingest_pool(reported, bench)
    own = apply_champions(pool, bench)
    found = evaluate(reported, calibration, bench, RunOptions(oracle=False))
    assert found.threshold is not None
    assert (found.threshold.value, found.threshold.fit) == (own, None)
    version = bench.resources.models.reranker.version
    assert found.threshold.source.startswith(f"of the reranker {version}, for none could be fitted on 2 questions to ")
    assert "are too few" in found.threshold.source
    assert figures(found, "all", "reranked, adaptive η")["threshold"] == own


def test_nothing_is_calibrated_on_what_is_reported(bench: Workbench) -> None:
    dataset = drawn(seed=5, images=12, questions=2)
    with pytest.raises(UsageError, match="calibrate on another split or seed"):
        evaluate(dataset, dataset, bench, RunOptions())


def test_given_evidence_goes_through_the_prompt_of_jobs(bench: Workbench, workshop: Workshop) -> None:
    """An answer from the labelled image is that of a job which found and kept this image alone."""
    dataset = drawn(seed=5, two_image_share=0.0)
    found = evaluate(dataset, None, bench, RunOptions(noise=()))
    rows = ask_as_job(workshop, replace(dataset, top_n=1), found.pool.archive_name, threshold=0.0)
    ranked = {row.custom_id: row for row in rows}
    arms = arms_of(dataset, found, bench, RunOptions(noise=()))
    [oracle] = [arm for arm in arms if arm.label == "labelled images"]
    assert oracle.answers is not None
    compared = 0
    for question, given in zip(dataset.questions, oracle.answers, strict=True):
        row = ranked[question.custom_id]
        if [image.image.source for image in row.evidence] == list(question.relevant):
            compared += 1
            assert given.text == row.answer
            assert given.confidence == pytest.approx(row.confidence, rel=1e-4)
    assert compared >= QUESTIONS // 2


def test_wrong_evidence_is_shown_as_asked(bench: Workbench, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = drawn(seed=5)
    shown: dict[str, Sequence[Sequence[str]]] = {}
    ask = Answerer.answers

    def noting(self: Answerer, label: str, evidence: Sequence[Sequence[object]], *candidates: Any) -> object:
        shown[label] = [[image.source for image in row] for row in evidence]  # type: ignore[attr-defined]
        return ask(self, label, evidence, *candidates)  # type: ignore[arg-type]

    monkeypatch.setattr(Answerer, "answers", noting)
    found = evaluate(dataset, None, bench, RunOptions(seed=3, noise=(0.5,)))
    labelled = [list(question.relevant) for question in dataset.questions]
    assert shown["labelled images"] == labelled
    places = [
        (was, now)
        for row, swapped in zip(labelled, shown["labelled, 50 % wrong"], strict=True)
        for was, now in zip(row, swapped, strict=True)
    ]
    assert sum(was != now for was, now in places) == round(0.5 * len(places))
    for row, with_wrong in zip(labelled, shown["labelled and a wrong one"], strict=True):
        assert [source for source in with_wrong if source in row] == row
        assert len(with_wrong) == len(row) + 1
    scores = [figures(found, "all", label)["answer_score"] for label in ("labelled images", "labelled, 50 % wrong")]
    assert scores[1] < scores[0]


def test_rows_of_the_papers_set_up(bench: Workbench, monkeypatch: pytest.MonkeyPatch) -> None:
    """The reranker sees captions and the generator none: its prompt is the question, with or without instruction."""
    dataset = drawn(seed=5, questions=6)
    prompts: dict[str, set[str]] = {}
    render = Mllm.render
    label_now = [""]

    def noting(self: Mllm, parts: PromptParts) -> str:
        prompts.setdefault(label_now[0], set()).update(part for part in parts if part is not None)
        return render(self, parts)

    ask = Answerer.answers

    def labelled(self: Answerer, label: str, evidence: Any, *candidates: Any) -> Any:
        label_now[0] = label
        return ask(self, label, evidence, *candidates)

    monkeypatch.setattr(Mllm, "render", noting)
    monkeypatch.setattr(Answerer, "answers", labelled)
    found = evaluate(dataset, None, bench, RunOptions(noise=(0.5,), paper=True))
    labels = [row["label"] for row in found.as_json()["rows"]["all"]]
    assert {"reranked, generator without captions", "reranked, bare question"} < set(labels)
    assert labels[-1] == "labelled images, bare question"
    assert "labelled, 50 % permuted" in labels
    texts = {question.text for question in dataset.questions}
    instruction = "\nAnswer the question using a single word or phrase."

    trials = {"a trial", "Why?"}  # prompts that only measure lengths
    assert prompts["reranked, bare question"] - trials == texts
    assert prompts["reranked, generator without captions"] - trials == {text + instruction for text in texts}
    assert "bare question" not in found.models["prompt"]


def test_the_papers_threshold_is_fitted_on_kept_candidates(bench: Workbench) -> None:
    reported, calibration = drawn(seed=5), drawn(seed=1005, images=60, questions=40, two_image_share=0.0)
    found = evaluate(reported, calibration, bench, RunOptions(oracle=False))
    pool = ingest_pool(calibration, bench)
    best = [
        (relevance, source in question.relevant)
        for question, one in zip(calibration.questions, rank(calibration, pool, bench), strict=True)
        for source, relevance in list(one.relevances.items())[: calibration.top_n]
    ]
    expected = adaptive_threshold([relevance for relevance, _ in best], [right for _, right in best])
    assert found.paper_threshold is not None
    assert found.paper_threshold.fit == expected
    assert expected.correct_count + expected.wrong_count == 40 * 2
    assert figures(found, "all", "reranked, paper's η")["threshold"] == expected.value


def test_without_reranking_clip_decides(bench: Workbench) -> None:
    dataset = drawn(seed=5)
    found = evaluate(dataset, None, bench, RunOptions(rerank=False, oracle=False))
    ways = ["retrieval", "caption retrieval", "hybrid retrieval"]
    assert [row["label"] for row in found.as_json()["rows"]["all"]] == ways
    arm, *others = arms_of(dataset, found, bench, RunOptions(rerank=False, oracle=False))
    assert [other.answers for other in others] == [None, None]
    tools = prepare(
        bench.engine,
        bench.settings,
        bench.resources,
        found.pool.archive_id,
        to_json(AnswerOptions(TOP_K, threshold=0.0, retrieval=Retrieval.PICTURE)),
    )
    retrieved = pipeline.retrieve(as_questions(dataset), tools)
    for one, candidates in zip(arm.ranked, retrieved, strict=True):
        assert one.ranking == one.retrieval_ranking == [candidate.image.source for candidate in candidates]
        assert [image.source for image in one.evidence(0.0, 2)] == one.ranking[:2]
    assert (found.threshold, found.hybrid_threshold) == (None, None)


def test_hidden_captions_are_seen_by_nobody(bench: Workbench) -> None:
    """The row is that of the same pictures in an archive without captions, asked with the bare prompt."""
    dataset = drawn(seed=5)
    found = evaluate(dataset, None, bench, RunOptions(oracle=False, hide_captions=True))
    bare = replace(dataset, images=tuple(replace(image, caption=None) for image in dataset.images))
    hidden = rank(dataset, found.pool, bench, Ranker.BLIND)
    never_there = rank(bare, ingest_pool(bare, bench), bench)
    for one, other in zip(hidden, never_there, strict=True):
        assert one.relevances == pytest.approx(other.relevances, abs=1e-5)
    row = figures(found, "all", "reranked, captions hidden")
    assert row["answer_score"] < figures(found, "all", "reranked")["answer_score"]


def test_captions_can_be_hidden_from_the_generator_alone(bench: Workbench) -> None:
    """Where nothing is reranked, the retriever's first images are answered from in the paper's form."""
    dataset = drawn(seed=5, questions=4)
    options = RunOptions(rerank=False, oracle=False, hide_captions=True)
    found = evaluate(dataset, None, bench, options)
    shown, hidden = (arm for arm in arms_of(dataset, found, bench, options) if arm.answers is not None)
    assert (shown.label, hidden.label) == ("retrieval", "retrieval, captions hidden")
    assert shown.ranked == hidden.ranked
    tools = prepare(
        bench.engine,
        bench.settings,
        bench.resources,
        found.pool.archive_id,
        to_json(AnswerOptions(TOP_K, top_n=dataset.top_n, threshold=0.0, captions_in_answer=False)),
    )
    answerer = Answerer(as_questions(dataset), tools, bench)
    evidence = [one.evidence(0.0, dataset.top_n) for one in hidden.ranked]
    assert hidden.answers == answerer.answers("by hand", evidence)


def files_set(folder: Path, names: Sequence[str], relevant: str) -> EvaluationSet:
    rng = random.Random(1)
    pool = []
    for name in names:
        if not (folder / name).exists():
            colour = (rng.randrange(256), rng.randrange(256), rng.randrange(256))
            Image.new("RGB", (32, 32), colour).save(folder / name)
        pool.append(EvaluationImage(name, f"picture {name}", FilePicture(folder / name)))
    question = EvaluationQuestion("q1", "", "pair", (relevant,), "a picture")
    return EvaluationSet("coco", "test", tuple(pool), (question,))


def test_copies_count_as_one_image_and_damaged_pictures_are_named(bench: Workbench, tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_bytes(b"no picture")
    names = ["a.png", "b.png", "copy.png", "scan.tif", "broken.png"]
    dataset = files_set(tmp_path, names[:2] + names[3:], "b.png")
    (tmp_path / "copy.png").write_bytes((tmp_path / "b.png").read_bytes())
    dataset = files_set(tmp_path, names, "copy.png")
    pool = ingest_pool(dataset, bench)
    assert pool.left_out == ("broken.png",)
    assert pool.images["copy.png"] == pool.images["b.png"]
    assert pool.images["copy.png"].source == "b.png"
    assert pool.known_here(dataset.questions[0]).relevant == ("b.png",)
    assert set(pool.images) == {"a.png", "b.png", "copy.png", "scan.tif"}
    found = evaluate(dataset, None, bench, RunOptions())
    row = figures(found, "all", "reranked")
    assert row["recall_at_5"] == 1.0  # among four
    assert row["answer_score"] is None  # there is nothing to answer
    assert found.figures.outcomes == {}


def test_a_pool_without_a_readable_picture_is_refused(bench: Workbench, tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_bytes(b"no picture")
    dataset = files_set(tmp_path, ["broken.png"], "broken.png")
    with pytest.raises(JobRefused, match="no picture of coco, split test, could be ingested"):
        ingest_pool(dataset, bench)


def test_shards_of_one_job_run_inline_and_others_stay(workshop: Workshop, postcards: Postcards) -> None:
    workshop.ingest(postcards.written.pictures, captions=postcards.written.captions)
    texts = [question.text for question in postcards.archive.questions[:5]]
    small = replace(workshop, settings=workshop.settings.model_copy(update={"questions_per_shard": 2}))
    ours, other = small.submit(texts, top_k=2), small.submit(texts[:1], top_k=2)
    job = run_job(ours.job_id, small.settings, small.engine, small.resources)
    assert (job.state, job.progress.done) == ("completed", 5)
    assert [row.custom_id for row in workshop.rows(ours.job_id)] == [f"q{number}" for number in range(5)]
    assert workshop.job(other.job_id).state == "running"
    with workshop.engine.begin() as one, workshop.engine.begin() as two:
        taken = take_pending(one, other.job_id)
        assert taken is not None
        assert take_pending(two, other.job_id) is None  # its only shard is being taken; nobody waits


def test_a_job_whose_shard_must_wait_is_finished_later(workshop: Workshop) -> None:
    tried: list[int] = []

    def stage(context: ShardContext[Resources]) -> None:
        tried.append(context.lease.epoch)
        if len(tried) == 1:
            raise ServiceUnavailable("the object store is away")
        answer_stage(context)

    quick = replace(workshop, settings=workshop.settings.model_copy(update={"retry_backoff_s": 0.1}))
    with workshop.engine.begin() as connection:
        archive.ensure_archive(connection, "empty")
    submitted = quick.submit(["what is it?"], "empty")
    with stages_replaced({JobKind.ANSWER: stage}):
        job = run_job(submitted.job_id, quick.settings, quick.engine, quick.resources)
    assert len(tried) == 2
    assert job.progress.by_status == {"no_evidence": 1}


def test_the_name_of_an_archive_follows_from_captions_and_retriever() -> None:
    dataset = drawn(seed=5, images=3, questions=1, two_image_share=0.0)
    recaptioned = replace(dataset, images=(replace(dataset.images[0], caption="else"), *dataset.images[1:]))
    names = {archive_name(dataset, "clip@1"), archive_name(dataset, "clip@2"), archive_name(recaptioned, "clip@1")}
    assert len(names) == 3
    assert all(name.startswith("eval-postcards-test-") for name in names)
    assert archive_name(replace(dataset, questions=dataset.questions[:1]), "clip@1") in names


def test_truncated_pictures_and_packed_tiffs_are_read(bench: Workbench, tmp_path: Path) -> None:
    """WebQA has JPEG files whose end is missing; the reference reads what there is of them."""
    noise = grainy((96, 80), 60).convert("RGB")
    jpeg, tiff = encoded(noise, "JPEG"), encoded(noise.rotate(90), "TIFF")
    (tmp_path / "cut.jpg").write_bytes(jpeg[: 3 * len(jpeg) // 4])
    pool = (EvaluationImage("cut.jpg", "cut.jpg", FilePicture(tmp_path / "cut.jpg")),)
    question = EvaluationQuestion("q1", "grey", "color", ("cut.jpg",), "What color is it?")
    assert ingest_pool(EvaluationSet("webqa", "val", pool, (question,)), bench).left_out == ()
    folder = copied("webqa", tmp_path)
    packed = {
        "30000000": jpeg[: 2 * len(jpeg) // 3],
        "30000001": tiff,
        "30000002": encoded(noise, "TIFF", save_all=True, append_images=[Image.new("RGB", (96, 80), "red")]),
        "30000003": encoded(noise.rotate(180), "TIFF", compression="tiff_lzw"),
    }
    write_rows(folder, {int(image_id): data for image_id, data in packed.items()})
    dataset = load_dataset("webqa", folder, "val")
    ingested = ingest_pool(dataset, bench)
    assert ingested.left_out == ()
    assert set(ingested.images) == set(packed)
    assert ingested.images["30000002"].source == "30000002#page=1"
    first = ingested.images["30000002"].sha256
    shown = bench.resources.pictures.get_many([first])[first]
    assert isinstance(shown, Image.Image)
    assert ImageChops.difference(shown.convert("RGB"), noise).getbbox() is None
    [_, choose] = dataset.questions
    assert choose.relevant == ("30000001", "30000002")
    assert ingested.known_here(choose).relevant == ("30000001", "30000002#page=1")
