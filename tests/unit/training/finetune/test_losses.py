"""Training sees what answering sees: the same prompts, the answers behind them, and a loss on those alone."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch.nn import functional

from ragllava.errors import UsageError
from ragllava.models.fitting import Prompt
from ragllava.models.generator import AnswerRequest, Generator
from ragllava.models.mllm import Mllm
from ragllava.models.reranker import Pair, Reranker
from ragllava.prompts import answer_prompt
from ragllava.training.data.examples import AnswerExample, RankExample
from ragllava.training.finetune.batches import AnswerTokens, Batch, BatchMaker, append_answers
from ragllava.training.finetune.losses import answer_logits, noise_weighted_loss, noised, plain_loss
from ragllava.training.finetune.noise import IGNORED_LABEL
from tests.support.tiny_checkpoints import FAMILIES, load_family, noise_pictures

TOLERANCE = 1e-4


@pytest.fixture(scope="module", params=list(FAMILIES))
def mllm(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Mllm:
    return load_family(request.param, tmp_path_factory.mktemp("model"), tmp_path_factory.mktemp("home"))


@pytest.fixture(scope="module")
def llava(tmp_path_factory: pytest.TempPathFactory) -> Mllm:
    return load_family("llava", tmp_path_factory.mktemp("model"), tmp_path_factory.mktemp("home"))


def open_picture(image: str) -> Image.Image:
    return noise_pictures()[int(image)]


def maker(mllm: Mllm) -> BatchMaker:
    return BatchMaker(mllm, open_picture, with_captions=True)


def rank_examples() -> list[RankExample]:
    captions = ["Harlow Lighthouse, 1932", None, "Ansel " * 20]
    return [
        RankExample(f"How many windows{' in all' * number}?", caption, str(number), number % 2 == 0, "labelled")
        for number, caption in enumerate(captions)
    ]


def answer_examples() -> list[AnswerExample]:
    """One picture and two, long and short answers, in no order."""
    return [
        AnswerExample("Which is older?", ("Ansel", "Harlow"), ("1", "2"), "Harlow Lighthouse, Port Ansel"),
        AnswerExample("What colour?", ("Harlow, 1932",), ("0",), "red"),
        AnswerExample("Is it day?", (None, "Ansel"), ("3", "4"), "No"),
        AnswerExample("How many windows does the red lighthouse have?", (None,), ("5",), "3"),
    ]


def logits_of(mllm: Mllm, batch: Batch) -> torch.Tensor:
    with torch.no_grad():
        return answer_logits(mllm.network, batch, torch.float32)


def test_training_scores_a_pair_as_the_reranker_does(mllm: Mllm) -> None:
    """P(Yes) read from the training batch, at the label's place, equals the relevance."""
    examples = rank_examples()
    logits = logits_of(mllm, maker(mllm)(examples))
    shares = logits[:, 0, mllm.answer_token_ids(["Yes", "No"])].softmax(-1)[:, 0].tolist()
    pairs = [Pair(example.question, example.caption, open_picture(example.image)) for example in examples]
    assert shares == pytest.approx([r.value for r in Reranker(mllm).relevance(pairs, batch_size=3)], abs=TOLERANCE)


def test_training_sees_an_answer_as_the_generator_writes_it(mllm: Mllm) -> None:
    """The most likely tokens behind a forced greedy answer are that answer: same prompt, same positions, aligned."""
    captions, pictures = ("Ansel", "Harlow"), (open_picture("1"), open_picture("2"))
    request = AnswerRequest("Which is older?", captions, pictures)
    example = AnswerExample(request.question, captions, ("1", "2"), "three words here")
    batch = maker(mllm)([example])
    prompt = Prompt(request.question, captions, pictures, answer_prompt)
    inputs = mllm.prepare([prompt], answer_tokens=8)
    greedy = mllm.generate(inputs, 6).tokens
    forced = {"parts": [append_answers(inputs.tensors, greedy, mllm.tokenizer.pad_token_id)], "labels": greedy}
    assert logits_of(mllm, forced).argmax(-1).tolist() == greedy.tolist()
    prompt_ids = inputs.tensors["input_ids"]
    assert torch.equal(batch["parts"][0]["input_ids"][:, : prompt_ids.shape[1]], prompt_ids)


def test_a_batch_is_its_examples_one_by_one(mllm: Mllm) -> None:
    """One picture and two, short and long: company changes no row."""
    examples = answer_examples()
    make = maker(mllm)
    together = make(examples)
    order = [1, 3, 0, 2]  # the parts in order of their count of pictures
    logits = logits_of(mllm, together)
    for row, place in enumerate(order):
        alone = make([examples[place]])
        length = alone["labels"].shape[1]
        assert together["labels"][row, :length].tolist() == alone["labels"][0].tolist()
        assert set(together["labels"][row, length:].tolist()) <= {IGNORED_LABEL}
        torch.testing.assert_close(logits[row, :length], logits_of(mllm, alone)[0], atol=TOLERANCE, rtol=0)


def test_labels_are_the_answer_and_its_end(mllm: Mllm) -> None:
    example = answer_examples()[0]
    labels = maker(mllm)([example])["labels"][0].tolist()
    assert mllm.tokenizer.decode(labels[:-1]).strip() == example.answer
    assert labels[-1] in mllm.end_token_ids


