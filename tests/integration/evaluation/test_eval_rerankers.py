"""The rows of an evaluation that compare rerankers, and the threshold that promises a precision."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ragllava.errors import JobRefused, UsageError
from ragllava.evaluation import evaluate as module
from ragllava.evaluation.datasets.load import postcard_set
from ragllava.evaluation.datasets.records import EvaluationImage, EvaluationQuestion, EvaluationSet, FilePicture
from ragllava.evaluation.evaluate import evaluate
from ragllava.evaluation.pools import Pool, Workbench, ingest_pool
from ragllava.evaluation.rankings import RankedQuestion, Ranker, rank
from ragllava.evaluation.runs import RunOptions, rank_by_all, run_arms
from ragllava.evaluation.threshold_promise import clustered_lower_bound
from ragllava.imaging.decode import decode
from ragllava.models.checks import digest
from ragllava.models.fitting import Prompt
from ragllava.models.reranker import Pair
from ragllava.postcards.archive import draw_archive
from ragllava.prompts import caption_rerank_prompt
from ragllava.records import Role
from ragllava.stages.champions import publish_adapter
from ragllava.stages.resources import Resources
from ragllava.stores.learning import registry
from ragllava.stores.learning.registry import AdapterVersion
from tests.support.random_adapters import write_random_adapter
from tests.support.tiny_checkpoints import save_family
from tests.support.workshop import Workshop

TOP_K = 6


def drawn(seed: int, images: int = 24, questions: int = 6) -> EvaluationSet:
    return postcard_set(draw_archive(seed, images, questions, 0.0), "test")


@pytest.fixture
def bench(workshop: Workshop, tmp_path: Path) -> Workbench:
    settings = workshop.settings.model_copy(update={"home": tmp_path, "top_k": TOP_K})
    return Workbench(workshop.engine, settings, workshop.resources)


def scores(ranked: tuple[RankedQuestion, ...]) -> list[float]:
    """Every relevance, in an order that does not depend on it."""
    return [one.relevances[source] for one in ranked for source in sorted(one.relevances)]


def labels(rows: list[dict[str, Any]]) -> list[str]:
    return [row["label"] for row in rows]


@pytest.fixture
def tune(workshop: Workshop, tmp_path: Path) -> Iterator[Callable[[int], str]]:
    """A function that makes an adapter with random weights the champion reranker, and returns its name."""
    models = workshop.resources.models

    def crown(seed: int) -> str:
        folder = write_random_adapter(tmp_path / f"adapter-{seed}", models.generator.mllm.network, seed)
        manifest = publish_adapter(workshop.resources.objects, folder)
        version = AdapterVersion(
            role=Role.RERANKER,
            name=f"tuned@{seed}",
            profile=models.profile.name,
            prompt="rerank-1",
            threshold=0.5,
            threshold_curve=None,
            adapter_sha256=digest(manifest),
            manifest=manifest,
            base=models.base_version,
            training={},
        )
        with workshop.engine.begin() as connection:
            registry.ensure_champions(connection, models.profile.name, workshop.resources.base_versions())
            registry.register_adapter(connection, version)
            registry.promote(connection, models.profile.name, Role.RERANKER, version.name, "a test")
        return version.name

    yield crown
    models.apply_adapter(Role.RERANKER, None, None)  # the models serve other tests too


def test_a_champion_with_an_adapter_is_compared_with_its_base(
    bench: Workbench, workshop: Workshop, tune: Callable[[int], str]
) -> None:
    dataset = drawn(seed=5)
    pool = ingest_pool(dataset, bench)
    of_base = scores(rank(dataset, pool, bench))
    name = tune(1)
    options = RunOptions(oracle=False)
    found = evaluate(dataset, None, bench, options)
    assert found.models["reranker"] == name
    assert found.models["untuned_reranker"] == workshop.resources.models.base_version
    rankings = rank_by_all(dataset, pool, bench, options)
    assert scores(rankings[Ranker.UNTUNED]) == pytest.approx(of_base, abs=1e-6)
    assert scores(rankings[Ranker.CHAMPION]) != pytest.approx(of_base, abs=0.01)
    rows = {row["label"]: row for row in found.as_json()["rows"]["all"]}
    rerankings = [label for label in rows if label.startswith("reranked")]
    assert rerankings[:2] == ["reranked", "reranked, untuned"]
    arms = {arm.label: arm for arm in run_arms(dataset, pool, bench, rankings, [], options)}
    assert arms["reranked, untuned"].ranked == rankings[Ranker.UNTUNED]
    assert arms["reranked, untuned"].answers is None
    assert rows["reranked, untuned"]["answer_score"] is None
    assert rows["reranked, untuned"]["recall"] is not None


def test_a_base_as_it_is_has_no_untuned_row(bench: Workbench) -> None:
    found = evaluate(drawn(seed=5, questions=2), None, bench, RunOptions(oracle=False))
    assert "reranked, untuned" not in labels(found.as_json()["rows"]["all"])
    assert "untuned_reranker" not in found.models


def test_a_new_champion_during_the_run_is_refused(
    bench: Workbench, tune: Callable[[int], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half of the figures would be those of another version."""

    def promote_and_answer(*given: Any) -> Any:
        tune(2)
        return run_arms(*given)

    monkeypatch.setattr(module, "run_arms", promote_and_answer)
    with pytest.raises(JobRefused, match="another version became champion while this was measured"):
        evaluate(drawn(seed=5, questions=2), None, bench, RunOptions(oracle=False))


