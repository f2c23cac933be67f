"""`ragllava demo --learn` on real workers, with trainings so short that nothing can be learned in them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from rich.console import Console

from ragllava.cli.demo import learn
from ragllava.cli.demo.run import Demo, Domain
from ragllava.client import Client
from ragllava.errors import UsageError
from ragllava.postcards.archive import draw_archive
from ragllava.records import Role, TrainingStatus
from ragllava.settings import Settings
from ragllava.stores.archives.archive import get_archive
from ragllava.stores.learning.labels import latest_labels
from tests.acceptance.conftest import Cluster

pytestmark = [pytest.mark.acceptance, pytest.mark.timeout(600)]

# As few as leave the gate the questions that it needs, at the share below.
IMAGES, QUESTIONS = 40, 100
TOO_SHORT = {"max_steps": 2, "learning_rate": 1e-9, "rank": 2, "alpha": 2}


@pytest.fixture
def school(quick_settings: Settings, tmp_path: Path) -> Iterator[Cluster]:
    own = {"top_k": 3, "questions_per_shard": 64, "held_out_share": 0.4}
    settings = quick_settings.model_copy(update=own)
    logs = tmp_path / "logs"
    logs.mkdir()
    made = Cluster(settings, logs, Client(settings))
    yield made
    made.stop()
    made.client.close()


def test_the_lesson_goes_through_the_queue_from_first_answer_to_last(
    school: Cluster, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(learn, "_RERANKER_SETTINGS", TOO_SHORT)
    monkeypatch.setattr(learn, "_GENERATOR_SETTINGS", TOO_SHORT)
    monkeypatch.setattr(learn, "_CANDIDATE_SHARE", 0.05)
    for name, queue in (("ingest", "ingest"), ("answer", "query"), ("train", "train"), ("maint", "maint")):
        school.start(name, queue, ticks=name == "maint")
    school.wait_ready("ingest", "answer", "train")

    result = learn.learn_from_feedback(school.client, Demo(Console(), seed=3, images=IMAGES, questions=QUESTIONS))

    for side in result["archives"].values():
        assert side["before"]["questions"] == side["after"]["questions"] == side["held_out"] > 20
        assert (side["after"]["failed"], side["after"]["missing"]) == (0, 0)
        # Nothing was learned, so nothing may have changed.
        assert (side["fall_of_errors"], side["largest_fall"]) == (0, 0)
    assert [view["role"] for view in result["trainings"]] == [Role.RERANKER, Role.GENERATOR]
    statuses = {view["status"] for view in (*result["trainings"], result["shuffled"])}
    assert statuses == {TrainingStatus.REFUSED}
    assert result["passed"] is False
    json.dumps(result)
    told = capsys.readouterr().out
    assert "FAIL: 0% of the errors about the shifted archive are gone" in told
    check_labels(school.client)


def test_too_few_questions_are_refused_before_any_work(school: Cluster) -> None:
    with pytest.raises(UsageError, match="ask more, by --questions"):
        learn.learn_from_feedback(school.client, Demo(Console(), seed=3, images=60, questions=40))
    assert school.client.jobs.list() == []


def check_labels(client: Client) -> None:
    """In the end every label is right again, and no postcard of a held-out question has any."""
    asked: dict[Domain, int] = {"in_domain": learn.IN_DOMAIN_QUESTIONS * QUESTIONS, "shifted": QUESTIONS}
    for domain, questions in asked.items():
        side_name = f"{domain}-postcards-3-{IMAGES}-{questions}"
        drawn = draw_archive(3, IMAGES, questions, shifted=domain == "shifted", side=learn.is_kept_out)
        known = {q.text: q for q in drawn.questions}
        with client.engine.connect() as connection:
            archive_id = get_archive(connection, side_name).archive_id
            rows = latest_labels(connection, [archive_id])
        assert len(rows) > 20
        for row in rows:
            assert row.label.answer == known[row.text].answer
