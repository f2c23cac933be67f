"""`--where` and `--with-metadata` on the command line, and the same in programs, on real services."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, select, update

from ragllava.client import AnswerOptions, Client
from ragllava.settings import Settings
from ragllava.stores.schema import images, jobs
from tests.support.archive_rows import answered_job
from tests.support.described_images import store_described
from tests.support.run_command import Run
from tests.support.workshop import Workshop


@pytest.fixture
def described(engine: Engine) -> Engine:
    """An archive whose images have metadata."""
    with engine.begin() as connection:
        store_described(connection, [("a.png", "A barn", {"city": "Ansel", "year": "1968"})])
    return engine


def stored_filters(engine: Engine) -> list[Any]:
    """The filter of each job, oldest first."""
    with engine.begin() as connection:
        return [spec["options"]["filter"] for spec in connection.scalars(select(jobs.c.spec).order_by(jobs.c.id))]


def test_conditions_of_the_command_line_reach_the_job(described: Engine, run: Run) -> None:
    Path("questions.jsonl").write_text('{"question": "a?", "where": {"city": "Ansel"}}\n{"question": "b?"}\n')
    submit = ("submit", "questions.jsonl", "--archive", "cards")
    assert run(*submit, "--where", "year>=1950", "--where", "year<=1969", "--where", "city in Ansel, Wenby")[0] == 0
    assert (
        run(*submit, "--where", '{"city": ["Ansel"], "caption": {"contains": "barn"}}', "--where", "folder=x/")[0] == 0
    )
    assert run(*submit)[0] == 0
    assert stored_filters(described) == [
        {"year": {"from": "1950", "to": "1969"}, "city": {"in": ["Ansel", "Wenby"]}},
        {"city": ["Ansel"], "caption": {"contains": "barn"}, "folder": "x/"},
        None,
    ]


@pytest.mark.parametrize(
    ("condition", "message"),
    [
        ("city", 'the filter "city" is not a condition; write it like city=Port Ansel'),
        ("year>=old", 'the range of "year" ends at "old", which is neither a number nor a date'),
        (
            "citty=Ansel",
            'no image of the archive cards has the metadata "citty" that the filter asks for; did you mean',
        ),
        ('{"city": {"gt": 3}}', 'the condition on "city" has an unknown operator "gt"; use from, to, above, below'),
    ],
)
def test_a_wrong_condition_is_one_sentence(described: Engine, run: Run, condition: str, message: str) -> None:
    Path("questions.jsonl").write_text('{"question": "a?"}\n')
    for command in (("submit", "questions.jsonl"), ("ask", "a?")):
        code, out, err = run(*command, "--archive", "cards", "--where", condition)
        assert (code, out) == (1, "")
        assert err.splitlines()[-1].startswith(f"ragllava: {message}")
    assert stored_filters(described) == []


def test_a_line_with_an_unknown_key_is_named(described: Engine, run: Run) -> None:
    Path("questions.csv").write_text("question,where\na?,yaer>=1950\nb?,\n")
    code, _, err = run("submit", "questions.csv", "--archive", "cards")
    assert code == 1
    assert 'questions.csv, line 2: no image of the archive cards has the metadata "yaer"' in err
    assert "--skip-invalid submits the valid lines" in err
    code, _, err = run("submit", "questions.csv", "--archive", "cards", "--skip-invalid")
    assert code == 0
    assert "[unknown_filter_key]" in err


def test_programs_give_filters_as_values_or_text(described: Engine, settings: Settings, tmp_path: Path) -> None:
    path = tmp_path / "questions.jsonl"
    path.write_text('{"question": "a?"}\n')
    with Client(settings) as client:
        client.questions.submit(path, "cards", AnswerOptions(filter={"City": "Ansel"}))
        client.questions.submit(path, "cards", where={"year": {"from": 1950}})
        client.questions.submit(
            path, "cards", AnswerOptions(filter={"city": "Ansel"}), where=["year>=1950", "year<1969"]
        )
        client.questions.submit(path, "cards", where="city=Ansel")
    assert stored_filters(described) == [
        {"city": "Ansel"},
        {"year": {"from": 1950}},
        {"city": "Ansel", "year": {"from": "1950", "below": "1969"}},
        {"city": "Ansel"},
    ]


def test_results_have_metadata_on_request(workshop: Workshop, run: Run) -> None:
    job_id = answered_job(workshop, [(0.9, 0.9)])
    with workshop.engine.begin() as connection:
        connection.execute(update(images).values(metadata={"city": "Köln", "year": 1968}))
    for ending in ("jsonl", "csv", "parquet"):
        assert run("results", str(job_id), "-o", f"with.{ending}", "--with-metadata")[0] == 0
    assert run("results", str(job_id), "-o", "without.jsonl")[0] == 0
    [line] = map(json.loads, Path("with.jsonl").read_text().splitlines())
    assert line["evidence"][0]["metadata"] == {"city": "Köln", "year": 1968}
    assert '"{""city"": ""Köln"", ""year"": 1968}"' in Path("with.csv").read_text()
    assert "metadata" not in Path("without.jsonl").read_text()
