"""Filters from the command line to the evidence: real stores, the mini models, the real commands."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ragllava.errors import UsageError
from ragllava.records import AnswerOptions, AnswerStatus, Retrieval
from ragllava.stages.answer.lookup import search_archive
from ragllava.stages.answer.submit import submit_refresh
from ragllava.stores.database import in_transaction
from tests.integration.conftest import Postcards
from tests.support.run_command import Run
from tests.support.workshop import ARCHIVE, Workshop

CARDS = 16


@pytest.fixture
def described(workshop: Workshop, postcards: Postcards, tmp_path: Path) -> Workshop:
    """An archive of postcards in two albums, of which each has a number."""
    captions = tmp_path / "described.csv"
    rows = ["file,caption,album,number"]
    for number, card in enumerate(postcards.archive.postcards[:CARDS]):
        rows.append(f'{card.file_name},"{card.caption}",{"Köln" if number % 2 else "Wenby"},{number}')
    captions.write_text("\n".join(rows))
    folder = tmp_path / "pictures"
    folder.mkdir()
    for card in postcards.archive.postcards[:CARDS]:
        (folder / card.file_name).write_bytes((postcards.written.pictures / card.file_name).read_bytes())
    workshop.ingest(folder, captions=captions)
    return workshop


def names(postcards: Postcards, numbers: range) -> set[str]:
    return {postcards.archive.postcards[number].file_name for number in numbers}


@pytest.mark.parametrize("retrieval", Retrieval)
def test_candidates_fulfil_the_filters_of_job_and_question(
    described: Workshop, postcards: Postcards, run: Run, retrieval: Retrieval
) -> None:
    asked = postcards.archive.postcards[3].caption  # in the album Köln
    lines = [
        {"question": f"What color is the {asked}?"},
        {"question": f"What color is the {asked}?", "where": {"number": {"from": 2, "to": 5}}},
        {"question": f"What color is the {asked}?", "where": "number<3"},
        {"question": f"What color is the {asked}?", "where": {"number": 4}},
    ]
    Path("questions.jsonl").write_text("\n".join(map(json.dumps, lines)))
    flags = ("--retrieval", retrieval.value, "--where", "album=KOLN")
    code, out, err = run("submit", "questions.jsonl", "--archive", ARCHIVE, *flags, "--json")
    assert code == 0, err
    described.run()
    job_id = int(json.loads(out)["job"])
    rows = described.rows(job_id)
    found = [{candidate.image.source for candidate in row.candidates} for row in rows]
    allowed = [
        names(postcards, range(1, CARDS, 2)),
        names(postcards, range(3, 6, 2)),
        names(postcards, range(1, 2)),
        set(),
    ]
    assert all(sources <= fulfilling for sources, fulfilling in zip(found, allowed, strict=True))
    if retrieval is not Retrieval.CAPTION:  # which finds only what has a word of the question
        assert found == allowed
    assert all(postcards.archive.postcards[3].file_name in sources for sources in found[:2])
    assert rows[3].status is AnswerStatus.NO_EVIDENCE
    assert "the filter leaves" in (rows[3].note or "")

    refresh_id, _ = in_transaction(described.engine, submit_refresh, described.settings, job_id)
    described.run()
    again = described.rows(refresh_id)
    assert [{candidate.image.source for candidate in row.candidates} for row in again] == found
    assert [row.previous.changes for row in again if row.previous] == [()] * 4, "nothing has changed for them"


def test_a_search_with_an_unknown_key_is_refused(described: Workshop) -> None:
    options = AnswerOptions(5, filter={"Album": "köln"})
    found = search_archive(described.engine, described.settings, described.resources, ARCHIVE, "a barn", options)
    assert len(found) == 5
    options = AnswerOptions(5, filter={"albun": "köln"})
    with pytest.raises(UsageError, match=r'has the metadata "albun" .* did you mean album\?'):
        search_archive(described.engine, described.settings, described.resources, ARCHIVE, "a barn", options)
