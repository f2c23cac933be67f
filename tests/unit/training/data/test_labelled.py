"""From labels to questions: what counts as evidence, and that what a person said wins over the candidates."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime

from ragllava.feedback import Label, Verdict
from ragllava.records import Candidate, Origin, Role, StoredImage
from ragllava.stores.learning.labels import LabelledRow
from ragllava.training.data.datasets import DatasetOptions, Retrieved, build_rank_dataset
from ragllava.training.data.examples import Evidence, RankExample
from ragllava.training.data.labelled import labelled_questions, usable_for


def image(number: int) -> StoredImage:
    return StoredImage(number, f"sha{number}", f"{number}.png", f"caption {number}")


def evidence(*numbers: int) -> tuple[Evidence, ...]:
    return tuple(Evidence(f"sha{number}", f"caption {number}") for number in numbers)


# Best by relevance first, as they are stored; CLIP's order is 5, 4, 3. Two are kept.
CANDIDATES = (
    Candidate(image(3), retrieval_rank=2, retrieval_score=0.1, relevance=0.9, evidence_no=0),
    Candidate(image(4), retrieval_rank=1, retrieval_score=0.2, relevance=0.8, evidence_no=1),
    Candidate(image(5), retrieval_rank=0, retrieval_score=0.3, relevance=0.2),
)
NAMED = {number: image(number) for number in (4, 8, 9)}


def row(
    verdict: Verdict = Verdict.RIGHT,
    answer: str | None = "red",
    relevant: tuple[int, ...] = (),
    irrelevant: tuple[int, ...] = (),
    candidates: tuple[Candidate, ...] = CANDIDATES,
) -> LabelledRow:
    label = Label(1, 0, verdict, answer, relevant, irrelevant, "person")
    return LabelledRow(label, 1, "old", "What colour?", candidates, datetime(2026, 1, 1, tzinfo=UTC))


def test_the_labels_images_are_the_evidence() -> None:
    [question] = labelled_questions([row(relevant=(3, 4))], {})
    assert (question.text, question.answer) == ("What colour?", "red")
    assert question.relevant == evidence(3, 4)
    assert question.irrelevant == ()


def test_what_was_retrieved_stands_in_the_order_of_clip() -> None:
    [question] = labelled_questions([row(relevant=(3,))], {})
    assert question.retrieved == (
        Retrieved("sha5", "caption 5", 0.2),
        Retrieved("sha4", "caption 4", 0.8),
        Retrieved("sha3", "caption 3", 0.9),
    )


def test_images_found_by_their_captions_are_the_first_hard_negatives() -> None:
    """The nearest pictures alone would fill the top K."""
    nearest = [Candidate(image(number), number, 0.5, relevance=None) for number in range(20)]
    named = [
        replace(Candidate(image(number), number, 0.1, relevance), origin=Origin.CAPTION, caption_rank=number - 20)
        for number, relevance in ((20, 0.9), (21, 0.2))
    ]
    both = replace(nearest[3], origin=Origin.BOTH, caption_rank=2, relevance=0.3)
    found = (named[1], both, named[0], *nearest[4:], *nearest[:3])
    [question] = labelled_questions([row(relevant=(20,), candidates=found)], {})
    in_order = [item.image for item in question.retrieved]
    assert in_order == ["sha20", "sha21", *(f"sha{number}" for number in range(20))]
    options = DatasetOptions(seed=1, top_k=20, ratio=19.0)
    examples = [
        example for example in build_rank_dataset([question], options).examples if isinstance(example, RankExample)
    ]
    negatives = {example.image for example in examples if not example.relevant}
    assert negatives == {"sha21", *(f"sha{number}" for number in range(18))}


def test_the_labels_images_win_over_the_candidates() -> None:
    """The one that was kept is irrelevant, one that was dropped and one that was not even found are relevant."""
    [question] = labelled_questions([row(Verdict.WRONG, "blue", relevant=(8, 5), irrelevant=(3,))], NAMED)
    assert question.relevant == evidence(8, 5)
    assert question.irrelevant == evidence(3)
    assert question.answer == "blue"


def test_a_kept_image_that_nobody_named_is_no_evidence() -> None:
    """Right by luck: a person may say that no kept image is relevant, or only one of them."""
    [question] = labelled_questions([row(relevant=(4,))], NAMED)
    assert question.relevant == evidence(4)
    [question] = labelled_questions([row(irrelevant=(3,))], NAMED)
    assert (question.relevant, question.irrelevant) == ((), evidence(3))


def test_an_image_named_twice_is_one_and_relevant() -> None:
    [question] = labelled_questions([row(Verdict.WRONG, None, relevant=(4, 4, 8), irrelevant=(4, 9, 9))], NAMED)
    assert (question.relevant, question.irrelevant) == (evidence(4, 8), evidence(9))


def test_a_label_without_images_trains_nothing() -> None:
    nothing = [row(Verdict.WRONG, None), row(Verdict.WRONG, "blue"), row(answer="red")]
    something = row(relevant=(3,))
    assert labelled_questions([*nothing, something], {}) == labelled_questions([something], {})


def test_wrong_images_alone_are_something_to_learn() -> None:
    [question] = labelled_questions([row(Verdict.WRONG, None, irrelevant=(3, 4))], {})
    assert (question.relevant, question.irrelevant) == ((), evidence(3, 4))


def test_an_image_that_is_gone_is_passed_over() -> None:
    [question] = labelled_questions([row(relevant=(77, 8), irrelevant=(78,))], NAMED)
    assert (question.relevant, question.irrelevant) == (evidence(8), ())
    assert labelled_questions([row(Verdict.WRONG, "blue", relevant=(77,))], NAMED) == []


def test_what_each_role_can_be_judged_on() -> None:
    rows = [row(relevant=(3,)), row(answer=None, relevant=(3,)), row(Verdict.WRONG, "red", irrelevant=(3,))]
    questions = labelled_questions(rows, {})
    assert len(questions) == 3
    assert usable_for(Role.RERANKER, questions) == questions[:2]
    assert usable_for(Role.GENERATOR, questions) == questions[:1]
