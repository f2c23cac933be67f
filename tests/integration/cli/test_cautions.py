"""What people are told before they trust answers: strange pictures, an ingest that still runs, another profile."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from sqlalchemy import func, update

from ragllava.client import Client
from ragllava.models import familiarity
from ragllava.models.familiarity import FAR, mini_familiar
from ragllava.postcards.archive import draw_archive
from ragllava.stores.archives import vectors
from ragllava.stores.schema import jobs, workers
from tests.integration.conftest import Postcards
from tests.support.clip_art import write_clip_art
from tests.support.run_command import Run
from tests.support.workshop import ARCHIVE, Workshop

STRANGE = "the mini models know only drawn postcards, but 12 of 12 sampled pictures of art are something else"


@pytest.fixture
def art(workshop: Workshop, tmp_path: Path) -> Workshop:
    """A worker beside an archive of clip art."""
    workshop.ingest(write_clip_art(tmp_path / "art", 12), archive_name="art")
    return workshop


def questions(tmp_path: Path) -> Path:
    path = tmp_path / "questions.jsonl"
    path.write_text(json.dumps({"question": "What color is it?"}))
    return path


# -- strange pictures


def test_the_shipped_region_is_that_of_the_shipped_retriever(workshop: Workshop) -> None:
    retriever = workshop.resources.models.retriever
    assert mini_familiar().retriever == retriever.version
    cards = retriever.embed_images([card.picture() for card in draw_archive(31, 40, 1).postcards], 20)
    assert (mini_familiar().distances(cards) < FAR).all()


def test_a_distance_is_that_of_mahalanobis() -> None:
    drawn = np.random.default_rng(1).normal(size=(400, 3)) @ np.array([[2, 0, 0], [1, 1, 0], [0, 0, 0.5]])
    known = familiarity.fit_familiar("r@1", drawn.astype(np.float32))
    inverse = np.linalg.inv(np.cov(drawn.T))
    centred = drawn - drawn.mean(axis=0)
    slowly = np.array([row @ inverse @ row / 3 for row in centred])
    assert known.distances(drawn.astype(np.float32)) == pytest.approx(slowly, rel=0.01)


def test_submit_ask_status_and_the_report_name_strange_pictures(art: Workshop, run: Run, tmp_path: Path) -> None:
    code, _, err = run("submit", questions(tmp_path), "--archive", "art")
    assert code == 0 and err.count(STRANGE) == 1
    assert STRANGE in run("ask", "What?", "--archive", "art", "--timeout", "0.1")[2]
    assert STRANGE in run("status")[1]
    [caution] = json.loads(run("status", "--json")[1])["cautions"]
    assert STRANGE in caution
    art.run()
    assert run("report", "2", "-o", tmp_path / "report.html")[0] == 0
    assert STRANGE in (tmp_path / "report.html").read_text()


def test_an_ingest_that_was_waited_for_names_strange_pictures(
    art: Workshop, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wait(self: object, job_id: int, **_options: object) -> object:
        art.run()
        return art.job(job_id)

    monkeypatch.setattr("ragllava.client.jobs.Jobs.wait", wait)
    code, _, err = run("ingest", tmp_path / "art", "--archive", "art")
    assert code == 0 and STRANGE in err


def test_ask_tells_how_a_misspelt_name_was_read(
    workshop: Workshop, postcards: Postcards, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    workshop.ingest(postcards.written.pictures, captions=postcards.written.captions)
    card = postcards.archive.postcards[3].landmark
    name = card.entity.name
    wrong = name[:3] + name[2:]

    def has_ended(self: object, job_id: int, _timeout_s: float) -> bool:
        workshop.run()
        return True

    monkeypatch.setattr("ragllava.client.jobs.Jobs.has_ended", has_ended)
    question = f"In what year was the {card.title} in {card.entity.city} pictured?"
    code, out, err = run("ask", question.replace(name, wrong), "--archive", ARCHIVE)
    assert code == 0 and out.startswith(f"{card.entity.year}  (confidence ")
    assert f'note: "{wrong}", which the archive does not have, was read as "{name}"' in err
    assert "note: " not in run("ask", question, "--archive", ARCHIVE)[2]


def test_nothing_is_said_about_postcards(workshop: Workshop, postcards: Postcards, run: Run, tmp_path: Path) -> None:
    workshop.ingest(postcards.written.pictures)
    code, _, err = run("submit", questions(tmp_path), "--archive", ARCHIVE)
    assert (code, err) == (0, "")
    assert "warning" not in run("status")[1]


def test_of_another_retriever_nothing_is_said_and_no_vector_read(
    art: Workshop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vectors, "sample", lambda *_: pytest.fail("a vector was read"))
    other = familiarity.Familiar("other@1", np.zeros(128, np.float32), np.eye(128, dtype=np.float32))
    monkeypatch.setattr(familiarity, "mini_familiar", lambda: other)
    with Client(art.settings) as client:
        assert client.archives.cautions("art") == []


def test_a_sample_is_taken_from_the_whole_index(art: Workshop) -> None:
    with art.engine.connect() as connection:
        index = vectors.active_index(connection, art.archive_id("art"))
        assert index is not None
        everything = vectors.sample(connection, index, 100)
        assert everything.shape == (12, 128)
        assert np.linalg.norm(everything, axis=1) == pytest.approx(1, abs=0.01)
        few = vectors.sample(connection, index, 4)
        assert 3 <= len(few) <= 4
        at = [int(np.argmax(everything @ row)) for row in few]
        assert min(at) <= 2 and max(at) >= 8


# -- an ingest that still runs


def test_an_unfinished_ingest_is_named_at_submit_and_in_each_line(
    workshop: Workshop, postcards: Postcards, run: Run, tmp_path: Path
) -> None:
    workshop.ingest(postcards.written.pictures)
    with Client(workshop.settings) as client:
        later = client.archives.ingest([write_clip_art(tmp_path / "later", 3)], ARCHIVE)
        client.jobs.pause(later.job_id)
        code, _, err = run("submit", questions(tmp_path), "--archive", ARCHIVE)
        assert code == 0
        assert f"job {later.job_id} still adds pictures to {ARCHIVE} (0 of 3 files are done)" in err
        workshop.run()
        [row] = client.questions.results(later.job_id + 1)
        assert row.note is not None
        assert row.note.endswith(f"job {later.job_id} was still adding pictures to the archive")
        client.jobs.resume(later.job_id)
        workshop.run()
        [afterwards] = workshop.ask(["What color is it?"])
        assert "still adding" not in (afterwards.note or "")


def test_an_ingest_whose_pictures_are_all_there_needs_no_warning(
    workshop: Workshop, postcards: Postcards, run: Run, tmp_path: Path
) -> None:
    """Its end is noted a moment after its last picture was stored."""
    job_id = workshop.ingest(postcards.written.pictures).job_id
    with workshop.engine.begin() as connection:
        connection.execute(update(jobs).where(jobs.c.id == job_id).values(state="running", finished_at=None))
    assert run("submit", questions(tmp_path), "--archive", ARCHIVE)[2] == ""


def test_after_ingest_waits_before_it_submits(
    workshop: Workshop, postcards: Postcards, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Client(workshop.settings) as client:
        ingest = client.archives.ingest([postcards.written.pictures], ARCHIVE)
        waited: list[int] = []

        def wait(_self: object, job_id: int, **_options: object) -> object:
            assert [job.job_id for job in client.jobs.list()] == [ingest.job_id]
            waited.append(job_id)
            workshop.run()
            return workshop.job(job_id)

        monkeypatch.setattr("ragllava.client.jobs.Jobs.wait", wait)
        code, _, err = run("submit", questions(tmp_path), "--archive", ARCHIVE, "--after-ingest")
        assert (code, waited, err) == (0, [ingest.job_id], "")


# -- another profile


def test_workers_with_another_profile_are_named(
    workshop: Workshop, postcards: Postcards, run: Run, tmp_path: Path
) -> None:
    workshop.ingest(postcards.written.pictures)
    with workshop.engine.begin() as connection:
        connection.execute(update(workers).values(versions={"profile": "mini"}))
    assert "profile" not in run("submit", questions(tmp_path), "--archive", ARCHIVE)[2]
    with workshop.engine.begin() as connection:
        connection.execute(update(workers).values(versions={"profile": "base"}, seen_at=func.now()))
    says = "this command has the profile mini, but workers run base (answer@test); set the same RAGLLAVA_PROFILE"
    assert says in run("submit", questions(tmp_path), "--archive", ARCHIVE)[2]
    assert says in run("ask", "What?", "--archive", ARCHIVE, "--timeout", "0.1")[2]
    assert says in run("status")[1]