@pytest.fixture
def other_profile(bench: Workbench, tmp_path: Path) -> Iterator[Resources]:
    """The models of a profile whose multimodal LLM is a tiny one with random weights."""
    save_family("llava", tmp_path / "tiny")
    file = tmp_path / "random.toml"
    file.write_text('retriever = "local-dir:nowhere"\nmllm = "./tiny"\n')
    resources = Resources(bench.settings.model_copy(update={"profile": str(file)}))
    yield resources
    resources.close()


def test_another_profile_reranks_what_our_retriever_found(bench: Workbench, other_profile: Resources) -> None:
    dataset = drawn(seed=5)
    compared = replace(bench, untuned=other_profile)
    found = evaluate(dataset, None, compared, RunOptions(oracle=False))
    assert found.models["untuned_reranker"].startswith("random-tiny@")
    assert found.models["reranker"].startswith("mini-llava@")
    champion = rank(dataset, found.pool, compared)
    untuned = rank(dataset, found.pool, compared, Ranker.UNTUNED)
    for one, other in zip(champion, untuned, strict=True):
        assert one.retrieval_ranking == other.retrieval_ranking
    assert scores(champion) != pytest.approx(scores(untuned), abs=0.01)
    # A candidate scored by hand with the other profile's model.
    [candidate] = [c for c in untuned[0].candidates if c.image.source == dataset.questions[0].relevant[0]]
    [image] = [image for image in dataset.images if image.image_id == candidate.image.source]
    picture = decode(image.picture.read()).picture
    pair = Pair(dataset.questions[0].text, candidate.image.caption, picture)
    [score] = other_profile.models.reranker.relevance([pair], batch_size=1)
    assert candidate.relevance == pytest.approx(score.value, abs=1e-5)


def captions_set(folder: Path) -> EvaluationSet:
    colours = {"red.png": "red", "blue.png": "blue", "green.png": "green"}
    for name, colour in colours.items():
        Image.new("RGB", (48, 48), colour).save(folder / name)
    images = tuple(EvaluationImage(name, None, FilePicture(folder / name)) for name in colours)
    questions = tuple(
        EvaluationQuestion(f"{name}#0", "", "caption", (name,), f"a {colour} square.")
        for name, colour in colours.items()
    )
    return EvaluationSet("coco", "test", images, questions, by_caption=True)


def test_captions_to_search_by_have_a_prompt_of_their_own(bench: Workbench, tmp_path: Path) -> None:
    dataset = captions_set(tmp_path)
    found = evaluate(dataset, None, bench, RunOptions())
    assert found.models["prompt"].startswith("rerank-caption-1+")
    reranker = bench.resources.models.reranker
    ranked = rank(dataset, found.pool, bench)
    for question, one in zip(dataset.questions, ranked, strict=True):
        for candidate in one.candidates:
            with Image.open(tmp_path / candidate.image.source) as picture:
                prompt = Prompt(question.text, (None,), (picture.copy(),), caption_rerank_prompt)
            inputs = reranker.mllm.prepare([prompt], answer_tokens=1)
            expected = reranker.mllm.last_logits(inputs, reranker.yes_no)[0].softmax(dim=-1)[0]
            assert candidate.relevance == pytest.approx(float(expected), abs=1e-5)
    assert scores(ranked) != pytest.approx(
        scores(rank(replace(dataset, by_caption=False), found.pool, bench)), abs=1e-4
    )


def test_captions_that_are_not_shown_cannot_be_hidden(bench: Workbench, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="coco shows no captions that could be hidden"):
        evaluate(captions_set(tmp_path), None, bench, RunOptions(hide_captions=True))


def promised(bench: Workbench, precision: float, questions: int = 90) -> tuple[Any, EvaluationSet, Pool]:
    reported, calibration = drawn(seed=5), drawn(seed=1005, images=120, questions=questions)
    options = RunOptions(oracle=False, promised_precision=precision)
    found = evaluate(reported, calibration, bench, options)
    return found, reported, found.pool


def test_a_promised_precision_is_checked_on_the_reported_questions(bench: Workbench) -> None:
    found, reported, pool = promised(bench, 0.6)
    promise = found.promise
    value = promise.threshold.value
    by_question = [
        [c.image.source in question.relevant for c in one.candidates[: reported.top_n] if c.relevance >= value]
        for question, one in zip(reported.questions, rank(reported, pool, bench), strict=True)
    ]
    kept = [right for row in by_question for right in row]
    assert (promise.hits, promise.kept) == (sum(kept), len(kept))
    assert promise.kept > 0
    assert promise.threshold.fit.method == "promised"
    assert promise.threshold.fit.precision >= 0.6
    written = found.as_json()["promise"]
    assert written["reached"] == round(sum(kept) / len(kept), 4)
    assert written["reached_at_least"] == round(promise.at_least, 4)
    hits, counts = (np.array([count(row) for row in by_question]) for count in (sum, len))
    assert promise.at_least == clustered_lower_bound(hits, counts, reported.top_n)
    [row] = [row for row in found.as_json()["rows"]["all"] if row["label"] == "reranked, promised 60 % η"]
    assert row["threshold"] == value
    assert found.as_json()["threshold"]["fit"]["method"] == "adaptive"  # it stays the adaptive one


def test_a_promise_that_cannot_be_kept_is_refused(bench: Workbench) -> None:
    with pytest.raises(UsageError, match=r"no threshold shows a precision of 0\.99"):
        promised(bench, 0.99, questions=6)


@pytest.mark.parametrize("rerank", [True, False])
def test_nothing_is_promised_without_other_questions(bench: Workbench, rerank: bool) -> None:
    calibration = None if rerank else drawn(seed=1005)
    with pytest.raises(UsageError, match="a precision is promised by a threshold"):
        evaluate(drawn(seed=5), calibration, bench, RunOptions(rerank=rerank, promised_precision=0.9))
