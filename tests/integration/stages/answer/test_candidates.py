"""Which images are candidates of a question, on archives of captions and random vectors without any model."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any

import numpy as np
import pytest
from sqlalchemy import Engine

from ragllava.records import AnswerOptions, Origin, Question, Retrieval, Spelling
from ragllava.settings import Settings
from ragllava.stages.answer.candidates import SURE_SHARE, CandidateHit, find_candidates
from ragllava.stages.answer.splitting import MOST_BY_CAPTION
from ragllava.stages.answer.tools import AnswerTools
from ragllava.stages.resources import Resources
from ragllava.stores.archives import texts, vector_search
from ragllava.stores.archives.texts import AskedWords
from ragllava.stores.archives.vectors import IndexView, Vectors
from tests.support.shelf import DIM, make_shelf

TOP_K = 5
BARN = "What color is the Undwick Barn in Upper Holshire?"


class DrawnVectors:
    """In place of a retriever: each text has a random vector of its own."""

    def embed_texts(self, texts: Sequence[str]) -> Vectors:
        drawn = [np.random.default_rng(zlib.crc32(text.encode())).normal(size=DIM) for text in texts]
        return np.array([vector / np.linalg.norm(vector) for vector in drawn], dtype=np.float32)


class OnlyARetriever(Resources):
    """The resources of a worker that has nothing but vectors."""

    def retriever_of(self, index: IndexView) -> Any:
        return DrawnVectors()


@dataclass(frozen=True)
class Asked:
    """An archive with these captions, whose images have the ids of `ids`; and the search under test."""

    engine: Engine
    settings: Settings
    index: IndexView
    ids: list[int]

    def find(self, *questions: str, **options: Any) -> list[list[CandidateHit]]:
        tools = AnswerTools(
            self.engine,
            self.settings,
            OnlyARetriever(self.settings),
            self.index,
            AnswerOptions(**{"top_k": TOP_K} | options),
            threshold=0.5,
            champions={},
        )
        numbered = [Question(number, number + 1, f"q{number}", text) for number, text in enumerate(questions)]
        return find_candidates(numbered, tools)

    def cosines(self, question: str) -> dict[int, float]:
        """Of all images, as the exact search of vectors computes them."""
        with self.engine.begin() as connection:
            [hits] = vector_search.search_exact(
                connection, self.index, DrawnVectors().embed_texts([question]), len(self.ids)
            )
        return {hit.image_id: hit.retrieval_score for hit in hits}

    def nearest(self, question: str, number: int = TOP_K) -> list[CandidateHit]:
        """What the pictures alone give."""
        return [CandidateHit(*hit) for hit in list(self.cosines(question).items())[:number]]

    def places(self, question: str) -> list[int]:
        """The numbers of all images, those of the nearest pictures first."""
        return [self.ids.index(image_id) for image_id in self.cosines(question)]


@pytest.fixture
def archive_of(engine: Engine, settings: Settings) -> Callable[..., Asked]:
    """Makes an archive of images with these captions; the vectors of all archives are the same."""
    names = count()

    def make(*captions: str | None) -> Asked:
        with engine.begin() as connection:
            shelf = make_shelf(connection, f"archive-{next(names)}")
            ids = shelf.add(*captions)
        return Asked(engine, settings, shelf.index, ids)

    return make


def fillers(number: int) -> list[str]:
    """Captions that share no word with each other or with a question."""
    return [f"Fillbury{n:03d} Mill{n:03d}" for n in range(number)]


def placed(number: int, wanted: dict[int, str]) -> list[str]:
    """So many captions, with the wanted ones at their places."""
    return [wanted.get(place, caption) for place, caption in enumerate(fillers(number))]


def ids_of(hits: Sequence[CandidateHit]) -> list[int]:
    return [hit.image_id for hit in hits]


# The nearest pictures


def test_the_nearest_pictures_alone_are_the_exact_search(archive_of: Callable[..., Asked]) -> None:
    asked = archive_of(*fillers(30))
    [hits] = asked.find(BARN, retrieval=Retrieval.PICTURE)
    assert hits == asked.nearest(BARN)
    assert len(hits) == TOP_K


def test_what_captions_find_is_appended_and_displaces_nothing(archive_of: Callable[..., Asked]) -> None:
    wanted = archive_of(*fillers(30)).places(BARN)[-1]
    asked = archive_of(*placed(30, {wanted: "Undwick Barn, Upper Holshire, 1968"}))
    [hits] = asked.find(BARN)
    assert hits[:TOP_K] == asked.nearest(BARN)
    [named] = hits[TOP_K:]
    assert (named.image_id, named.origin, named.caption_rank) == (asked.ids[wanted], Origin.CAPTION, 0)
    assert named.shares == (1.0,)
    assert named.retrieval_score == pytest.approx(asked.cosines(BARN)[named.image_id], abs=1e-5)
    with asked.engine.begin() as connection:
        [[word_hit]] = texts.search(connection, asked.index, [AskedWords.of(BARN)], 20)
    assert named.caption_score == pytest.approx(word_hit.caption_score) and word_hit.caption_score > 0


def test_a_near_picture_that_its_caption_names_stays_in_its_place(archive_of: Callable[..., Asked]) -> None:
    third = archive_of(*fillers(30)).places(BARN)[2]
    asked = archive_of(*placed(30, {third: "Undwick Barn, Upper Holshire, 1968"}))
    [hits] = asked.find(BARN)
    assert len(hits) == TOP_K, "found twice, and a candidate once"
    assert [hit.retrieval_score for hit in hits] == [hit.retrieval_score for hit in asked.nearest(BARN)]
    assert [hit.origin for hit in hits] == [Origin.PICTURE] * 2 + [Origin.BOTH] + [Origin.PICTURE] * 2
    assert (hits[2].caption_rank, hits[2].shares) == (0, (1.0,))
    assert hits[2].caption_score is not None and hits[2].caption_score > 0


# What captions must say to add something


@pytest.mark.parametrize(
    "captions",
    [[None] * 30, ["Barn in Upper Holshire"] * 30, fillers(30)],
    ids=["without captions", "one caption for all", "captions of other things"],
)
def test_captions_that_say_nothing_add_nothing(archive_of: Callable[..., Asked], captions: list[str | None]) -> None:
    asked = archive_of(*captions)
    assert asked.find(BARN) == [asked.nearest(BARN)]


@pytest.mark.parametrize(
    ("images", "having", "is_rare"),
    [(600, 12, True), (600, 13, False), (12, 3, True), (12, 4, False)],
    ids=["2 % of many", "more than 2 % of many", "3 of few", "4 of few"],
)
def test_a_common_word_alone_adds_nothing(
    archive_of: Callable[..., Asked], images: int, having: int, is_rare: bool
) -> None:
    asked = archive_of(*(f"Barn, {caption}" if n < having else caption for n, caption in enumerate(fillers(images))))
    [hits] = asked.find("Which barn is it?")
    named = [hit for hit in hits if hit.origin is not Origin.PICTURE]
    assert {hit.image_id for hit in named} <= set(asked.ids[:having])
    assert len(named) == (min(having, MOST_BY_CAPTION) if is_rare else 0)
    assert ids_of(hits)[:TOP_K] == ids_of(asked.nearest("Which barn is it?"))


def test_a_rare_word_is_not_enough_for_a_caption_that_fits_much_worse(archive_of: Callable[..., Asked]) -> None:
    asked = archive_of("Undwick Barn, Upper Holshire", "Undwick Barn, Lower Marsh", "Undwick Fair", *fillers(30))
    [hits] = asked.find(BARN)
    with asked.engine.begin() as connection:
        [found] = texts.search(connection, asked.index, [AskedWords.of(BARN)], 20)
    shares = {hit.image_id: hit.caption_score / found[0].caption_score for hit in found}
    assert [shares[image_id] >= SURE_SHARE for image_id in asked.ids[:3]] == [True, False, False]
    assert {hit.image_id for hit in hits if hit.shares} == {asked.ids[0]}


def test_captions_add_a_limited_number(archive_of: Callable[..., Asked]) -> None:
    asked = archive_of(*["Undwick Barn, Upper Holshire"] * 12, *fillers(600))
    [hits] = asked.find(BARN)
    assert len([hit for hit in hits if hit.shares]) == MOST_BY_CAPTION


# Two names


TWO = "Is the Undwick Barn in Upper Holshire older than the Havville?"


def test_images_of_one_name_do_not_crowd_out_those_of_the_other(archive_of: Callable[..., Asked]) -> None:
    asked = archive_of(*["Undwick Barn, Upper Holshire"] * 12, *fillers(600), "Havville")
    with asked.engine.begin() as connection:
        [best] = texts.search(connection, asked.index, [AskedWords.of(TWO)], MOST_BY_CAPTION)
    barns, other = set(asked.ids[:12]), asked.ids[-1]
    assert {hit.image_id for hit in best} <= barns, "one search alone would not find the other"
    [hits] = asked.find(TWO)
    shares = {hit.image_id: hit.shares for hit in hits if hit.shares}
    assert shares.pop(other) == (0.0, 1.0)
    assert set(shares) <= barns and len(shares) == MOST_BY_CAPTION
    assert set(shares.values()) == {(1.0, 0.0)}
    assert hits[:TOP_K] == asked.nearest(TWO) or {hit.origin for hit in hits[:TOP_K]} <= {Origin.PICTURE, Origin.BOTH}


def test_an_image_of_both_names_has_a_share_of_each(archive_of: Callable[..., Asked]) -> None:
    asked = archive_of("Undwick Barn", "Havville Tower", "Undwick Barn and Havville Tower", *fillers(30))
    [hits] = asked.find("Are the Undwick Barn and the Havville Tower on one card?")
    shares = {hit.image_id: hit.shares for hit in hits if hit.shares}
    assert shares[asked.ids[2]][0] == 1.0
    assert all(len(each) == len(shares[asked.ids[2]]) for each in shares.values())


def test_left_over_words_that_say_little_are_no_second_name(archive_of: Callable[..., Asked]) -> None:
    """`Fair` scores less than ANOTHER_THING of the first name."""
    asked = archive_of("Undwick Barn, Upper Holshire, Great Marsh", "Fair", *fillers(30))
    [hits] = asked.find("Was the fair at the Undwick Barn in Upper Holshire in Great Marsh?")
    assert {hit.image_id: hit.shares for hit in hits if hit.shares} == {asked.ids[0]: (1.0,)}


# Misspelt names


def spellings(hits: Sequence[CandidateHit]) -> dict[int, tuple[Spelling, ...]]:
    return {hit.image_id: hit.spellings for hit in hits if hit.spellings}


@pytest.mark.parametrize("retrieval", [Retrieval.HYBRID, Retrieval.CAPTION])
def test_a_misspelt_name_is_surely_another_one_beside_a_rare_word(
    archive_of: Callable[..., Asked], retrieval: Retrieval
) -> None:
    asked = archive_of(*fillers(30), "Undwick Barn, Upper Holshire, 1968", "Undwick Fair")
    once, twice = asked.find(
        "Where is the Undwikc Barn in Upper Holshire?", "Where is Undwikc, Holshrie?", retrieval=retrieval
    )
    name, city = Spelling("undwikc", "undwick"), Spelling("holshrie", "holshire")
    assert spellings(once) == {asked.ids[30]: (name,)}
    assert {image_id: {*found} for image_id, found in spellings(twice).items()} == {asked.ids[30]: {name, city}}


def test_each_of_two_names_is_corrected_by_its_own_caption(archive_of: Callable[..., Asked]) -> None:
    asked = archive_of(*fillers(30), "Undwick Barn, Upper Holshire", "Havville Tower, Elcrest")
    [hits] = asked.find("Is the Undwikc Barn in Holshire older than the Havvilel Tower in Elcrest?")
    assert spellings(hits) == {
        asked.ids[30]: (Spelling("undwikc", "undwick"),),
        asked.ids[31]: (Spelling("havvilel", "havville"),),
    }


@pytest.mark.parametrize(
    ("question", "captions"),
    [
        ("Where is the Undwikc?", ["Undwick Barn"]),
        ("Where is the Undwikc Mill?", ["Undwick Mill", *["Mill"] * 20]),
        ("What is in the Undwikc photo of 1968?", ["What is seen in the Undwick photo, 1968"]),
        ("Where is the Undwikc Mill?", ["Undwick Mill", "Mill", "Mill", *["Undwick Fair"] * 20]),
        ("Where is the Undwikc Barn in Holshire?", ["Undwick Barn, Holshire", "Undwiks"]),
        ("Where is the Undwikc Barn in Holshire?", ["Undwick Barn, Holshire", "Undwikc"]),
        ("Where is the Schiffe in Holshire?", ["Schiff, Holshire"]),
    ],
    ids=[
        "a name alone",
        "a common word beside it",
        "no name beside it",
        "both by chance",
        "two words may be meant",
        "a word of its own",
        "another form",
    ],
)
def test_a_word_that_may_be_meant_otherwise_stays(
    archive_of: Callable[..., Asked], question: str, captions: list[str]
) -> None:
    asked = archive_of(*captions, *fillers(30))
    [hits] = asked.find(question)
    assert asked.ids[0] in {hit.image_id for hit in hits if hit.shares}, "it is found all the same"
    assert spellings(hits) == {}


def test_the_nearest_pictures_alone_correct_nothing(archive_of: Callable[..., Asked]) -> None:
    asked = archive_of("Undwick Barn, Upper Holshire, 1968")
    [hits] = asked.find("Where is the Undwikc Barn in Upper Holshire?", retrieval=Retrieval.PICTURE)
    assert ids_of(hits) == asked.ids and spellings(hits) == {}


# By captions alone


def test_by_captions_alone_the_best_by_words_are_candidates(archive_of: Callable[..., Asked]) -> None:
    asked = archive_of("Undwick Barn, Upper Holshire", "Undwick Barn, Lower Marsh", "Undwick Fair", *fillers(30))
    [hits] = asked.find(BARN, retrieval=Retrieval.CAPTION)
    with asked.engine.begin() as connection:
        [found] = texts.search(connection, asked.index, [AskedWords.of(BARN)], TOP_K)
    assert ids_of(hits) == [hit.image_id for hit in found] == asked.ids[:3]
    assert [hit.caption_score for hit in hits] == pytest.approx([hit.caption_score for hit in found])
    assert [(hit.origin, hit.caption_rank) for hit in hits] == [(Origin.CAPTION, rank) for rank in range(3)]
    assert [hit.shares for hit in hits] == [(1.0,), (), ()]
    cosines = asked.cosines(BARN)
    assert [hit.retrieval_score for hit in hits] == pytest.approx([cosines[hit.image_id] for hit in hits], abs=1e-5)


def test_by_captions_alone_further_names_are_appended(archive_of: Callable[..., Asked]) -> None:
    asked = archive_of(*["Undwick Barn, Upper Holshire"] * 12, *fillers(600), "Havville")
    [hits] = asked.find(TWO, retrieval=Retrieval.CAPTION)
    assert set(ids_of(hits)) <= {*asked.ids[:12], asked.ids[-1]}
    assert asked.ids[-1] in ids_of(hits)[TOP_K:]
    assert [hit.caption_rank for hit in hits] == list(range(len(hits)))
    assert len(set(ids_of(hits))) == len(hits)


def test_by_captions_alone_a_question_without_their_words_has_no_candidate(archive_of: Callable[..., Asked]) -> None:
    assert archive_of(*fillers(10)).find(BARN, retrieval=Retrieval.CAPTION) == [[]]


# Questions beside each other


@pytest.mark.parametrize("retrieval", list(Retrieval))
def test_candidates_do_not_depend_on_the_questions_beside_them(
    archive_of: Callable[..., Asked], retrieval: Retrieval
) -> None:
    names = ["Undwick Barn, Upper Holshire", "Havville", "Undwick Barn, Lower Marsh", "Elcrest Tower, 1912"]
    asked = archive_of(*names, *fillers(100))
    questions = [BARN, TWO, "Elcrest?", "", "Fillbury007 or Mill090?", *(f"What is {name}?" for name in fillers(70))]
    together = asked.find(*questions, retrieval=retrieval)
    assert len(together) == len(questions)
    assert asked.find(*reversed(questions), retrieval=retrieval) == together[::-1]
    for number in (0, 1, 2, 3, 4, 74):
        assert asked.find(questions[number], retrieval=retrieval) == [together[number]]


def test_without_an_index_there_are_no_candidates(archive_of: Callable[..., Asked]) -> None:
    asked = archive_of(*fillers(3))
    tools = AnswerTools(asked.engine, asked.settings, OnlyARetriever(asked.settings), None, AnswerOptions(), 0.5, {})
    assert find_candidates([Question(0, 1, "q", BARN)], tools) == [[]]
    assert asked.find() == []
