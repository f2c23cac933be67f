"""On which side a labelled question is: no near-duplicate, no partner and no same words on two sides."""

from __future__ import annotations

import random
from collections.abc import Sequence

from ragllava.imaging.likeness import Likeness
from ragllava.training.data.datasets import DatasetOptions, LabelledQuestion, Retrieved, is_held_out, side_key
from ragllava.training.data.examples import Evidence
from ragllava.training.data.sides import FEWEST_IMAGES, Side, Sides, assign_sides

HELD_OUT, CALIBRATION = 0.25, 0.15
RNG = random.Random(0)
PICTURES = [f"picture-{number}" for number in range(80)]
# Pixels at random: no two of them are alike.
THUMBNAILS = {name: RNG.randbytes(768) for name in PICTURES}


def question(text: str, relevant: Sequence[str], retrieved: Sequence[str] = ()) -> LabelledQuestion:
    found = tuple(Retrieved(image, None, 0.1) for image in retrieved)
    return LabelledQuestion(text, "red", tuple(Evidence(image, None) for image in relevant), found)


def assign(questions: Sequence[LabelledQuestion], copies: dict[str, str] | None = None) -> Sides:
    thumbnails = THUMBNAILS | {copy: THUMBNAILS[of] for copy, of in (copies or {}).items()}
    return assign_sides(questions, Likeness(thumbnails), held_out=HELD_OUT, calibration=CALIBRATION)


def test_questions_about_copies_are_on_one_side() -> None:
    copies = {f"{name}.jpg": name for name in PICTURES}
    questions = [question(f"What is on {name}?", [name]) for name in PICTURES]
    questions += [question(f"Which color has {copy}?", [copy]) for copy in copies]
    sides = assign(questions, copies)
    assert all(sides.of(f"What is on {name}?") is sides.of(f"Which color has {copy}?") for copy, name in copies.items())
    alone = assign(questions)
    assert any(
        alone.of(f"What is on {name}?") is not alone.of(f"Which color has {copy}?") for copy, name in copies.items()
    ), "without likeness they would not be"


def test_questions_of_the_same_words_are_on_one_side_whatever_they_are_about() -> None:
    questions = [question(f"What is on {name}?", [name]) for name in PICTURES]
    held_out = next(name for name in PICTURES if is_held_out(name, HELD_OUT))
    other = next(name for name in PICTURES if not is_held_out(name, HELD_OUT + CALIBRATION))
    sides = assign([*questions, question("WHICH is it, then", [held_out]), question("Which is it - then?", [other])])
    assert sides.of("Which is it - then?") is Side.HELD_OUT
    assert sides.of(f"What is on {other}?") is Side.HELD_OUT, "it is a partner now"


def test_the_partner_of_a_held_out_picture_is_not_trained_on() -> None:
    rng = random.Random(1)
    questions = [question(f"What is on {name}, {n}?", [name]) for name in PICTURES for n in range(4)]
    questions += [question(f"Are they alike, {n}?", rng.sample(PICTURES, 2)) for n in range(12)]
    sides = assign(questions)
    by_side = {side: [q for q in questions if sides.of(q.text) is side] for side in Side}
    judging = {e.image for side in (Side.HELD_OUT, Side.CALIBRATION) for q in by_side[side] for e in q.relevant}
    trained = {e.image for q in by_side[Side.TRAIN] for e in q.relevant}
    assert trained
    assert not trained & judging
    assert sides.apart == judging
    partners = {name for name in judging if not is_held_out(name, HELD_OUT + CALIBRATION)}
    assert partners


def test_where_nearly_all_are_partners_something_is_left_to_train_on() -> None:
    rng = random.Random(2)
    questions = [question(f"Which belong to {n}?", rng.sample(PICTURES, 4)) for n in range(300)]
    sides = assign(questions)
    assert sum(sides.of(q.text) is Side.TRAIN for q in questions) > 10


def test_a_held_out_picture_and_its_copies_are_no_hard_negatives() -> None:
    copies = {f"{name}.jpg": name for name in PICTURES}
    questions = [question(f"What is on {name}?", [name], [*PICTURES[:40], *copies]) for name in PICTURES]
    sides = assign(questions, copies)
    trained = next(q for q in questions if sides.of(q.text) is Side.TRAIN)
    left = {item.image for item in sides.without_apart(trained, DatasetOptions(seed=0)).retrieved}
    apart = {e.image for q in questions if sides.of(q.text) is not Side.TRAIN for e in q.relevant}
    assert left
    assert not {image.removesuffix(".jpg") for image in left} & apart


def test_with_few_pictures_the_sides_follow_from_the_words() -> None:
    few = PICTURES[: FEWEST_IMAGES - 1]
    questions = [question(f"What is on {name}, {n}?", [name], PICTURES) for name in few for n in range(8)]
    sides = assign(questions)
    assert not sides.by_image
    assert not sides.apart
    assert {sides.of(q.text) for q in questions} == {Side.TRAIN, Side.CALIBRATION, Side.HELD_OUT}
    copies = {f"{name}.jpg": name for name in few}
    both = [*questions, *(question(f"Which is {copy}?", [copy]) for copy in copies)]
    assert not assign(both, copies).by_image, "copies are no further pictures"


def test_words_alone_make_the_key() -> None:
    assert side_key("What is  on it?") == side_key("what is on it") == "what is on it"
    assert side_key("?!") == "?!"
    assert side_key("ﬁnd it") == side_key("Find it!")
