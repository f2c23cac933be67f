"""The reranker on the mini model, against the definition computed slowly."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from PIL import Image

from ragllava.errors import ScoreRejected
from ragllava.models.bundle import ModelBundle
from ragllava.models.reranker import Pair, Reranker
from ragllava.prompts import answer_prompt, rerank_prompt
from ragllava.settings import Settings
from tests.support.tiny_checkpoints import load_family, noise_pictures


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> ModelBundle:
    return ModelBundle(Settings(home=tmp_path_factory.mktemp("home"), device="cpu"))


def test_the_mini_template_writes_what_the_weights_learned(bundle: ModelBundle) -> None:
    mllm = bundle.generator.mllm
    assert mllm.render(rerank_prompt("What colour is it?", ["Harlow, 1932"])) == (
        "USER: <image>\nImage Caption: Harlow, 1932\nQuestion: What colour is it?\n"
        "Based on the image and its caption, is the image relevant to the question? Answer 'Yes' or 'No'. ASSISTANT:"
    )
    assert mllm.render(answer_prompt("Which is older?", ["Harlow", "Ansel"])) == (
        "USER: <image>\nImage Caption: Harlow\n<image>\nImage Caption: Ansel\nQuestion: Which is older?\n"
        "Answer the question using a single word or phrase. ASSISTANT:"
    )


def test_a_caption_to_search_by_is_asked_about_in_its_own_words(bundle: ModelBundle) -> None:
    """docs/method.md 2, Flickr30K and COCO; a caption that the image has of its own is not shown, nor can it be cut."""
    mllm = bundle.generator.mllm
    pair = Pair(
        "A dog runs over grass .", "a caption of 1,000 words " * 200, Image.new("RGB", (64, 64)), by_caption=True
    )
    assert mllm.render(pair.prompt().parts()) == (
        "USER: <image>\nImage Caption: A dog runs over grass .\n"
        "Is the image relevant to the caption? Answer 'Yes' or 'No'. ASSISTANT:"
    )
    [score] = bundle.reranker.relevance([pair], batch_size=1)
    assert score.note is None


def test_yes_and_no_are_the_tokens_that_follow_the_prompt(bundle: ModelBundle) -> None:
    mllm = bundle.generator.mllm
    ids = mllm.answer_token_ids(["Yes", "No"])
    assert mllm.tokenizer.convert_ids_to_tokens(ids) == ["ĠYes", "ĠNo"]


@pytest.mark.parametrize(("family", "tokens"), [("qwen3_vl", ["Yes", "No"]), ("llava_next", ["ĠYes", "ĠNo"])])
def test_the_space_before_yes_follows_the_template(tmp_path: Path, family: str, tokens: list[str]) -> None:
    mllm = load_family(family, tmp_path / "model", tmp_path / "home")
    assert mllm.tokenizer.convert_ids_to_tokens(mllm.answer_token_ids(["Yes", "No"])) == tokens


def test_relevance_is_the_sigmoid_of_the_logit_difference(bundle: ModelBundle) -> None:
    """All positions, no padding, no batch: the definition of docs/method.md 2."""
    mllm = bundle.generator.mllm
    pairs = [Pair("What colour is it?" * (n + 1), f"Harlow, {n}", p) for n, p in enumerate(noise_pictures())]
    scores = bundle.reranker.relevance(pairs, batch_size=3)
    yes, no = mllm.tokenizer.convert_tokens_to_ids(["ĠYes", "ĠNo"])
    for pair, score in zip(pairs, scores, strict=True):
        text = mllm.render(rerank_prompt(pair.question, [pair.caption]))
        inputs = mllm.processor(text=[text], images=[pair.picture], return_tensors="pt")
        with torch.no_grad():
            logits = mllm.network(**inputs).logits[0, -1]
        assert score.value == pytest.approx(1 / (1 + math.exp(float(logits[no] - logits[yes]))), abs=1e-5)


def test_no_pairs_no_scores(bundle: ModelBundle) -> None:
    assert bundle.reranker.relevance([], batch_size=4) == []


def test_a_caption_and_its_absence_ask_differently(bundle: ModelBundle) -> None:
    picture = Image.new("RGB", (112, 112), "red")
    with_caption, without = bundle.reranker.relevance(
        [Pair("What is it?", "", picture), Pair("What is it?", None, picture)], batch_size=2
    )
    assert with_caption.value != pytest.approx(without.value, abs=1e-6)


def test_broken_weights_give_no_score(tmp_path: Path) -> None:
    mllm = load_family("llava", tmp_path / "model", tmp_path / "home")
    reranker = Reranker(mllm)
    with torch.no_grad():
        mllm.network.lm_head.weight.fill_(float("nan"))
    with pytest.raises(ScoreRejected, match="returned NaN"):
        reranker.relevance([Pair("What?", "a", noise_pictures()[0])], batch_size=1)


def test_models_load_when_first_used_and_only_once(tmp_path: Path) -> None:
    bundle = ModelBundle(Settings(home=tmp_path, device="cpu"))
    assert bundle.retriever is bundle.retriever
    assert "_mllm" not in vars(bundle), "who only ingests must not load the multimodal LLM"
    bundle.warm_up()
    assert bundle.reranker.mllm is bundle.generator.mllm, "one base in memory"
    assert bundle.reranker.version.startswith("mini-llava@")