def test_a_picture_noised_is_another_and_empty_tiles_stay_empty(mllm: Mllm) -> None:
    batch = maker(mllm)(answer_examples())
    noisy = noised(batch, 500)
    for before, after in zip(batch["parts"], noisy["parts"], strict=True):
        changed = {name for name in before if not torch.equal(before[name], after[name])}
        assert changed == {"pixel_values"}
        if before["pixel_values"].dim() == 5:
            empty = (before["pixel_values"] == 0).flatten(-3).all(-1)
            assert torch.equal(empty, (after["pixel_values"] == 0).flatten(-3).all(-1))
    assert logits_of(mllm, noisy).sub(logits_of(mllm, batch)).abs().max() > 100 * TOLERANCE


def test_the_plain_loss_is_cross_entropy_over_all_answers(llava: Mllm) -> None:
    examples = answer_examples()
    make = maker(llava)
    total, count = 0.0, 0
    for example in examples:
        alone = make([example])
        total += functional.cross_entropy(logits_of(llava, alone)[0], alone["labels"][0], reduction="sum").item()
        count += alone["labels"].numel()
    with torch.no_grad():
        found = plain_loss(llava.network, make(examples), torch.float32)
    assert found.loss.item() == pytest.approx(total / count, abs=TOLERANCE)
    assert found.mean_weight == 1


def test_without_noise_the_weighted_loss_is_the_plain_one(llava: Mllm) -> None:
    """At step 0 the picture is (almost) itself, so no difference exceeds 1, though dropout is at work."""
    batch = maker(llava)(answer_examples())

    def plain(seed: int) -> float:
        torch.manual_seed(seed)
        noised(batch, 0)  # draws as many numbers as the noise loss does
        return plain_loss(llava.network, batch, torch.float32).loss.item()

    with attention_dropout(llava, 0.3):
        torch.manual_seed(1)
        weighted = noise_weighted_loss(llava.network, batch, torch.float32, 0)
        assert weighted.mean_weight == 1
        assert weighted.loss.item() == pytest.approx(plain(seed=1), abs=1e-6)
        assert abs(plain(seed=2) - plain(seed=1)) > 1e-3, "dropout must matter, or the same draw shows nothing"


@contextmanager
def attention_dropout(mllm: Mllm, share: float) -> Iterator[None]:
    attentions = [module for module in mllm.network.modules() if hasattr(module, "attention_dropout")]
    for module in attentions:
        module.attention_dropout = share
    mllm.network.train()
    try:
        yield
    finally:
        mllm.network.eval()
        for module in attentions:
            module.attention_dropout = 0.0


def test_tokens_that_the_picture_decides_weigh_more(llava: Mllm) -> None:
    """A picture that is noise from end to end takes away what the answer rested on."""
    batch = maker(llava)(answer_examples())
    clean = logits_of(llava, batch)
    batch = {**batch, "labels": clean.argmax(-1).where(batch["labels"] != IGNORED_LABEL, IGNORED_LABEL)}
    torch.manual_seed(0)
    found = noise_weighted_loss(llava.network, batch, torch.float32, 999)
    assert found.mean_weight > 1
    assert found.loss.requires_grad


def test_the_noise_loss_of_a_real_network_against_the_formula(llava: Mllm) -> None:
    """docs/method.md 6 token by token, over answers of one picture and of two: only answer tokens have a part in it."""
    batch = maker(llava)(answer_examples())
    torch.manual_seed(4)
    noisy = logits_of(llava, noised(batch, 999))
    clean = logits_of(llava, batch)
    weighted, total = 0.0, 0.0
    for row, labels in enumerate(batch["labels"].tolist()):
        answer = [label for label in labels if label != IGNORED_LABEL]
        falls = [float(clean[row, place, label] - noisy[row, place, label]) for place, label in enumerate(answer)]
        clamped = [min(max(fall, 1.0), 5.0) for fall in falls]
        for place, label in enumerate(answer):
            window = clamped[max(place - 1, 0) : place + 2]
            weight = sum(window) / len(window)
            weighted -= weight * clean[row, place].log_softmax(-1)[label].item()
            total += weight
    torch.manual_seed(4)
    found = noise_weighted_loss(llava.network, batch, torch.float32, 999)
    assert found.loss.item() == pytest.approx(weighted / total, abs=TOLERANCE)
    assert found.loss.item() != pytest.approx(plain_loss(llava.network, batch, torch.float32).loss.item(), abs=1e-3)


def test_control_tokens_in_an_answer_are_text(mllm: Mllm) -> None:
    tokens = AnswerTokens(mllm)
    special = set(mllm.tokenizer.added_tokens_decoder)
    hostile = "red" + "".join(token.content for token in mllm.tokenizer.added_tokens_decoder.values())
    assert not special & set(tokens(hostile)[:-1])


@pytest.mark.parametrize("answer", ["", "  \n"])
def test_an_empty_answer_is_refused(llava: Mllm, answer: str) -> None:
    with pytest.raises(UsageError, match="cannot be learned"):
        AnswerTokens(llava)(answer)


def test_without_captions_none_is_written(llava: Mllm) -> None:
    example = answer_examples()[1]
    bare = BatchMaker(llava, open_picture, with_captions=False)([example])
    same = BatchMaker(llava, open_picture, with_captions=False)([replace(example, captions=("Something else",))])
    text = llava.tokenizer.decode(bare["parts"][0]["input_ids"][0])
    assert "Caption" not in text
    assert torch.equal(bare["parts"][0]["input_ids"], same["parts"][0]["input_ids"])


def test_answering_after_training_batches_is_unchanged(llava: Mllm, tmp_path: Path) -> None:
    """Making batches leaves the model's own padding side and window alone."""
    request = AnswerRequest("Which?", ("Harlow",), (open_picture("0"),))
    before = Generator(llava).answer([request], max_tokens=4, with_captions=True, batch_size=1)
    maker(llava)(answer_examples())
    assert Generator(llava).answer([request], max_tokens=4, with_captions=True, batch_size=1) == before
