"""Questions in other styles have the same answers and one right picture, and the questions with cues are unchanged."""

from __future__ import annotations

import hashlib
import json
import random
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import astuple, replace

import pytest

from ragllava.errors import UsageError
from ragllava.postcards import asking
from ragllava.postcards.archive import KnownQuestion, PostcardArchive, draw_archive
from ragllava.postcards.names import COLORS, COMPANIONS, KINDS, NOTHING, ROOFS, Landmark
from ragllava.postcards.paraphrases import paraphrases
from ragllava.postcards.postcard import Postcard
from ragllava.postcards.questions import ONE_IMAGE_TYPES, TWO_IMAGE_TYPES, QuestionStyle, ask_about_one
from ragllava.postcards.typing_errors import TypingErrors, is_within_one_error, mistype

BY_NAME = [QuestionStyle.NAME, QuestionStyle.MISSPELT, QuestionStyle.PARAPHRASED]
IMAGES, QUESTIONS = 600, 200
NUMBERS = {"one": 1, "two": 2, "three": 3, "four": 4, "five": 5, "six": 6}
LOOKS = re.compile(
    rf"the (?:(?P<color>{'|'.join(COLORS)}) )?(?P<kind>{'|'.join(KINDS)})"
    rf"(?: with (?P<count>{'|'.join(NUMBERS)}) (?:windows?|flags?))?"
    rf"(?:(?: with| and) a (?P<roof>{'|'.join(ROOFS)}) roof)?"
    rf"(?: shown (?P<sky>by day|at night|at sunset))?"
    rf"(?:(?: and)? with (?:a )?(?P<beside>nothing|{'|'.join(COMPANIONS)}) nearby)?"
)


def drawn(style: QuestionStyle, seed: int = 5, **changes: object) -> PostcardArchive:
    return draw_archive(seed, IMAGES, QUESTIONS, style=style, **changes)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def archives() -> dict[QuestionStyle, PostcardArchive]:
    return {style: drawn(style) for style in QuestionStyle}


def digest(archive: PostcardArchive) -> str:
    postcards = [
        (card.file_name, card.caption, card.picture_seed, *astuple(card.attributes)) for card in archive.postcards
    ]
    questions = [(q.custom_id, q.text, q.answer, q.type, q.relevant) for q in archive.questions]
    return hashlib.sha256(json.dumps([postcards, questions]).encode()).hexdigest()


@pytest.mark.parametrize(
    ("style", "expected"),
    [
        # Taken before there were other styles.
        (QuestionStyle.CUES, "cb0ce3b6435c6183411747c0e420b00b21acc8d0b735ab1176d6456bbb9e6fd8"),
        (QuestionStyle.NAME, "a76a5a7f931c60d514b646a75a53bcfdab31c8257aa02a739e3a5b8800256c35"),
        (QuestionStyle.CUES_ONLY, "b41aa8b10c0404a8553303950b31077a1ff299de368ad74e787964aef3fbb60c"),
        (QuestionStyle.MISSPELT, "09cffbc53bda4bdbcea81b94e9cfcc3a22893466c0d88ccb3ff0e718c8a71bef"),
        (QuestionStyle.PARAPHRASED, "0a40395fd6a2b655684e225d400d8ab7a82a005b3b2032afa9614a89df85f572"),
    ],
)
def test_a_seed_means_the_same_questions_everywhere(style: QuestionStyle, expected: str) -> None:
    assert digest(draw_archive(21, 1000, 300, style=style)) == expected


def test_the_postcards_do_not_depend_on_the_style(archives: dict[QuestionStyle, PostcardArchive]) -> None:
    cues = archives[QuestionStyle.CUES]
    for style, archive in archives.items():
        assert archive.postcards == cues.postcards
        assert {question.style for question in archive.questions} == {style}
        assert len({question.text for question in archive.questions}) == QUESTIONS


@pytest.mark.parametrize("style", BY_NAME)
def test_the_same_is_asked_in_other_words(archives: dict[QuestionStyle, PostcardArchive], style: QuestionStyle) -> None:
    for cues, question in zip(archives[QuestionStyle.CUES].questions, archives[style].questions, strict=True):
        assert replace(question, text=cues.text, style=cues.style) == cues


