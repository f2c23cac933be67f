"""Judging a version: scores worked by hand, what is shown to the generator, and that no question is ever dropped."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from weakref import ref

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from ragllava.errors import (
    ImageRejected,
    LeaseLost,
    ObjectMissing,
    RagllavaError,
    RejectionClass,
    ScoreRejected,
    ServiceUnavailable,
)
from ragllava.models.generator import AnswerRequest, GeneratedAnswer, Generator
from ragllava.models.reranker import Pair, Relevance, Reranker
from ragllava.records import Candidate, StoredImage
from ragllava.settings import Settings
from ragllava.stages.answer.pipeline import select_evidence
from ragllava.training.contest import leave_out_doubtful
from ragllava.training.data.datasets import LabelledQuestion, Retrieved
from ragllava.training.data.examples import Evidence
from ragllava.training.gate import SOFTENED, WITH_CAPTIONS, decide
from ragllava.training.scoring import EvaluationOptions, evaluate_generator, evaluate_reranker
from ragllava.training.version_scores import (
    LABELLED_IMAGES,
    UNLABELLED,
    WITHOUT_CAPTIONS,
    WRONG_IMAGE,
    GeneratorScores,
    RerankerScores,
)
from tests.support.tiny_checkpoints import load_family, noise_pictures


def picture(image: str) -> Image.Image:
    """A picture that shows its number as its colour."""
    return Image.new("RGB", (4, 4), (int(image), 0, 0))


def number_of(shown: Image.Image) -> int:
    red, _, _ = shown.getpixel((0, 0))  # type: ignore[misc]
    return int(red)


class ByNumber:
    """A reranker that finds a picture as relevant as its number says in percent; without captions, it is turned."""

    version = "by-number"

    def relevance(self, pairs: Sequence[Pair], batch_size: int) -> list[Relevance]:
        if any(pair.question == "poison" for pair in pairs):
            raise ScoreRejected("by-number returned no number as a relevance")
        shares = [number_of(pair.picture) / 100 for pair in pairs]
        return [Relevance(s if p.caption is not None else 1 - s) for s, p in zip(shares, pairs, strict=True)]


@dataclass
class FirstPicture:
    """A generator that answers with the number of the first picture that it is shown, or "bare" without captions."""

    version: str = "first-picture"
    shown: list[tuple[tuple[str | None, ...], tuple[int, ...]]] = field(default_factory=list)

    def answer(
        self, requests: Sequence[AnswerRequest], *, max_tokens: int, with_captions: bool, batch_size: int
    ) -> list[GeneratedAnswer]:
        numbers = [tuple(number_of(shown) for shown in request.pictures) for request in requests]
        if with_captions:
            self.shown += [(request.captions, row) for request, row in zip(requests, numbers, strict=True)]
        return [GeneratedAnswer(f"The {row[0]}." if with_captions else "bare", 1.0) for row in numbers]


def question(
    text: str = "Which?",
    answer: str | None = "80",
    relevant: Sequence[int] = (80,),
    retrieved: Sequence[int] = (90, 80, 70, 10),
    irrelevant: Sequence[int] = (),
    relevance: float = 0.1,
) -> LabelledQuestion:
    """Images are named by their numbers, and so are their captions."""

    def named(numbers: Sequence[int]) -> tuple[Evidence, ...]:
        return tuple(Evidence(str(number), f"caption {number}") for number in numbers)

    found = tuple(Retrieved(str(number), f"caption {number}", relevance) for number in retrieved)
    return LabelledQuestion(text, answer, named(relevant), found, named(irrelevant))


def options(**changes: Any) -> EvaluationOptions:
    sizes = {name: changes.pop(name) for name in ("top_n", "questions_per_step") if name in changes}
    return EvaluationOptions(Settings(device="cpu", **sizes), **changes)


def evaluate_ranking(
    questions: Sequence[LabelledQuestion], open_picture: Any = picture, **changes: Any
) -> RerankerScores:
    models: Any = SimpleNamespace(reranker=ByNumber())
    return evaluate_reranker(models, questions, open_picture, options(**changes))


def evaluate_answers(
    questions: Sequence[LabelledQuestion],
    open_picture: Any = picture,
    generator: FirstPicture | None = None,
    **changes: Any,
) -> GeneratorScores:
    models: Any = SimpleNamespace(generator=generator or FirstPicture())
    return evaluate_generator(models, questions, open_picture, options(**changes))


def test_a_ranking_worked_by_hand() -> None:
    """In order 90, 80, 70, 60, 10; relevant are 80 and 60, which nobody retrieved. Two are kept, one of them hits."""
    scores = evaluate_ranking([question(relevant=(80, 60))])
    [score] = scores.conditions[WITH_CAPTIONS]
    assert score.f1 == 2 * 1 / (2 + 2)
    assert score.average_precision == (1 / 2 + 2 / 4) / 2
    assert [(image.image, image.kept) for image in score.ranking] == [
        ("90", True),
        ("80", True),
        ("70", False),
        ("60", False),
        ("10", False),
    ]
    assert [image.image for image in score.ranking if image.correct] == ["80", "60"]


@pytest.mark.parametrize(
    ("top_n", "threshold", "f1"),
    [
        (1, 0.5, 0.0),  # 90 alone
        (2, 0.85, 0.0),
        (2, 0.8, 2 / 3),  # 80 itself is kept
        (3, 0.5, 2 / 4),
        (3, 0.95, 0.0),  # nothing at all
    ],
)
def test_the_versions_own_threshold_decides_what_is_kept(top_n: int, threshold: float, f1: float) -> None:
    scores = evaluate_ranking([question()], top_n=top_n, threshold=threshold)
    assert list(scores.by_condition[WITH_CAPTIONS]) == pytest.approx([f1])
    assert scores.conditions[WITH_CAPTIONS][0].average_precision == 1 / 2
    assert (scores.threshold, scores.top_n) == (threshold, top_n)


def test_without_captions_is_a_condition_of_its_own() -> None:
    scores = evaluate_ranking([question()])
    assert [image.image for image in scores.conditions[WITHOUT_CAPTIONS][0].ranking] == ["10", "70", "80", "90"]
    assert scores.conditions[WITHOUT_CAPTIONS][0].average_precision == 1 / 3
    assert scores.by_condition[WITHOUT_CAPTIONS] == (1 / 3,), "η is fitted with captions, so the ranking counts here"
    assert list(scores.primary) == [WITH_CAPTIONS, SOFTENED]


@given(st.lists(st.integers(0, 100), min_size=1, max_size=8, unique=True), st.integers(1, 3), st.floats(0, 1))
def test_kept_is_what_answering_would_keep(numbers: list[int], top_n: int, threshold: float) -> None:
    scores = evaluate_ranking([question(relevant=numbers[:1], retrieved=numbers)], top_n=top_n, threshold=threshold)
    found = [
        Candidate(StoredImage(number, str(number), "", None), rank, 0.0, number / 100)
        for rank, number in enumerate(numbers)
    ]
    chosen = select_evidence(found, threshold, top_n)
    ranking = scores.conditions[WITH_CAPTIONS][0].ranking
    assert [image.image for image in ranking] == [candidate.image.sha256 for candidate in chosen]
    assert [image.kept for image in ranking] == [candidate.evidence_no is not None for candidate in chosen]


def test_a_second_relevant_image_that_nobody_labelled_does_not_count_as_wrong() -> None:
    """The challenger finds 95, which is relevant too; the champion finds 80 alone."""
    champion = evaluate_ranking([question(retrieved=(70, 80))] * 1, threshold=0.75)
    challenger = evaluate_ranking([question(retrieved=(70, 80, 95))], threshold=0.75)
    assert champion.by_condition[WITH_CAPTIONS] == (1.0,)
    assert challenger.by_condition[WITH_CAPTIONS][0] == pytest.approx(2 / 3)
    old, new = leave_out_doubtful(champion, challenger)
    assert [scores.by_condition[WITH_CAPTIONS] for scores in (old, new)] == [(1.0,), (1.0,)]
    assert [scores.by_condition[UNLABELLED] for scores in (old, new)] == [(1.0,), (0.0,)]
    known = evaluate_ranking([question(retrieved=(70, 80, 95), irrelevant=(95,))], threshold=0.75)
    assert leave_out_doubtful(known, known)[1].by_condition[WITH_CAPTIONS][0] == pytest.approx(2 / 3), "it is wrong"
    relevance, _ = challenger.calibration(with_doubtful=False)
    assert relevance == [0.8, 0.7]
    assert challenger.calibration()[0] == [0.95, 0.8, 0.7]


def test_a_version_that_calls_everything_relevant_is_refused() -> None:
    class Yes(ByNumber):
        def relevance(self, pairs: Sequence[Pair], batch_size: int) -> list[Relevance]:
            return [Relevance(0.99 + number_of(pair.picture) / 1e5) for pair in pairs]

    questions = [question(f"Which {n}?", relevant=(n,), retrieved=(n, n + 40, 60, 50)) for n in range(30)]
    models: Any = SimpleNamespace(reranker=Yes())
    champion = evaluate_ranking(questions, threshold=0.3)
    challenger = evaluate_reranker(models, questions, picture, options(threshold=0.5))
    old, new = leave_out_doubtful(champion, challenger)
    assert set(new.by_condition[WITH_CAPTIONS]) == {1.0}, "all that is wrong was left out"
    report = decide(old, new)
    assert not report.passed
    assert any(reason.startswith(f"worse, {UNLABELLED}: 1.000 → 0.000") for reason in report.reasons)


def test_a_tie_stays_in_the_order_of_clip() -> None:
    class Even(ByNumber):
        def relevance(self, pairs: Sequence[Pair], batch_size: int) -> list[Relevance]:
            return [Relevance(0.7)] * len(pairs)

    models: Any = SimpleNamespace(reranker=Even())
    scores = evaluate_reranker(models, [question(relevant=(5, 70))], picture, options())
    assert [image.image for image in scores.conditions[WITH_CAPTIONS][0].ranking] == ["90", "80", "70", "10", "5"]


def test_what_a_threshold_is_fitted_on() -> None:
    scores = evaluate_ranking([question(), question("Where?", relevant=(7,), retrieved=(30,))])
    assert scores.calibration() == ([0.9, 0.8, 0.7, 0.1, 0.3, 0.07], [False, True, False, False, False, True])
    assert len(scores.calibration_questions) == 6
    assert scores.calibration_questions == sorted(scores.calibration_questions)


def test_the_same_question_counts_once() -> None:
    twice = [question("Which one?"), question("which  ONE?", relevant=(70,))]
    scores = evaluate_ranking([*twice, question()])
    assert scores.questions == ("Which one?", "Which?")
    assert {image.image for image in scores.conditions[WITH_CAPTIONS][0].ranking if image.correct} == {"80", "70"}
    assert evaluate_answers([*twice, question()]).questions == scores.questions


def gone(image: str, error: RagllavaError) -> Callable[[str], Image.Image]:
    def opened(name: str) -> Image.Image:
        if name == image:
            raise error
        return picture(name)

    return opened


@pytest.mark.parametrize("error", [ImageRejected(RejectionClass.DAMAGED, "broken"), ObjectMissing("no such key")])
def test_a_question_whose_picture_is_gone_counts_zero_and_stays(error: RagllavaError) -> None:
    others = [question("Which?"), question("Where?"), question("Who?")]
    bad = question("Gone?", relevant=(80, 33), answer="33")
    mixed = evaluate_ranking([*others[:2], bad, others[2]], gone("33", error))
    alone = evaluate_ranking(others)
    assert mixed.questions == ("Which?", "Where?", "Gone?", "Who?")
    for name, scores in mixed.conditions.items():
        assert (scores[2].f1, scores[2].average_precision, scores[2].unscored) == (0.0, 0.0, str(error))
        assert (*scores[:2], scores[3]) == alone.conditions[name]
    answers = evaluate_answers([*others[:2], bad, others[2]], gone("33", error))
    for name, found in answers.conditions.items():
        assert (found[2].score, found[2].unscored) == (0.0, str(error))
        assert (*found[:2], found[3]) == evaluate_answers(others).conditions[name]


def test_a_question_that_the_network_cannot_score_counts_zero() -> None:
    scores = evaluate_ranking([question("Which?"), question("poison"), question("Where?")])
    assert scores.by_condition[WITH_CAPTIONS] == (2 / 3, 0.0, 2 / 3)
    assert "no number" in str(scores.conditions[WITH_CAPTIONS][1].unscored)
    assert scores.as_json()["conditions"][WITH_CAPTIONS] == {
        "f1": 0.4444,
        "average_precision": 0.3333,
        "unscored": 1,
    }


@pytest.mark.parametrize(
    ("bad", "condition", "why"),
    [
        (question("Hm?", answer=None), LABELLED_IMAGES, "no right answer is known"),
        (question("Hm?", relevant=()), LABELLED_IMAGES, "there is no image to show"),
        (question("Hm?", retrieved=(80,)), WRONG_IMAGE, "there is no image to show"),
    ],
)
def test_what_cannot_be_asked_counts_zero(bad: LabelledQuestion, condition: str, why: str) -> None:
    scores = evaluate_answers([question(), bad])
    assert [score.unscored for score in scores.conditions[condition]] == [None, why]
    assert scores.by_condition[condition][1] == 0.0


def test_a_service_that_does_not_answer_ends_the_judging() -> None:
    with pytest.raises(ServiceUnavailable):
        evaluate_ranking([question(), question("Where?")], gone("80", ServiceUnavailable("no object store")))


def test_who_hears_of_progress_may_stop_it() -> None:
    heard: list[tuple[str, int, int]] = []

    def lost(what: str, done: int, total: int) -> None:
        heard.append((what, done, total))
        if len(heard) == 3:
            raise LeaseLost("another worker owns this training")

    questions = [question(f"Which {number}?") for number in range(5)]
    with pytest.raises(LeaseLost):
        evaluate_ranking(questions, questions_per_step=2, progress=lost)
    what = "rerank with captions"
    assert heard == [(what, 2, 5), (what, 4, 5), (what, 5, 5)]


def test_answers_are_compared_after_normalisation() -> None:
    scores = evaluate_answers([question(answer="eighty"), question("Where?", answer="eighty one")])
    assert scores.by_condition[LABELLED_IMAGES] == (1.0, 0.0)
    assert [score.answer for score in scores.conditions[LABELLED_IMAGES]] == ["The 80.", "The 80."]
    assert [score.answer for score in scores.conditions[WITHOUT_CAPTIONS]] == ["bare", "bare"]
    assert list(scores.primary) == [LABELLED_IMAGES]


def test_the_wrong_image_stands_anywhere_and_is_really_wrong() -> None:
    """Of ten candidates one is labelled, and one looks so relevant that it may be right."""
    likely = Retrieved("99", "caption 99", relevance=0.95)
    questions = [
        replace(asked, retrieved=(likely, *asked.retrieved))
        for asked in (question(f"Which {n}?", retrieved=(80, *range(1, 9))) for n in range(200))
    ]
    generator = FirstPicture()
    scores = evaluate_answers(questions, generator=generator)
    labelled, mixed = generator.shown[:200], generator.shown[200:]
    assert {numbers for _, numbers in labelled} == {(80,)}
    assert all(captions == tuple(f"caption {n}" for n in numbers) for captions, numbers in generator.shown)
    wrong = [next(n for n in numbers if n != 80) for _, numbers in mixed]
    assert set(wrong) == set(range(1, 9))
    assert all(80 in numbers and len(numbers) == 2 for _, numbers in mixed)
    right = scores.by_condition[WRONG_IMAGE]
    assert right == tuple(float(numbers[0] == 80) for _, numbers in mixed)
    assert 60 < sum(right) < 140, "in first place half the time"


def test_an_image_that_a_person_called_wrong_is_wrong_however_relevant_it_looks() -> None:
    generator = FirstPicture()
    evaluate_answers([question(retrieved=(80, 70, 60), irrelevant=(70,), relevance=0.95)], generator=generator)
    assert {numbers for _, numbers in generator.shown[1:]} <= {(80, 70), (70, 80)}


def test_a_question_keeps_its_wrong_image_in_any_company() -> None:
    questions = [question(f"Which {number}?", retrieved=(80, *range(1, 30))) for number in range(10)]

    def shown(asked: Sequence[LabelledQuestion], seed: int = 0) -> list[tuple[int, ...]]:
        generator = FirstPicture()
        evaluate_answers(asked, generator=generator, seed=seed)
        return [numbers for _, numbers in generator.shown[len(asked) :]]

    assert shown(questions[::-1]) == shown(questions)[::-1]
    assert shown(questions[3:4]) == shown(questions)[3:4]
    assert shown(questions, seed=1) != shown(questions)


def test_labelled_images_stand_in_any_order() -> None:
    generator = FirstPicture()
    evaluate_answers([question(f"Which {n}?", relevant=(80, 70)) for n in range(40)], generator=generator)
    assert {numbers for _, numbers in generator.shown[:40]} == {(80, 70), (70, 80)}


def test_the_gate_reads_both_kinds_of_scores() -> None:
    images = [76 + number % 9 for number in range(20)]
    questions = [
        question(f"Which {number}?", relevant=(image,), retrieved=(90, image, 70, 10))
        for number, image in enumerate(images)
    ]
    bad, good = (evaluate_ranking(questions, threshold=threshold) for threshold in (0.85, 0.75))
    assert good.relevant == tuple((str(image),) for image in images)
    assert decide(bad, good).reasons[0].startswith("better, with captions")
    about_one = [question(f"Which {number}?") for number in range(20)]
    bad, good = (evaluate_ranking(about_one, threshold=threshold) for threshold in (0.85, 0.75))
    assert decide(bad, good).reasons[0].startswith("not better, with captions")
    answers = evaluate_answers([question(f"Which {number}?") for number in range(20)])
    assert not decide(answers, answers).passed
    stored = json.loads(json.dumps(answers.as_json()))
    assert stored["version"] == "first-picture"
    assert stored["conditions"][LABELLED_IMAGES] == {"right": 1.0, "unscored": 0}
    assert set(stored["conditions"]) == {LABELLED_IMAGES, WRONG_IMAGE, WITHOUT_CAPTIONS}


def test_however_many_candidates_there_are_64_pictures_are_in_memory_at_most() -> None:
    opened_before: list[ref[Image.Image]] = []
    most = 0

    def opened(image: str) -> Image.Image:
        nonlocal most
        found = picture(image)
        opened_before.append(ref(found))
        most = max(most, sum(one() is not None for one in opened_before))
        return found

    asked = [question(f"Which {n}?", relevant=(n,), retrieved=range(100, 100 + 40 * n)) for n in (1, 2, 3)]
    scores = evaluate_ranking(asked, opened, questions_per_step=4)
    assert most == 64
    assert scores == evaluate_ranking(asked, questions_per_step=1)


def test_a_real_network_is_judged_by_what_it_answers_with(tmp_path: Path) -> None:
    """The scores are those of the classes that answer questions, whatever the size of a step."""
    mllm = load_family("llava", tmp_path / "model", tmp_path / "home")
    models: Any = SimpleNamespace(reranker=Reranker(mllm), generator=Generator(mllm))
    pictures = noise_pictures()
    questions = [question(f"How many {n}?", "3", relevant=(n,), retrieved=(3, 4, 5)) for n in range(3)]

    def opened(image: str) -> Image.Image:
        return pictures[int(image)]

    steps = [options(questions_per_step=size, threshold=0.0) for size in (1, 8)]
    for one, other in zip(*(evaluate_reranker(models, questions, opened, o).calibration() for o in steps), strict=True):
        assert one == pytest.approx(other, abs=1e-5)
    scores = evaluate_reranker(models, questions[:1], opened, steps[0])
    pairs = [Pair("How many 0?", f"caption {number}", pictures[number]) for number in (3, 4, 5, 0)]
    expected = sorted((score.value for score in models.reranker.relevance(pairs, batch_size=4)), reverse=True)
    assert [image.relevance for image in scores.conditions[WITH_CAPTIONS][0].ranking] == pytest.approx(
        expected, abs=1e-5
    )
    answers = evaluate_generator(models, questions[:1], opened, steps[0]).conditions
    request = AnswerRequest("How many 0?", ("caption 0",), (pictures[0],))
    for condition, with_captions in ((LABELLED_IMAGES, True), (WITHOUT_CAPTIONS, False)):
        given = models.generator.answer([request], max_tokens=32, with_captions=with_captions, batch_size=1)
        assert answers[condition][0].answer == given[0].text
