"""Training questions in all styles: right, never in the words of a measurement, with every subject's end."""

from __future__ import annotations

import random
import re
from collections import Counter
from dataclasses import replace
from itertools import product

import pytest

from ragllava.lab.mini_recipe import wordings
from ragllava.lab.mini_recipe.calibrate import named_in_captions
from ragllava.lab.mini_recipe.endings import Shown
from ragllava.lab.mini_recipe.examples import PackSampler
from ragllava.lab.mini_recipe.wordings import (
    ANSWER_SHARES,
    STYLE_SHARES,
    ask_in_style,
    change_facts,
    choose_facts,
    draw_style,
    fits,
    misspell,
)
from ragllava.postcards.archive import draw_archive
from ragllava.postcards.names import (
    COLORS,
    NOTHING,
    ROOFED_KINDS,
    ROOFS,
    SKIES,
    Attributes,
    Entity,
    Landmark,
    sample_attributes,
    sample_entity,
    similar_entity,
)
from ragllava.postcards.paraphrases import Naming, paraphrases
from ragllava.postcards.questions import COUNT_WORDS, ONE_IMAGE_TYPES, TWO_IMAGE_TYPES, QuestionStyle
from ragllava.postcards.typing_errors import is_within_one_error

LIGHTHOUSE = Landmark(
    Attributes("lighthouse", "red", 3, "night", "flat", "dog"), Entity("Harlow", "Port Ansel", 1932, True)
)


@pytest.fixture(scope="module")
def attributes() -> list[Attributes]:
    rng = random.Random(5)
    return [sample_attributes(rng) for _ in range(600)]


def _landmark(rng: random.Random) -> Landmark:
    return Landmark(sample_attributes(rng), sample_entity(rng, "train"))


def _shows(looks: Attributes, description: str) -> bool:
    """Whether everything visible that a description "the red barn with ..." says is so."""
    words = re.findall(r"[a-z]+", description)
    said = {
        "color": [word for word in words if word in COLORS],
        "sky": [word for word in words if word in SKIES],
        "roof": [word for word in words if word in ROOFS],
        "count": [word for word in words if word in COUNT_WORDS.values()],
        "beside": re.findall(r"(?:with|and) (?:a )?(\w+) nearby", description),
    }
    shown = {
        "color": looks.color,
        "sky": looks.sky,
        "roof": looks.roof,
        "count": COUNT_WORDS[looks.count],
        "beside": "nothing" if looks.beside == NOTHING else looks.beside,
    }
    return looks.kind in words and all(word == shown[name] for name, given in said.items() for word in given)


def test_no_paraphrase_of_training_is_one_of_a_measurement() -> None:
    """All sentences that training can make, with each form that a subject can have, against all of the measurements."""
    landmarks = (LIGHTHOUSE, replace(LIGHTHOUSE, entity=Entity("Denfield", "Kelmoor", 1950, True)))
    by_name = [f"the {landmark.title} in {landmark.entity.city}" for landmark in landmarks]
    of_city = [f"{landmark.entity.city}'s {landmark.title}" for landmark in landmarks]
    forms = [
        [form.format(title=landmark.title, city=landmark.entity.city) for form in wordings._SUBJECTS]
        for landmark in landmarks
    ]
    assert set(wordings._PHRASES) == {*ONE_IMAGE_TYPES, *TWO_IMAGE_TYPES}
    namings = [Naming(*both) for both in zip(by_name, of_city, strict=True)]
    for question_type, phrases in wordings._PHRASES.items():
        measured = {form.format(*namings, thing="dog") for form in paraphrases(question_type, "test")}
        trained: set[str] = set()
        for subjects in product(*forms):
            indirect = [phrase.format(*subjects, thing="dog") for phrase in phrases.indirect]
            trained |= {phrase.format(*subjects, thing="dog") for phrase in phrases.direct}
            trained |= {opening.format(phrase) for opening in wordings._INDIRECT_OPENINGS for phrase in indirect}
            for opening, phrase in product(wordings._OPENINGS_ABOUT_IT, phrases.about_it):
                trained.add(opening.format(subjects[0], phrase.format(thing="dog")))
        assert len(trained) > 100
        assert not trained & measured