def subjects(archive: PostcardArchive, question: KnownQuestion) -> list[Landmark]:
    by_name = {postcard.file_name: postcard.landmark for postcard in archive.postcards}
    return [by_name[name] for name in question.relevant]


def test_a_question_by_name_has_no_visible_fact(archives: dict[QuestionStyle, PostcardArchive]) -> None:
    archive = archives[QuestionStyle.NAME]
    texts = {question.type: question for question in archive.questions}
    assert set(texts) == {"color", "count", "roof", "beside", "isthere", "sky", "year", "more", "samecolor"}
    for question in archive.questions:
        names = [f"the {landmark.title} in {landmark.entity.city}" for landmark in subjects(archive, question)]
        form = question.text
        for name in names:
            assert name in form
            form = form.replace(name, "…")
        assert not set(re.findall("[a-z]+", form)) & {*COLORS, *ROOFS, "shown", "nearby", "night", "sunset"}, form


def form_of(archive: PostcardArchive, question: KnownQuestion) -> str:
    """The text with the names of landmarks and things taken out."""
    text = question.text
    for landmark in subjects(archive, question):
        city = landmark.entity.city
        for naming in (f"{city}'s {landmark.title}", f"the {landmark.title} in {city}"):
            text = text.replace(naming, "…")
    return re.sub(rf" ({'|'.join(COMPANIONS)}|windows|flags)\b", " thing", text)


def forms_by_type(archive: PostcardArchive) -> dict[str, set[str]]:
    forms: dict[str, set[str]] = defaultdict(set)
    for question in archive.questions:
        forms[question.type].add(form_of(archive, question))
    return forms


def test_paraphrases_name_the_landmarks_in_many_forms(archives: dict[QuestionStyle, PostcardArchive]) -> None:
    usual, forms = (forms_by_type(archives[style]) for style in (QuestionStyle.NAME, QuestionStyle.PARAPHRASED))
    for question_type, texts in forms.items():
        assert usual[question_type].isdisjoint(texts)
        assert len(texts) >= 3
        assert {text.count("…") for text in texts} == {2 if question_type in TWO_IMAGE_TYPES else 1}
        assert not [text for text in texts if re.search("[{}]", text)]


def test_paraphrases_of_test_archives_never_occur_in_training() -> None:
    asked, trained = (
        forms_by_type(draw_archive(5, 300, 2000, style=QuestionStyle.PARAPHRASED, split=split))
        for split in ("test", "train")
    )
    for question_type in (*ONE_IMAGE_TYPES, *TWO_IMAGE_TYPES):
        assert len(asked[question_type]) >= 4
        assert len(trained[question_type]) >= 2 * len(asked[question_type])
    words = {word for texts in trained.values() for text in texts for word in re.findall(r"\w+", text)}
    assert not [text for text in set().union(*asked.values()) if not set(re.findall(r"\w+", text)) <= words]
    forms = {text: (paraphrases(kind, "test"), paraphrases(kind, "train")) for kind in asked for text in asked[kind]}
    assert all(set(tested).isdisjoint(practised) for tested, practised in forms.values())


def named(text: str) -> list[tuple[str, str, str]]:
    """(kind, name, city) of the things that a question names."""
    described = re.findall(
        rf"the (\w+) ({'|'.join(map(str.capitalize, KINDS))}) in ((?:(?:Port|New|Saint|Upper) )?\w+)", text
    )
    return [(kind.lower(), name, city) for name, kind, city in described]


def errors_between(right: str, typed: str) -> int:
    """0 if equal, 1 if one typing error apart, else 2."""
    return 0 if right == typed else 1 if is_within_one_error(right, typed) else 2


