"""Examples that a model cannot learn from are found before training, and all others are trained on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from ragllava.errors import ScoreRejected, ShardInterrupted, UsageError
from ragllava.models.fitting import Prompt
from ragllava.models.mllm import Mllm, ModelInputs
from ragllava.records import Role
from ragllava.training.data.examples import AnswerExample, Example, RankExample
from ragllava.training.finetune import selection
from ragllava.training.finetune.batches import BatchMaker, answer_of
from ragllava.training.finetune.report import LeftOut, read_report
from ragllava.training.finetune.run import train
from ragllava.training.finetune.selection import NO_ROOM, NO_TOKENS, LearnableExamples, with_answers_to_learn, with_room
from tests.support.tiny_checkpoints import FAMILIES, load_family
from tests.support.toy_training import configured, examples_for, open_picture

# Of every shape that families lay out in their own way, also one that some processors refuse.
SHAPES = {"small": (64, 48), "wide": (300, 40), "tall": (40, 300), "large": (224, 224), "thin": (2_000, 4)}
MOST = 6


def open_shape(name: str) -> Image.Image:
    return Image.new("RGB", SHAPES[name], "gray")


@pytest.fixture
def llava(tmp_path: Path) -> Mllm:
    return load_family("llava", tmp_path / "model", tmp_path / "home")


def answer_example(question: str, images: tuple[str, ...], answer: str = "red") -> AnswerExample:
    return AnswerExample(question, ("Harlow",) * len(images), images, answer)


@pytest.mark.parametrize("family", list(FAMILIES))
def test_those_that_a_batch_takes_are_kept_and_no_others(family: str, tmp_path: Path) -> None:
    """In windows from very small to large; each example kept fits in the company of the longest answer."""
    mllm = load_family(family, tmp_path / "model", tmp_path / "home")
    make_batch = BatchMaker(mllm, open_shape, with_captions=True)
    sets = [(name,) for name in SHAPES] + [("small",) * 3, ("wide", "tall"), ("large", "small"), ("large",) * 5]
    long = "How many windows has it? " * 20
    examples: list[Example] = [answer_example(f"Which {n}?", images) for n, images in enumerate(sets)]
    examples += [answer_example(long, images) for images in sets]
    whole = mllm.context_tokens
    kept = []
    for window in (40, 80, 120, 200, 400, whole):
        mllm.context_tokens = window
        taken = [example for example in examples if takes(make_batch, example)]
        if taken:
            found = with_room(LearnableExamples(tuple(examples)), mllm, make_batch, open_shape)
            assert list(found.examples) == taken
            assert sum(item.count for item in found.left_out) == len(examples) - len(taken)
        kept.append(len(taken))
    assert kept == sorted(kept)
    assert kept[0] < kept[-1]


def takes(make_batch: BatchMaker, example: Example) -> bool:
    try:
        make_batch([example])
    except ScoreRejected:
        return False
    return True


def test_each_size_of_picture_is_prepared_once(llava: Mllm, monkeypatch: pytest.MonkeyPatch) -> None:
    """A thousand examples of a few pictures, in a window that holds them easily, cost little."""
    opened: list[str] = []
    prepared: list[int] = []
    prepare = llava.prepare

    def counting(prompts: Sequence[Prompt], answer_tokens: int) -> ModelInputs:
        prepared.append(len(prompts))
        return prepare(prompts, answer_tokens)

    def open_counted(name: str) -> Image.Image:
        opened.append(name)
        return open_shape(name)

    monkeypatch.setattr(llava, "prepare", counting)
    make_batch = BatchMaker(llava, open_counted, with_captions=True)
    examples = tuple(answer_example(f"Which {n}?", ("small", "wide", "large")[: 1 + n % 3]) for n in range(1_000))
    found = with_room(LearnableExamples(examples), llava, make_batch, open_counted)
    assert found == LearnableExamples(examples)
    assert sorted(opened) == ["large", "small", "wide"]
    assert len(prepared) == 3


def test_answers_without_tokens_or_with_too_many_are_left_out(llava: Mllm) -> None:
    tokens = BatchMaker(llava, open_shape, with_captions=True).answer_tokens
    full, over = ("x" * (length - 1) for length in (MOST, MOST + 1))
    assert len(tokens(full)) == 1 + (MOST - 1) + 1, "a space before it, and the token that ends it"
    answers = ["red", full, over, "   ", "", over, "red"]
    examples = [answer_example(f"Which {n}?", ("small",), answer) for n, answer in enumerate(answers)]
    found = with_answers_to_learn(examples, tokens, MOST)
    assert [answer_of(example) for example in found.examples] == ["red", full, "red"]
    long, empty = found.left_out
    assert (long.count, long.question) == (2, "Which 2?")
    assert f"more than the {MOST} tokens" in long.reason
    assert empty == LeftOut(NO_TOKENS, 2, "Which 3?")
    assert len(with_answers_to_learn(examples, tokens, None).examples) == 5
    judged = [RankExample("Which 0?", None, "small", relevant=True, source="labelled")]
    assert with_answers_to_learn(judged, tokens, 0) == LearnableExamples(tuple(judged)), "a reranker writes nothing"


def test_a_training_goes_on_without_those_and_reports_them(llava: Mllm, tmp_path: Path) -> None:
    llava.context_tokens = 200
    examples: list[Example] = [
        *examples_for(Role.GENERATOR),
        answer_example("All of them?", tuple(str(n % 6) for n in range(12))),
        answer_example("The story?", ("0",), "x" * 2_000),
        answer_example("Nothing?", ("0",), " "),
    ]
    config = replace(configured(Role.GENERATOR, tmp_path / "tuned", max_steps=2), max_answer_tokens=32)
    report = train(config, examples, llava, open_picture)
    assert report.examples == 16
    long, empty, large = report.left_out
    assert (long.count, long.question) == (1, "The story?")
    assert (empty, large) == (LeftOut(NO_TOKENS, 1, "Nothing?"), LeftOut(NO_ROOM, 1, "All of them?"))
    assert read_report(config.result) == report
    assert train(config, examples, llava, open_picture) == report, "not repeated"


def test_when_nothing_is_left_a_question_is_named(llava: Mllm, tmp_path: Path) -> None:
    llava.context_tokens = 30
    examples = [RankExample("Which lighthouse?", None, "0", relevant=True, source="labelled")] * 2
    with pytest.raises(UsageError, match=r"nothing to train on is left: 2 examples left out, as 'Which lighthouse\?'"):
        train(configured(Role.RERANKER, tmp_path / "tuned"), examples, llava, open_picture)


def test_a_long_search_can_be_stopped(llava: Mllm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(selection, "_LOOK_S", 0.0)

    def stop(done: int, total: int) -> None:
        raise ShardInterrupted(f"at {done} of {total}")

    with pytest.raises(ShardInterrupted, match="at 0 of 0"):
        train(configured(Role.RERANKER, tmp_path / "t"), examples_for(Role.RERANKER), llava, open_picture, on_step=stop)