def test_a_question_says_where_each_subject_ends() -> None:
    rng = random.Random(1)
    drawn: Counter[QuestionStyle] = Counter()
    for _ in range(400):
        landmarks = [_landmark(rng) for _ in range(rng.choice((1, 2)))]
        asked = ask_in_style(landmarks, None, draw_style(STYLE_SHARES, rng), rng)
        drawn[asked.style] += 1
        assert len(asked.subject_ends) == len(landmarks)
        assert sorted(asked.subject_ends) == [*asked.subject_ends]
        for landmark, end in zip(landmarks, asked.subject_ends, strict=True):
            before = asked.question.text[:end]
            if asked.style is QuestionStyle.CUES_ONLY:
                assert _shows(landmark.attributes, before[before.rindex("the ") :])
            elif asked.style is not QuestionStyle.MISSPELT:
                title, city = landmark.title, landmark.entity.city
                assert re.search(rf"{title} (?:in|of|at) {city}$|{city}'s {title}$", before)
    assert set(drawn) == set(QuestionStyle)
    assert drawn[QuestionStyle.CUES] == max(drawn.values())


@pytest.mark.parametrize("style", [style for style in QuestionStyle if style is not QuestionStyle.CUES])
@pytest.mark.parametrize("question_type", ONE_IMAGE_TYPES)
def test_a_style_does_not_change_the_answer(style: QuestionStyle, question_type: str) -> None:
    answers = {"color": "red", "count": "three", "roof": "flat", "beside": "dog", "sky": "night", "year": "1932"}
    rng = random.Random(2)
    for _ in range(30):
        asked = ask_in_style([LIGHTHOUSE], question_type, style, rng).question
        assert asked.type == question_type
        expected = answers.get(question_type, "yes" if asked.thing == "dog" else "no")
        assert asked.answer == expected
        if question_type == "isthere":
            assert asked.thing in asked.text
        elif style is QuestionStyle.CUES_ONLY:
            assert expected not in asked.text


def test_a_misspelt_landmark_is_not_within_one_error_of_a_rival() -> None:
    rng = random.Random(3)
    rival = replace(LIGHTHOUSE, entity=replace(LIGHTHOUSE.entity, name="Harlaw"))
    for _ in range(200):
        wrong = misspell(LIGHTHOUSE, [rival, LIGHTHOUSE], rng)
        assert wrong is not None
        assert (wrong.entity.name, wrong.entity.city) != ("Harlow", "Port Ansel")
        assert is_within_one_error(wrong.entity.name, "Harlow")
        assert is_within_one_error(wrong.entity.city, "Port Ansel")
        assert not (
            is_within_one_error(wrong.entity.name, "Harlaw") and is_within_one_error(wrong.entity.city, "Port Ansel")
        )
    other_kind = replace(rival, attributes=replace(rival.attributes, kind="barn"))
    assert any(
        is_within_one_error(wrong.entity.name, "Harlaw")
        for wrong in (misspell(LIGHTHOUSE, [other_kind], rng) for _ in range(200))
        if wrong is not None
    )


def test_where_a_description_fits_a_rival_the_question_names_the_landmark() -> None:
    rng = random.Random(4)
    rival = replace(LIGHTHOUSE, entity=Entity("Denfield", "Kelmoor", 1950, True))
    asked = ask_in_style([LIGHTHOUSE], "year", QuestionStyle.CUES_ONLY, rng, [LIGHTHOUSE, rival])
    assert asked.style is QuestionStyle.NAME
    assert asked.question.text == "In what year was the Harlow Lighthouse in Port Ansel pictured?"
    assert ask_in_style([LIGHTHOUSE], "year", QuestionStyle.CUES_ONLY, rng, [LIGHTHOUSE]).style != asked.style


def test_changed_facts_no_longer_fit() -> None:
    rng = random.Random(6)
    differing: Counter[str] = Counter()
    for _ in range(200):
        looks = sample_attributes(rng)
        facts = choose_facts(looks, rng.choice(ONE_IMAGE_TYPES), rng)
        changed = change_facts(looks, facts, rng)
        assert fits(looks, looks, facts)
        assert not fits(looks, changed, facts)
        assert (changed.roof == NOTHING) == (looks.roof == NOTHING) == (changed.kind not in ROOFED_KINDS)
        differing += Counter(name for name in ("kind", *facts) if getattr(changed, name) != getattr(looks, name))
    assert set(differing) == {"kind", "color", "sky", "beside", "roof", "count"}


