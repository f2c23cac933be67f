"""`ragllava picture remove`, `archive remove|rename`, `jobs remove`, `noisy dismiss` on real services."""

from __future__ import annotations

import getpass
import json
from collections.abc import Iterator

import pytest
from sqlalchemy import Engine, text

from ragllava.feedback import NoisyState
from ragllava.settings import Settings
from tests.support.reviewed_job import Review, open_review
from tests.support.run_command import Run


@pytest.fixture
def review(settings: Settings, engine: Engine) -> Iterator[Review]:
    with open_review(settings, engine) as review:
        with engine.begin() as connection:
            connection.execute(text("UPDATE jobs SET finished_at = now(), state = 'completed', result = '{}'"))
        yield review


def test_a_picture_is_removed_only_when_that_is_confirmed(review: Review, run: Run, engine: Engine) -> None:
    code, out, err = run("picture", "remove", "boats.png", "--archive", "harbour", "--dry-run")
    assert (code, err) == (0, "")
    assert out.splitlines()[0] == "boats.png of harbour would be removed:" and "  1 pictures" in out.splitlines()
    code, out, err = run("picture", "remove", "boats.png", "--archive", "harbour")
    assert code == 1 and "add --yes" in err, "no terminal to ask on"
    assert run("archive", "picture", "harbour", "boats.png")[0] == 0

    code, out, err = run("picture", "remove", "boats.png", "--archive", "harbour", "--yes", "--json")
    assert (code, err) == (0, "")
    removed = json.loads(out)
    assert removed["counts"]["images"] == 1 and removed["erasure_id"] is not None
    assert run("archive", "picture", "harbour", "boats.png")[0] == 1
    code, out, _ = run("picture", "removals", "--json")
    [line] = json.loads(out)
    assert (line["kind"], line["account"], line["counts"]) == ("pictures", getpass.getuser(), removed["counts"])
    with engine.begin() as connection:
        assert "boats" not in str(connection.execute(text("SELECT * FROM erasures")).all())


def test_two_pictures_of_one_name_are_told_apart_by_their_ids(review: Review, run: Run) -> None:
    code, _, err = run("picture", "remove", "twin.png", "--archive", "harbour", "--yes")
    ids = [str(image.image_id) for image in review.images if image.source == "twin.png"]
    assert code == 1 and f"give one of the ids {', '.join(ids)}" in err
    code, out, _ = run("picture", "remove", ids[0], "--archive", "harbour", "--yes")
    assert code == 0 and f"  image {ids[1]} is another version of the same name" in out.splitlines()


def test_a_renamed_archive_is_found_by_its_new_name_alone(review: Review, run: Run) -> None:
    assert run("archive", "rename", "harbour", "port") == (0, "the archive harbour is called port now\n", "")
    assert run("archive", "show", "port")[0] == 0
    assert run("archive", "show", "harbour")[0] == 1


def test_a_job_and_then_its_archive_are_removed(review: Review, run: Run) -> None:
    code, out, _ = run("jobs", "remove", review.job_id, "--dry-run", "--json")
    assert code == 0 and json.loads(out)["counts"]["inputs"] == 4
    code, out, _ = run("jobs", "remove", review.job_id, "--yes")
    assert code == 0 and out.splitlines()[0] == f"job {review.job_id} is removed:"
    assert run("jobs", "show", review.job_id)[0] == 1
    assert run("archive", "remove", "harbour", "--yes")[0] == 0
    code, _, err = run("archive", "remove", "harbour", "--yes")
    assert code == 1 and "there is no archive 'harbour'" in err
    assert json.loads(run("archive", "list", "--json")[1]) == []


def test_a_removal_that_was_interrupted_is_finished_by_the_next_call(
    review: Review, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ragllava.stores.maintenance import erasing_jobs

    def fail(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(erasing_jobs, "delete_archive", fail)
        with pytest.raises(KeyboardInterrupt):
            review.client.archives.remove("harbour")
    code, _, err = run("archive", "remove", "harbour", "--yes")
    assert code == 1 and "a removal that was interrupted before is finished now" in err
    assert [line.finished_at is not None for line in review.client.system.erasures()] == [True]
    assert review.client.archives.names() == []


def test_noisy_cases_are_dismissed_by_question_reason_and_age(review: Review, run: Run) -> None:
    def states() -> list[NoisyState]:
        return sorted(case.state for case in review.client.reviews.list("harbour"))

    review.say(*({"custom_id": name, "verdict": "wrong"} for name in ("q0", "q1")))
    before = states()
    assert before == [NoisyState.OPEN] * 2
    code, _, err = run("noisy", "dismiss", "--archive", "harbour")
    assert code == 1 and "add --yes" in err and states() == before
    code, out, _ = run("noisy", "dismiss", "--archive", "harbour", "--older-than", "7")
    assert (code, out) == (0, "harbour: 0 noisy cases dismissed\n")
    custom_id = review.client.reviews.list("harbour")[0].question.custom_id
    code, out, _ = run("noisy", "dismiss", "--archive", "harbour", "--job", review.job_id, "--custom-id", custom_id)
    assert (code, out) == (0, "harbour: 1 noisy cases dismissed\n")
    code, _, err = run("noisy", "dismiss", "--archive", "harbour", "--job", review.job_id, "--custom-id", custom_id)
    assert code == 1 and "no open noisy case" in err
    code, out, _ = run("noisy", "dismiss", "--archive", "harbour", "--yes", "--json")
    assert json.loads(out) == {"dismissed": len(before) - 1}
    assert set(states()) == {NoisyState.DISMISSED}