def test_a_misspelt_name_has_one_error_in_name_or_city_and_fits_one_postcard(
    archives: dict[QuestionStyle, PostcardArchive],
) -> None:
    archive = archives[QuestionStyle.MISSPELT]
    places: Counter[tuple[int, int]] = Counter()
    for question in archive.questions:
        typed = named(question.text)
        assert len(typed) == len(question.relevant), question.text
        for (kind, name, city), landmark in zip(typed, subjects(archive, question), strict=True):
            entity = landmark.entity
            assert kind == landmark.attributes.kind
            assert (name[0], city[0], city.split()[-1][0]) == (
                entity.name[0],
                entity.city[0],
                entity.city.split()[-1][0],
            )
            places[errors_between(entity.name, name), errors_between(entity.city, city)] += 1
            near = [
                card.landmark
                for card in archive.postcards
                if card.attributes.kind == kind
                and is_within_one_error(card.landmark.entity.name, name)
                and is_within_one_error(card.landmark.entity.city, city)
            ]
            assert near == [landmark]
    assert set(places) == {(1, 0), (0, 1), (1, 1)}
    assert min(places.values()) > QUESTIONS / 6


def test_typing_errors_are_of_four_kinds() -> None:
    rng = random.Random(1)
    seen = {mistype("Harlow", rng) for _ in range(2000)}
    assert "Harlow" not in seen
    assert {word[0] for word in seen} == {"H"}
    assert {"Halrow", "Halow", "Harrlow", "Harlpw"} <= seen
    assert all(is_within_one_error("Harlow", word) for word in seen)
    assert mistype("By", rng).startswith("By")


@pytest.mark.parametrize(
    ("left", "right", "near"),
    [
        ("Harlow", "Harlow", True),
        ("Harlow", "Halrow", True),
        ("Harlow", "Harlo", True),
        ("Harlow", "HHarlow", True),
        ("Harlow", "Harbow", True),
        ("Harlow", "Hbrlpw", False),
        ("Harlow", "Haolrw", False),
        ("Harlow", "Harl", False),
        ("Harlow", "Halorw", False),
        ("", "a", True),
    ],
)
def test_one_error_apart(left: str, right: str, near: bool) -> None:
    assert is_within_one_error(left, right) is is_within_one_error(right, left) is near


def test_a_misspelt_name_never_becomes_that_of_another() -> None:
    """ "Kelby" and "Kelbyy" are one error apart: a typing error in the name alone would always fit both."""
    cards = draw_archive(3, 2, 0).postcards
    entity = replace(cards[0].landmark.entity, name="Kelby", city="Ulmoor")
    ours = Landmark(cards[0].attributes, entity)
    twin = Landmark(cards[0].attributes, replace(entity, city="Ulmore"))
    errors = TypingErrors([ours, twin])
    rng = random.Random(2)
    for _ in range(200):
        typed = errors.misspell(ours, rng).entity
        assert not is_within_one_error(typed.city, "Ulmore")


def matching(archive: PostcardArchive, seen: re.Match[str]) -> list[str]:
    """The postcards that show everything that a description says."""

    def shows(card: Postcard) -> bool:
        looks = card.attributes
        beside = "nothing" if looks.beside == NOTHING else looks.beside
        return (
            looks.kind == seen["kind"]
            and seen["color"] in (None, looks.color)
            and seen["roof"] in (None, looks.roof)
            and seen["beside"] in (None, beside)
            and (seen["count"] is None or NUMBERS[seen["count"]] == looks.count)
            and (seen["sky"] is None or seen["sky"].endswith(looks.sky))
        )

    return [card.file_name for card in archive.postcards if shows(card)]


def descriptions(question: KnownQuestion) -> Iterator[re.Match[str]]:
    for match in LOOKS.finditer(question.text):
        if match["kind"] and any(match[name] for name in ("color", "count", "roof", "sky", "beside")):
            yield match


@pytest.mark.parametrize("images", [IMAGES, 4000])
def test_visible_facts_alone_fit_one_postcard_and_hide_the_answer(images: int) -> None:
    archive = draw_archive(5, images, QUESTIONS, style=QuestionStyle.CUES_ONLY)
    asked = {"isthere": "beside", "more": "count", "samecolor": "color"}
    for question in archive.questions:
        described = [*descriptions(question)]
        assert [matching(archive, seen) for seen in described] == [[name] for name in question.relevant], question.text
        for seen in described:
            assert question.type == "year" or seen[asked.get(question.type, question.type)] is None
        for landmark in subjects(archive, question):
            assert landmark.entity.name not in question.text
            assert landmark.entity.city not in question.text
    check_answers(archive)