def test_relevance_by_looks_is_what_the_picture_shows(attributes: list[Attributes]) -> None:
    sampler = PackSampler(attributes, "train", styles={QuestionStyle.CUES_ONLY: 1.0}, answer_styles=ANSWER_SHARES)
    rng = random.Random(7)
    verdicts: Counter[str] = Counter()
    bare = 0
    for _ in range(200):
        pack = sampler.one_picture_pack(rng)
        bare += pack.bare
        (shown,) = pack.shown
        assert not pack.bare or {ending.style for ending in pack.endings} == {QuestionStyle.CUES_ONLY}
        assert not pack.bare or all(ending.task != "year" for ending in pack.endings)
        for ending in pack.endings:
            if ending.judges_relevance:
                starts = [0, *(subject.end for subject in ending.subjects)]
                descriptions = [
                    ending.question[start : subject.end]
                    for start, subject in zip(starts, ending.subjects, strict=False)
                ]
                fitting = [_shows(shown.landmark.attributes, text[text.rindex(" the ") :]) for text in descriptions]
                assert fitting == [subject.about is not None for subject in ending.subjects]
                assert (ending.answer == "Yes") == any(fitting)
                verdicts[ending.answer] += 1
    assert 0.35 < verdicts["Yes"] / verdicts.total() < 0.55
    assert 5 < bare < 50


def test_subjects_are_compared_with_the_caption(attributes: list[Attributes]) -> None:
    """A misspelt name counts as the same name, and a similar word as another one."""
    sampler, rng = PackSampler(attributes, "train", styles={QuestionStyle.MISSPELT: 1.0}), random.Random(8)
    seen: set[tuple[bool | None, bool | None, bool]] = set()
    for _ in range(200):
        pack = sampler.one_picture_pack(rng)
        shown = pack.shown[0].landmark
        for ending in pack.endings:
            if ending.judges_relevance and len(ending.subjects) == 1:
                (subject,) = ending.subjects
                is_shown = subject.about is not None
                assert is_shown == (ending.answer == "Yes")
                named = re.search(r"the (\S+) ([A-Z][a-z]+) in ((?:[A-Z]\w+ )?[A-Z]\w+)", ending.question)
                assert named is not None, ending.question
                name, kind, city = named.groups()
                assert not subject.same_name or is_within_one_error(name, shown.entity.name)
                assert not subject.same_city or is_within_one_error(city, shown.entity.city)
                assert is_shown == bool(
                    subject.same_name and subject.same_city and kind.lower() == shown.attributes.kind
                )
                seen.add((subject.same_name, subject.same_city, is_shown))
    assert len(seen) == 5  # every combination of name and city, and the landmark of another kind


def test_pairs_of_a_pack_are_about_its_pictures(attributes: list[Attributes]) -> None:
    sampler, rng = PackSampler(attributes, "train", answer_styles=ANSWER_SHARES), random.Random(9)
    for _ in range(200):
        pack = sampler.several_pictures_pack(rng)
        for ending in pack.endings:
            abouts = [subject.about for subject in ending.subjects]
            assert all(about in pack.shown for about in abouts)
            first, *second = [about for about in abouts if about is not None] or [Shown(0, LIGHTHOUSE)]
            if ending.task == "more":
                winner = max(first, *second, key=lambda shown: shown.landmark.attributes.count)
                assert ending.answer == winner.landmark.title
                assert ending.about == winner
            elif ending.task == "samecolor":
                same = first.landmark.attributes.color == second[0].landmark.attributes.color
                assert ending.answer == ("yes" if same else "no")
            elif ending.subjects:
                assert ending.about == first


def test_a_similar_entity_shares_the_beginning_of_a_word() -> None:
    rng = random.Random(10)
    entity = Entity("Harlow", "Port Denfield", 1932, True)
    changed: Counter[str] = Counter()
    for _ in range(200):
        similar = similar_entity(entity, rng, "train")
        if similar.name != entity.name:
            assert similar.city == entity.city
            assert similar.name.startswith("Har")
            changed["name"] += 1
        else:
            assert similar.city.startswith("Port Den")
            assert similar.city != entity.city
            changed["city"] += 1
    assert min(changed.values()) > 60


def test_captions_name_the_right_postcards_and_their_namesakes() -> None:
    archive = draw_archive(3, 300, 20, style=QuestionStyle.NAME)
    names = [card.landmark.entity for card in archive.postcards]
    files = [card.file_name for card in archive.postcards]
    for question in archive.questions:
        named = named_in_captions(archive, question)
        right = {files.index(name) for name in question.relevant}
        assert right <= {*named}
        assert len(named) <= 10 * len(right)
        for index in named:
            assert any(names[index].name == names[r].name or names[index].city == names[r].city for r in right)
    assert any(len(named_in_captions(archive, question)) > 1 for question in archive.questions)
    by_looks = draw_archive(3, 300, 5, style=QuestionStyle.CUES_ONLY)
    assert all(named_in_captions(by_looks, question) == [] for question in by_looks.questions)
