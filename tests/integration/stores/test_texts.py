"""The search for images by their words, on a real database."""

from __future__ import annotations

import itertools
import random

import numpy as np
import pytest
from sqlalchemy import Connection, text, update

from ragllava.errors import IndexGone, IndexUnusable
from ragllava.stores.archives import indexes, spellings, texts, vector_search, vectors, word_index
from ragllava.stores.archives.filtering import FilterSql
from ragllava.stores.archives.texts import AskedWords, MatchedWord
from ragllava.stores.schema import images
from ragllava.words import source_words, words_of
from tests.support import bm25
from tests.support.shelf import DIM, Shelf, make_shelf


@pytest.fixture
def shelf(connection: Connection) -> Shelf:
    return make_shelf(connection)


def made_up_words(rng: random.Random, longest: int) -> str:
    """Up to so many words, of which "the" and "of" are frequent."""
    rare = [f"{first}{last}" for first in ("kar", "mel", "un", "wex") for last in "abcdefghijkl"]
    return " ".join(rng.choices([*rare, "the", "of"], [1.0] * 48 + [40.0, 20.0], k=rng.randint(0, longest)))


def fields_of_images(connection: Connection) -> dict[int, bm25.Fields]:
    """The words of each image by the weight of its field."""
    fields: dict[int, bm25.Fields] = {}
    for row in connection.execute(text("SELECT id, caption, metadata, source FROM images")):
        said = [row.metadata["title"], *row.metadata["tags"]] if row.metadata else []
        of_metadata = [word for each in said for word in words_of(each)]
        fields[row.id] = {"A": words_of(row.caption or ""), "C": of_metadata, "D": source_words(row.source)}
    return fields


def asked(*questions: str) -> list[AskedWords]:
    return [AskedWords.of(question) for question in questions]


