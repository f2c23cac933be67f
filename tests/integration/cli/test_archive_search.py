"""`ragllava archive search` and `ragllava archive picture`: the first stage, and one picture with all that is known."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.integration.conftest import Postcards
from tests.support.run_command import Run
from tests.support.workshop import ARCHIVE, Workshop


@pytest.fixture
def gallery(workshop: Workshop, postcards: Postcards) -> Workshop:
    """A worker beside an archive of the 60 postcards."""
    workshop.ingest(postcards.written.pictures, captions=postcards.written.captions)
    return workshop


def searched(run: Run, *arguments: object) -> list[dict[str, Any]]:
    code, out, _ = run("archive", "search", ARCHIVE, *arguments, "--json")
    assert code == 0
    found: list[dict[str, Any]] = json.loads(out)
    return found


def test_a_name_is_found_by_its_caption(gallery: Workshop, postcards: Postcards, run: Run) -> None:
    card = postcards.archive.postcards[7]
    first, *others = searched(run, f"the card that says {card.caption}", "--limit", 5)
    assert (first["source"], first["caption_rank"]) == (card.file_name, 1)
    assert first["origin"] in ("caption", "both")
    assert first["caption_score"] > 0 and -1 <= first["retrieval_score"] <= 1
    assert len(others) == 4


def test_a_common_word_finds_all_captions_that_have_it(gallery: Workshop, postcards: Postcards, run: Run) -> None:
    """It makes sure of no candidate of a question; a person who searches for it wants to see them."""
    captions = {card.file_name: card.caption.casefold() for card in postcards.archive.postcards}
    having = {name for name, caption in captions.items() if "tower" in caption}
    assert len(having) > 2
    found = searched(run, "tower", "--limit", 60)
    assert {row["source"] for row in found if row["caption_rank"] is not None} == having
    assert {row["source"] for row in found[: len(having)]} == having
    assert len(found) == len(captions)


def test_each_way_of_retrieval(gallery: Workshop, postcards: Postcards, run: Run) -> None:
    card = postcards.archive.postcards[7]
    by_caption = searched(run, card.landmark.title, "--retrieval", "caption")
    assert {row["picture_rank"] for row in by_caption} == {None}
    by_picture = searched(run, card.landmark.title, "--retrieval", "picture", "--limit", 10)
    assert [row["picture_rank"] for row in by_picture] == list(range(1, 11))
    assert {row["origin"] for row in by_picture} == {"picture"}


def test_a_table_for_people(gallery: Workshop, postcards: Postcards, run: Run) -> None:
    card = postcards.archive.postcards[7]
    code, out, _ = run("archive", "search", ARCHIVE, card.landmark.entity.name, "--limit", 3)
    assert code == 0
    assert card.file_name in out and card.caption.split(",")[0] in out


def test_one_picture_with_all_that_is_known(gallery: Workshop, postcards: Postcards, run: Run) -> None:
    question = postcards.archive.questions[0]
    [answered] = gallery.ask([question.text])
    assert answered.evidence
    candidate = answered.evidence[0]
    code, out, _ = run("archive", "picture", ARCHIVE, candidate.image.source, "--json")
    assert code == 0
    view = json.loads(out)
    assert view["caption"] == candidate.image.caption
    assert [state for _, state in view["indexes"]] == ["active"]
    [resting] = view["questions"]
    assert (resting["question"], resting["answer"]) == (question.text, answered.answer)
    assert resting["relevance"] == pytest.approx(candidate.relevance)
    code, by_id, _ = run("archive", "picture", ARCHIVE, candidate.image.image_id, "--json")
    assert (code, by_id) == (0, out)
    code, text, _ = run("archive", "picture", ARCHIVE, candidate.image.source)
    assert code == 0 and question.text in text and "1 answer rests on it" in text


def test_a_picture_that_is_not_there(gallery: Workshop, run: Run) -> None:
    code, _, error = run("archive", "picture", ARCHIVE, "nowhere.png")
    assert code == 1
    assert "has no picture 'nowhere.png'" in error and f"ragllava archive search {ARCHIVE}" in error
