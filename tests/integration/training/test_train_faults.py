"""Trainings of what no model can learn from, and trainings that go wrong by themselves: each ends with its reason."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from pathlib import Path

import pytest
from click.testing import CliRunner

from ragllava.cli.main import cli
from ragllava.feedback import Label, Verdict
from ragllava.jobs.states import JobState
from ragllava.records import Role
from ragllava.stores.learning import labels
from ragllava.training.finetune.trainer import LoraTrainer
from tests.conftest import environment_of
from tests.support.training_workshop import FEW_STEPS, NO_STEPS, classroom, request, run, train_bench, versions
from tests.support.workshop import Workshop


@pytest.fixture
def bench(workshop: Workshop, tmp_path: Path) -> Workshop:
    """As `train_bench` makes it."""
    return train_bench(workshop, tmp_path)


def test_labels_that_no_model_can_learn_from_are_left_out_and_told(
    bench: Workshop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Feedback takes answers of 2,000 characters and any number of images; one of these ended all trainings."""
    answered = classroom(bench).label(100)
    ids = [row.id for row in bench.images("class").values()]
    correct(bench, answered, range(20), answer=("the red ship lies at the quay " * 70)[:2000], relevant=(ids[0],))
    correct(bench, answered, range(20, 40), answer="red", relevant=tuple(ids))
    with_window(tmp_path / "llava", 300)
    job = run(bench, request(Role.GENERATOR, overrides=NO_STEPS))
    assert job.state == JobState.COMPLETED, job.error
    [version] = versions(bench)
    report, [data] = version.training["report"], version.training["data"]
    long, large = report["left_out"]
    assert 5 <= long["count"] <= 20 and "more than the 32 tokens" in long["reason"]
    assert 5 <= large["count"] <= 20 and "window" in large["reason"]
    assert report["examples"] + long["count"] + large["count"] == data["questions"]
    assert job.training is not None and job.training.reason is not None
    for left in (long, large):
        assert f"{left['count']} examples left out, as 'Which sheet belongs to number " in job.training.reason
    for name, value in environment_of(bench.settings).items():
        monkeypatch.setenv(name, value)
    shown = CliRunner().invoke(cli, ["models", "show", version.name])
    assert f"{long['count']} of the examples, as '{long['question']}'" in " ".join(shown.stdout.split())


def test_a_training_of_which_nothing_is_left_names_a_question(bench: Workshop) -> None:
    answered = classroom(bench).label(100)
    [first, *_] = [row.id for row in bench.images("class").values()]
    correct(bench, answered, range(100), answer="word " * 100, relevant=(first,))
    job = run(bench, request(Role.GENERATOR))
    assert (job.state, versions(bench)) == (JobState.FAILED, [])
    assert job.error is not None and job.error.startswith("nothing to train on is left: "), job.error
    assert "'Which sheet belongs to number " in job.error


def test_a_training_that_diverges_fails_at_once_with_what_to_change(bench: Workshop) -> None:
    classroom(bench).label(100)
    job = run(bench, request(overrides=FEW_STEPS | {"max_steps": 6, "learning_rate": 1e30}))
    assert job.state == JobState.FAILED
    assert job.error is not None and job.error.startswith("the training diverged at step "), job.error
    assert versions(bench) == []


def test_a_step_without_a_gradient_norm_is_registered(bench: Workshop, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a healthy training in float16 begins: the scaled loss overflows, and the step is left out."""

    def overflowing(trainer: LoraTrainer, logs: dict[str, float], start_time: float | None = None) -> None:
        as_it_was(trainer, logs, start_time)
        trainer.state.log_history[-1]["grad_norm"] = math.inf

    as_it_was = LoraTrainer.log
    monkeypatch.setattr(LoraTrainer, "log", overflowing)
    classroom(bench).label(100)
    job = run(bench, request(overrides=NO_STEPS))
    assert job.state == JobState.COMPLETED, job.error
    [version] = versions(bench)
    assert [step["gradient_norm"] for step in version.training["report"]["steps"]] == [None, None]


def correct(bench: Workshop, job_id: int, numbers: Iterable[int], *, answer: str, relevant: tuple[int, ...]) -> None:
    """Label these questions once more; what is said last counts."""
    said = [Label(job_id, n, Verdict.WRONG, answer, relevant, (), "person") for n in numbers]
    with bench.engine.begin() as connection:
        labels.insert_labels(connection, said)


def with_window(model: Path, tokens: int) -> None:
    """Make the window of a model on disk so small."""
    file = model / "tokenizer_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"model_max_length": tokens}))