def check_answers(archive: PostcardArchive) -> None:
    for question in archive.questions:
        landmarks = subjects(archive, question)
        looks = landmarks[0].attributes
        expected = {
            "color": looks.color,
            "roof": looks.roof,
            "sky": looks.sky,
            "year": str(landmarks[0].entity.year),
            "beside": "nothing" if looks.beside == NOTHING else looks.beside,
            "isthere": "yes" if f"Is there a {looks.beside} next" in question.text else "no",
            "count": next(word for word, number in NUMBERS.items() if number == looks.count),
            "more": max(landmarks, key=lambda landmark: landmark.attributes.count).title,
            "samecolor": "yes" if len({landmark.attributes.color for landmark in landmarks}) == 1 else "no",
        }
        assert question.answer == expected[question.type], question
        assert question.type != "roof" or looks.roof != NOTHING


def test_by_visible_facts_the_types_and_as_many_postcards_as_possible_stay(
    archives: dict[QuestionStyle, PostcardArchive],
) -> None:
    cues, looks = archives[QuestionStyle.CUES].questions, archives[QuestionStyle.CUES_ONLY].questions
    assert [question.type for question in looks] == [question.type for question in cues]
    kept = sum(ours.relevant == theirs.relevant for ours, theirs in zip(looks, cues, strict=True))
    assert QUESTIONS / 3 < kept < QUESTIONS
    one = [question.relevant for question in looks if len(question.relevant) == 1]
    assert max(Counter(one).values()) <= 2
    same_color = Counter(question.answer for question in looks if question.type == "samecolor")
    assert min(same_color["yes"], same_color["no"]) >= 5


def few_looks(count: int) -> list[Postcard]:
    """Postcards that all look the same."""
    cards = draw_archive(1, count, 0).postcards
    return [replace(card, landmark=Landmark(cards[0].attributes, card.landmark.entity)) for card in cards]


def asked_by_looks(cards: Sequence[Postcard], question_type: str) -> list[asking.Asked]:
    rng = random.Random(1)
    cues = [(ask_about_one(cards[0].landmark, rng, question_type), (cards[0],))]
    return asking.in_style(cues, QuestionStyle.CUES_ONLY, cards, cards, None, "test", rng)


def test_where_no_postcard_suits_the_type_the_year_is_asked_for() -> None:
    cards = few_looks(3)
    night = replace(cards[1].landmark, attributes=replace(cards[1].attributes, sky="night"))
    cards[0] = replace(cards[0], landmark=replace(night, attributes=replace(night.attributes, sky="day")))
    cards[1] = replace(cards[1], landmark=night)
    cards[2] = replace(cards[2], landmark=replace(night, attributes=replace(night.attributes, sky="night")))
    [(question, asked)] = asked_by_looks(cards, "sky")  # without its sky, each looks like the others
    assert (question.type, asked) == ("year", (cards[0],))


def test_postcards_that_all_look_the_same_are_refused() -> None:
    with pytest.raises(UsageError, match="draw fewer images, or leave out the style cues-only"):
        asked_by_looks(few_looks(4), "color")


def test_pairs_by_visible_facts_stay_on_one_side() -> None:
    def is_even(file_name: str) -> bool:
        return int(file_name.removesuffix(".png")[-1]) % 2 == 0

    archive = drawn(QuestionStyle.CUES_ONLY, side=is_even)
    pairs = [question.relevant for question in archive.questions if len(question.relevant) == 2]
    assert len(pairs) == QUESTIONS / 5
    assert all(is_even(first) == is_even(second) for first, second in pairs)


def test_shifted_archives_have_all_styles() -> None:
    for style in QuestionStyle:
        archive = draw_archive(5, 200, 60, style=style, shifted=True)
        assert [question.style for question in archive.questions] == [style] * 60