class TestRanking:
    def test_equals_bm25_computed_from_the_texts(self, shelf: Shelf) -> None:
        rng = random.Random(3)
        ids = shelf.add(*(made_up_words(rng, 9) for _ in range(400)), source="shelf/{}.png")
        for image_id in ids[::3]:
            tags = [made_up_words(rng, 2), made_up_words(rng, 1)]
            metadata = {"title": made_up_words(rng, 3), "tags": tags, "iso": 100, "wexa": None}
            shelf.connection.execute(update(images).where(images.c.id == image_id).values(metadata=metadata))
        word_index.write_words(shelf.connection, shelf.archive_id, ids)
        fields = fields_of_images(shelf.connection)
        questions = [made_up_words(rng, 6) or "kara" for _ in range(100)] + ["the of", "the", "shelf", "nothing"]
        answers = texts.search(shelf.connection, shelf.index, asked(*questions), 20)
        assert len(answers) == len(questions)
        for question, hits in zip(questions, answers, strict=True):
            expected = bm25.scores(fields, words_of(question))
            assert [hit.image_id for hit in hits] == bm25.best(expected, 20)
            scores = [expected[hit.image_id] for hit in hits]
            assert [hit.caption_score for hit in hits] == pytest.approx(scores, rel=1e-5)
        assert min(len(hits) for hits in answers[:-1]) > 0 and answers[-1] == []

    def test_of_many_images_those_with_rare_combinations_are_scored(
        self, shelf: Shelf, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        rng = random.Random(5)
        names = [f"{first}{last}" for first in ("kar", "mel", "un", "wex", "dor") for last in "abcdefghijkl"]
        captions = [f"{rng.choice(names)} barn, {rng.choice(['upper', 'new'])} {rng.choice(names)}" for _ in range(600)]
        shelf.add(*captions)
        fields = fields_of_images(shelf.connection)
        questions = [f"what color is the {caption}" for caption in captions[::10]]
        monkeypatch.setattr(texts, "CANDIDATES", 30)
        answers = texts.search(shelf.connection, shelf.index, asked(*questions), 5)
        for question, hits in zip(questions, answers, strict=True):
            expected = bm25.scores(fields, words_of(question))
            assert [hit.caption_score for hit in hits] == pytest.approx(
                sorted(expected.values())[: -len(hits) - 1 : -1]
            )

    def test_words_that_no_image_has_together_are_found_apart(
        self, shelf: Shelf, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        shelf.add(*(["undwick barn"] * 60 + ["harlow tower"] * 60 + ["nothing"] * 60))
        monkeypatch.setattr(texts, "CANDIDATES", 5)
        assert len(shelf.ids("undwick harlow", 15)) == 15, "their combination was expected twenty times"

    def test_common_words_alone_give_some_of_their_images(self, shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
        shelf.add(*["the old barn"] * 100)
        monkeypatch.setattr(texts, "CANDIDATES", 2)
        assert len(shelf.hits("the old barn", 3)) == 3

    def test_fields_weigh_less_from_caption_to_metadata_to_source(self, shelf: Shelf) -> None:
        caption, metadata, source = (
            *shelf.add("harlow mill pond", "lone mill pond"),
            *shelf.add("blue mill pond", source="harlow-{}.png"),
        )
        change = update(images).where(images.c.id == metadata).values(metadata={"place": ["Harlow"], "year": 1932})
        shelf.connection.execute(change)
        word_index.write_words(shelf.connection, shelf.archive_id, [metadata])
        assert shelf.ids("Harlow") == [caption, metadata, source]
        assert shelf.ids("1932") == [], "numbers of metadata are no text"

    def test_ties_by_id_and_the_limit(self, shelf: Shelf) -> None:
        ids = shelf.add(*["old barn"] * 30)
        assert shelf.ids("barn", 7) == sorted(ids)[:7]
        assert shelf.ids("barn", 100) == sorted(ids)

    def test_case_accents_and_scripts(self, shelf: Shelf) -> None:
        muller, tower, hindi = shelf.add("MÜLLER-Straße", "東京タワーの夜", "हिन्दी भवन")
        assert shelf.ids("mu\u0308llerstrasse strasse") == [muller]
        assert shelf.ids("東京タワーは何色ですか") == [tower]
        assert shelf.ids("हिन्दी") == [hindi]


class TestScope:
    def test_archives_do_not_see_each_other(self, shelf: Shelf) -> None:
        other = make_shelf(shelf.connection, "others")
        [mine] = shelf.add("harlow barn")
        [theirs] = other.add("harlow barn")
        other.add("harlow tower")
        assert shelf.ids("harlow") == [mine]
        assert set(other.ids("harlow")) > {theirs}
        assert spellings.known_words(shelf.connection, shelf.archive_id, ["harlow", "tower"]) == {"harlow": 1}
        assert spellings.known_words(shelf.connection, other.archive_id, ["harlow", "tower"]) == {
            "harlow": 2,
            "tower": 1,
        }
        assert texts.count_images(shelf.connection, shelf.archive_id) == 1
        assert texts.count_images(shelf.connection, other.archive_id) == 2

    def test_an_image_without_a_vector_in_the_index_is_not_returned(self, shelf: Shelf) -> None:
        first, second = shelf.add("harlow barn", "harlow barn by the river")
        built = indexes.create_index(shelf.connection, shelf.archive_id, "other", 3)
        vectors.insert_embeddings(shelf.connection, built, [second], np.eye(1, 3, dtype=np.float32))
        index = vectors.get_index(shelf.connection, built)
        assert [hit.image_id for hit in texts.search(shelf.connection, index, asked("harlow barn"), 1)[0]] == [second]
        assert shelf.ids("harlow barn", 1) == [first]

    def test_a_filter_is_exact_however_few_images_it_passes(
        self, shelf: Shelf, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        ids = shelf.add(*["harlow barn"] * 50, *["the barn"] * 150)
        monkeypatch.setattr(texts, "CANDIDATES", 4)
        for kept, most in itertools.product((ids[199:], ids[49:51], ids[::3], ids, []), (10_000, 1)):
            monkeypatch.setattr(vector_search, "FILTERED_EXACT_ROWS", most)
            condition = FilterSql("i.id = ANY(%(kept)s)", {"kept": kept})
            [hits] = texts.search(shelf.connection, shelf.index, asked("the harlow barn"), 20, filter=condition)
            assert {hit.image_id for hit in hits} <= set(kept)
            assert len(hits) == min(20, len(kept))

    def test_cosines(self, shelf: Shelf) -> None:
        ids = shelf.add("harlow barn", "harlow tower")
        queries = shelf.draw(2)
        [first, second] = texts.search(shelf.connection, shelf.index, asked("harlow", "tower"), 5, queries)
        nearest = vector_search.search(shelf.connection, shelf.index, queries, 5)
        for hits, expected in zip((first, second), nearest, strict=True):
            cosines = {hit.image_id: hit.retrieval_score for hit in expected}
            assert {hit.image_id: hit.retrieval_score for hit in hits} == {
                hit.image_id: pytest.approx(cosines[hit.image_id], abs=1e-3) for hit in hits
            }
        assert [len(first), [hit.image_id for hit in second]] == [2, ids[1:]]
        assert {hit.retrieval_score for hit in shelf.hits("harlow")} == {None}

    def test_nothing_to_search(self, shelf: Shelf) -> None:
        assert texts.search(shelf.connection, shelf.index, asked("harlow", ""), 5) == [[], []]
        shelf.add("harlow")
        assert texts.search(shelf.connection, shelf.index, [], 5) == []
        assert texts.search(shelf.connection, shelf.index, asked("", "? !", "':1 & | \\' \"{},"), 5) == [[]] * 3

    def test_errors(self, shelf: Shelf) -> None:
        shelf.add("harlow")
        with pytest.raises(IndexUnusable, match=f"{DIM} dimensions"):
            texts.search(shelf.connection, shelf.index, asked("harlow"), 5, np.ones((1, 3), np.float32))
        built = vectors.get_index(
            shelf.connection, indexes.create_index(shelf.connection, shelf.archive_id, "other", DIM)
        )
        indexes.drop_index(shelf.connection, built.index_id)
        with pytest.raises(IndexGone):
            texts.search(shelf.connection, built, asked("harlow"), 5)
        shelf.connection.rollback()


class TestMatches:
    def test_the_rarest_word_comes_first_with_its_number_of_images(self, shelf: Shelf) -> None:
        shelf.add("undwick barn", "harlow barn", "harlow barn", "barn")
        [hit] = shelf.hits("What color is the Undwick Barn in Harlow?", 1)
        assert hit.matched == (MatchedWord("undwick", 1, "undwick"), MatchedWord("barn", 4, "barn"))

    def test_the_words_left_find_the_second_thing(self, shelf: Shelf) -> None:
        barn, tower = shelf.add("undwick barn", "harlow tower")
        shelf.add(*["lone mill"] * 5)
        words = AskedWords.of("Is the Undwick Barn taller than the Harlow Tower?")
        [first, *_] = shelf.hits(words)
        matched = {word.asked for word in first.matched}
        assert {first.image_id, *shelf.ids(words.without(matched))} == {barn, tower}


class TestCorrections:
    def test_one_wrong_missing_extra_or_exchanged_letter(self, shelf: Shelf) -> None:
        shelf.add("undwick barn", "harlow tower")
        asked = ["undwikc", "undwic", "undwickk", "umdwick", "hrlow"]
        expected = [["undwick"]] * 4 + [["harlow"]]
        assert spellings.corrections(shelf.connection, shelf.archive_id, asked) == dict(
            zip(asked, expected, strict=True)
        )

    def test_two_letters_of_a_long_word(self, shelf: Shelf) -> None:
        shelf.add("holshirestead", "holshirestone")
        meant = spellings.corrections(
            shelf.connection, shelf.archive_id, ["holshirexxtead", "holshirestad", "holshiresxxnd"]
        )
        assert meant == {"holshirexxtead": ["holshirestead"], "holshirestad": ["holshirestead"]}

    @pytest.mark.parametrize(
        "word", ["ndwick", "undwick", "bern", "19322", "color", "unnwicc", "kara7", "東京", "karls"]
    )
    def test_not_corrected(self, shelf: Shelf, word: str) -> None:
        """Another first letter, a known, short or question word, numbers, too far, too many neighbours."""
        shelf.add("undwick barn 1932", "white colar 東京タワー", "karla karlb karlc karld kara8")
        assert spellings.corrections(shelf.connection, shelf.archive_id, [word]) == {}

    def test_the_more_frequent_word_comes_first(self, shelf: Shelf) -> None:
        shelf.add("harlaw", "harlew", "harlew")
        assert spellings.corrections(shelf.connection, shelf.archive_id, ["harlow"]) == {"harlow": ["harlew", "harlaw"]}

    def test_words_of_other_archives_are_not_meant(self, shelf: Shelf) -> None:
        make_shelf(shelf.connection, "others").add("undwick")
        shelf.add("harlow")
        assert spellings.corrections(shelf.connection, shelf.archive_id, ["undwik"]) == {}

    def test_the_search_corrects_and_says_so(self, shelf: Shelf) -> None:
        undwick, undwack = shelf.add("undwick barn", "undwack barn")
        shelf.add("harlow barn", "tower")
        [hit] = shelf.hits("What color is the Undwik barn?", 1)
        assert (hit.image_id, hit.matched[0]) == (undwick, MatchedWord("undwick", 1, "undwik"))
        assert hit.caption_score < shelf.hits("What color is the Undwick barn?", 1)[0].caption_score
        assert shelf.ids("What color is the Undwack barn?", 1) == [undwack], "a known word means itself"

    def test_a_word_without_a_capital_is_not_corrected_beside_names(self, shelf: Shelf) -> None:
        shelf.add("gazeba", "undwick")
        assert shelf.ids("Which gazebo has Harlow?") == []
        assert len(shelf.ids("which gazebo has harlow")) == 1
