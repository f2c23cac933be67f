"""Which words of a question the models read as a caption spells them."""

from __future__ import annotations

import unicodedata
from dataclasses import replace

from ragllava.records import Candidate, Origin, Question, Spelling, StoredImage
from ragllava.stages.answer.reading import as_read, reading_notes
from ragllava.stores.jobs.answers import candidates_digest

BARN = "What is next to the Undwikc Barn's gate in upper HOLSHRIE?"


def asked(text: str) -> Question:
    return Question(3, 4, "q", text)


def found(rank: int, caption: str | None, *spellings: tuple[str, str]) -> Candidate:
    image = StoredImage(rank + 1, f"{rank:064x}", f"{rank}.png", caption)
    corrected = tuple(Spelling(*spelling) for spelling in spellings)
    return replace(Candidate(image, rank, 0.1, None), origin=Origin.CAPTION, spellings=corrected)


def test_words_are_read_in_the_spelling_of_the_caption() -> None:
    caption = found(1, "The Undwick-Barn (Holshire), 1968", ("undwikc", "undwick"), ("holshrie", "holshire"))
    candidates = [found(0, "Holshrie"), caption]
    expected = "What is next to the Undwick Barn's gate in upper Holshire?"
    for order in (candidates, candidates[::-1]):
        assert as_read(asked(BARN), order) == replace(asked(BARN), text=expected)
        assert reading_notes(asked(BARN), order) == [
            '"Undwikc", which the archive does not have, was read as "Undwick"',
            '"HOLSHRIE", which the archive does not have, was read as "Holshire"',
        ]


def test_each_name_is_read_as_its_own_caption_spells_it() -> None:
    two = [found(0, "Havholm, Vesvale", ("havhlom", "havholm")), found(1, "Lindtner", ("lindnter", "lindtner"))]
    assert (
        as_read(asked("Is the Lindnter as tall as the Havhlom?"), two).text == "Is the Lindtner as tall as the Havholm?"
    )


def test_letters_with_accents_are_one_word_in_either_form() -> None:
    for form in ("NFC", "NFD"):
        caption = found(0, unicodedata.normalize(form, "Die MÜNCHNER Straße"), ("muncnher", "munchner"))
        text = unicodedata.normalize(form, "Was zeigt die Müncnher Straße?")
        assert as_read(asked(text), [caption]).text == "Was zeigt die MÜNCHNER Straße?"


def test_a_word_with_a_small_letter_is_no_name() -> None:
    shops = found(0, "Shops in Harlow", ("ships", "shops"))
    assert as_read(asked("how many ships are in harlow?"), [shops]).text == "how many ships are in harlow?"
    assert reading_notes(asked("how many ships are in harlow?"), [shops]) == []
    arabic = found(0, "برج القاهره", ("القاهرة", "القاهره"))
    assert as_read(asked("أين برج القاهرة؟"), [arabic]).text == "أين برج القاهره؟", "a script without capitals"


def test_without_a_caption_that_has_the_word_the_question_stays_as_it_was_asked() -> None:
    nfd = asked(unicodedata.normalize("NFD", "Wo liegt Undwikc in Mähren?"))
    for candidates in (
        [],
        [found(0, "Undwick Barn")],
        [found(0, None, ("undwikc", "undwick"))],  # the word is in its metadata or in the name of its file
        [found(0, "Another barn", ("undwikc", "undwick"))],
        [found(0, "Undwick Barn", ("holshrie", "undwick"))],
    ):
        assert as_read(nfd, candidates) is nfd
        assert reading_notes(nfd, candidates) == []


def test_a_refresh_sees_another_correction() -> None:
    """The hash of candidates that correct nothing is that of earlier versions."""
    plain, corrected = found(0, "Undwick"), found(0, "Undwick", ("undwikc", "undwick"))
    digest = candidates_digest([plain])
    assert digest == "5d54e14a906da32d8fcdf606220460a65938f92cb4facffbf6113249bf9a3230"
    assert candidates_digest([corrected]) != digest
