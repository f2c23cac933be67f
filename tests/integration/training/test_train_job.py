"""A training job in this process, on real stores and with the real mini models."""

from __future__ import annotations

import json
import logging
import math
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar

import pytest
from click.testing import CliRunner, Result
from sqlalchemy import Connection

from ragllava.cli.main import cli
from ragllava.client.learning.previews import changed_examples
from ragllava.errors import LeaseLost, ServiceUnavailable, SettingsError, ShardInterrupted, UsageError
from ragllava.feedback import NoisyReason
from ragllava.jobs import control, views
from ragllava.jobs.runner import ShardContext
from ragllava.jobs.states import JobState
from ragllava.records import JobKind, Role, TrainingStatus
from ragllava.stages.resources import Resources
from ragllava.stages.results.finalize import publish_missing_results
from ragllava.stores.jobs import workers
from ragllava.stores.learning import noisy, registry, trainings
from ragllava.training.finetune import selection
from ragllava.training.job import train_stage
from ragllava.training.request import create_job, plan_training, submit_due_trainings
from tests.conftest import environment_of
from tests.support.toy_questions import Classroom
from tests.support.training_workshop import FEW_STEPS, NO_STEPS, classroom, request, run, submit, train_bench, versions
from tests.support.workshop import Workshop

P = ParamSpec("P")
T = TypeVar("T")


@pytest.fixture
def bench(workshop: Workshop, tmp_path: Path) -> Workshop:
    """As `train_bench` makes it."""
    return train_bench(workshop, tmp_path)


def test_a_reranker_that_learned_is_promoted_with_its_threshold(bench: Workshop) -> None:
    classroom(bench).label(100)
    job = run(bench, request())
    assert job.training is not None
    assert (job.state, job.training.status) == (JobState.COMPLETED, TrainingStatus.PROMOTED), job.training.reason
    assert (job.training.steps_done, job.training.steps_total) == (40, 40)
    [version] = versions(bench)
    assert (version.state, version.name) == ("champion", job.training.version)
    assert version.threshold == version.threshold_curve["value"]
    gate, scores = version.training["gate"], version.training["scores"]["class"]
    assert gate["passed"] and gate["challenger"] == version.name
    means = [scores[who]["conditions"]["with captions"]["f1"] for who in ("champion", "challenger")]
    assert means[1] > means[0]
    assert len(version.training["report"]["steps"]) == 40
    with bench.engine.begin() as connection:
        losses = trainings.load_losses(connection, job.job_id)
        view = registry.find_version(connection, version.profile, version.name)
        examples = changed_examples(connection, view)
    stored = version.training["report"]["steps"]
    assert [(loss.step, loss.loss) for loss in losses] == [(step["step"], step["loss"]) for step in stored]
    gained = examples.gained
    assert gained and examples.is_known and not examples.erased
    assert all(example.challenger > example.champion for example in gained)
    assert set(gained[0].relevant) & set(gained[0].challenger_images)
    assert [example.challenger < example.champion for example in examples.lost] == [True] * len(examples.lost)
    publish_missing_results(bench.engine, bench.resources.objects)
    result = bench.job(job.job_id).result
    assert result is not None and result["training"]["version"] == version.name


def test_what_did_not_learn_is_refused_and_likely_right_images_are_asked_about(bench: Workshop) -> None:
    """The reranker was sure of both pictures, so the unlabelled one must not be taught to be wrong."""
    answered = classroom(bench).label(100, relevance=0.95)
    job = run(bench, request(overrides=NO_STEPS))
    assert job.training is not None and job.training.reason is not None
    assert (job.state, job.training.status) == (JobState.COMPLETED, TrainingStatus.REFUSED)
    # Steps at next to no learning rate change nothing but the rounding, which a continuous score may see.
    assert job.training.reason.startswith(("no difference, with captions", "not better, with captions: 0.000 → 0.000"))
    [version] = versions(bench)
    assert (version.state, version.name) == ("candidate", job.training.version)
    with bench.engine.begin() as connection:
        champion = registry.champion(connection, Role.RERANKER, "tiny")
        cases = noisy.list_cases(connection, bench.archive_id("class"), reason=NoisyReason.UNLABELLED_RELEVANT)
    assert champion is not None and champion.adapter_sha256 is None
    [data] = version.training["data"]
    assert data["set_aside"] == len(cases) == data["positives"] > 40
    assert data["negatives"] == 0
    assert {case.question.job_id for case in cases} == {answered}
    assert all("A blue sheet (0.95)" in case.details[NoisyReason.UNLABELLED_RELEVANT] for case in cases)


@pytest.mark.parametrize(
    ("changes", "status", "state", "words"),
    [
        ({"promote": False}, TrainingStatus.CHALLENGER, "challenger", "better, with captions"),
        ({"precision": 0.95}, TrainingStatus.REFUSED, "candidate", "the precision cannot be promised"),
    ],
)
def test_what_was_asked_for_decides_about_a_version_that_learned(
    bench: Workshop, changes: dict[str, Any], status: TrainingStatus, state: str, words: str
) -> None:
    classroom(bench).label(100)
    job = run(bench, request(**changes))
    assert job.training is not None and job.training.reason is not None
    assert job.training.status is status
    assert words in job.training.reason
    assert [version.state for version in versions(bench)] == [state]


def test_a_generator_learns_from_two_archives_and_both_guard_the_gate(bench: Workshop, tmp_path: Path) -> None:
    other = Classroom(bench.engine, bench.settings, "other")
    add_archive(bench, tmp_path, "other")
    other.label(30)
    classroom(bench).label(100)
    job = run(bench, replace(request(Role.GENERATOR), archives=("class", "other")))
    assert job.training is not None
    assert job.training.status is TrainingStatus.PROMOTED, job.training.reason
    [version] = versions(bench)
    assert (version.role, version.threshold) == ("generator", None)
    assert "in archive other" in [figures["name"] for figures in version.training["gate"]["figures"]]
    assert [data["archive"] for data in version.training["data"]] == ["class", "other"]
    assert version.training["report"]["settings"]["token_weighting"] == {"value": True, "origin": "overridden"}


def test_a_batch_that_the_processes_cannot_share_evenly_is_refused_before_a_job_is_made(bench: Workshop) -> None:
    classroom(bench).label(100)
    several = bench.with_settings(train_processes=2)
    with pytest.raises(SettingsError, match="global_batch=16 is not a multiple of micro_batch=16 × 2 devices"):
        submit(several, request())
    assert submit(several, request(overrides=FEW_STEPS | {"micro_batch": 8})) > 0


def test_too_few_labels_are_refused_at_once_and_by_the_job(bench: Workshop) -> None:
    classroom(bench).label(12)
    with pytest.raises(UsageError, match=r"archive class has 12 labelled questions, of which .* the gate needs 20"):
        submit(bench, request())
    with bench.engine.begin() as connection:
        job_id, _ = create_job(connection, request())
    bench.run()
    job = bench.job(job_id)
    assert (job.state, job.progress.by_status) == (JobState.FAILED, {"failed": 1})
    assert job.error is not None and "the gate needs 20" in job.error
    assert job.training is not None and job.training.reason == job.error
    assert versions(bench) == []


def test_too_few_labels_are_told_with_how_many_would_do(bench: Workshop) -> None:
    classroom(bench).label(12)
    with bench.engine.begin() as connection:
        plan = plan_training(connection, request(), bench.settings)
        none_yet = plan_training(connection, request(since=datetime(2100, 1, 1, tzinfo=UTC)), bench.settings)
    [share] = plan.snapshot.shares
    held_out = len(share.held_out)
    assert 0 < held_out < 12
    assert plan.shortage is not None and none_yet.shortage is not None
    assert f"about {math.ceil(20 * 12 / held_out)} labelled questions suffice" in plan.shortage
    assert f"RAGLLAVA_HELD_OUT_SHARE={bench.settings.held_out_share:g}" in plan.shortage
    assert "labelled since" not in plan.shortage
    assert f"about {math.ceil(20 / bench.settings.held_out_share)} labelled questions suffice" in none_yet.shortage


def test_a_generator_practises_with_as_many_pictures_as_a_job_shows(bench: Workshop) -> None:
    classroom(bench).label(60)
    shown = {}
    for top_n in (1, 2, 3):
        with bench.engine.begin() as connection:
            plan = plan_training(connection, request(Role.GENERATOR), bench.with_settings(top_n=top_n).settings)
        shown[top_n] = plan.snapshot.options.pictures_shown
    assert shown == {1: 2, 2: 2, 3: 3}, "with one wrong picture there are two"


def test_an_interrupted_training_goes_on_elsewhere_with_the_data_of_its_beginning(
    bench: Workshop, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(selection, "_LOOK_S", math.inf)  # the looks are counted: a slow machine adds none
    classroom(bench).label(100)
    job_id = submit(bench, request())
    with_stage(bench, interrupted_after(18, ShardInterrupted("shutdown"))).run_once()
    with bench.engine.begin() as connection:
        stopped = trainings.views(connection, [job_id])[job_id]
    assert (stopped.phase, stopped.status) == ("training", None)
    shutil.rmtree(bench.settings.home)
    for name, days in (("3-20200101T000000000000", 8), ("4-20200101T000000000000", 6)):
        (left := bench.settings.home / "training" / name / "result.work").mkdir(parents=True)
        for path in (left, left.parent):
            os.utime(path, (time.time() - days * 86_400,) * 2)
    classroom(bench).label(110, wanted="blue")
    with caplog.at_level(logging.INFO):
        bench.run()
    [fetched] = [record for record in caplog.records if getattr(record, "action", "") == "checkpoint_fetched"]
    assert vars(fetched)["step"] == 16, "no step is lost, though the last regular checkpoint was that of step 10"
    [version] = versions(bench)
    assert version.training["data"][0]["labelled"] == 100
    assert len(version.training["report"]["steps"]) == 40
    with bench.engine.begin() as connection:
        steps = [loss.step for loss in trainings.load_losses(connection, job_id)]
    assert steps == list(range(1, 41)), "the curve has no hole and no step twice"
    assert bench.job(job_id).state == JobState.COMPLETED
    stored = [found.key.split("/")[2] for found in bench.resources.objects.list_objects("training/")]
    assert set(stored) == {"snapshot", "report.json", "curves.svg"}
    there = [path.name for path in (bench.settings.home / "training").iterdir()]
    assert there == ["4-20200101T000000000000"], "another training's folder stays for a week"


@pytest.mark.parametrize(
    ("moment", "error"),
    [
        ("before", ServiceUnavailable("database: gone")),
        ("after", LeaseLost("frozen")),
        ("after", RuntimeError("a bug")),
    ],
    ids=["before", "after, lease lost", "after, a bug"],
)
def test_a_failure_around_the_last_commit_makes_no_second_version(
    bench: Workshop, moment: str, error: Exception
) -> None:
    classroom(bench).label(100)
    job_id = submit(bench, request(overrides=NO_STEPS))

    def stage(context: ShardContext[Resources]) -> None:
        train_stage(_FailsAtTheEnd(**{name: getattr(context, name) for name in _FIELDS}, error=error, moment=moment))

    with_stage(bench, stage).run_once()
    assert len(versions(bench)) == (moment == "after")
    bench.let_wait_end()
    bench.expire_leases()
    bench.run()
    job = bench.job(job_id)
    assert (job.state, job.progress.by_status) == (JobState.COMPLETED, {"refused": 1})
    assert len(versions(bench)) == 1


def test_a_lost_picture_fails_the_job_with_its_reason(bench: Workshop) -> None:
    classroom(bench).label(100)
    [lost] = [row.sha256 for row in bench.images("class").values() if row.source == "red.png"]
    bench.resources.objects.delete_content(lost)
    job = run(bench, request())
    assert job.state == JobState.FAILED
    assert job.error is not None and "a picture to train on is lost" in job.error and lost in job.error


def test_a_cancelled_training_can_be_tried_again(bench: Workshop) -> None:
    classroom(bench).label(100)
    job_id = submit(bench, request(overrides=NO_STEPS))
    with bench.engine.begin() as connection:
        control.cancel(connection, job_id)
    assert bench.job(job_id).state == JobState.CANCELLED
    assert bench.run() == 0
    with bench.engine.begin() as connection:
        assert control.retry(connection, job_id, per_shard=1) == 1
    bench.run()
    assert bench.job(job_id).progress.by_status == {"refused": 1}


def test_one_training_of_a_role_is_open_at_a_time(bench: Workshop) -> None:
    classroom(bench).label(100)
    first = submit(bench, request())
    with pytest.raises(UsageError, match=f"job {first} trains the reranker already"):
        submit(bench, request())
    assert submit(bench, request(Role.GENERATOR)) > first


def test_enough_new_labels_begin_one_training_of_each_role(bench: Workshop) -> None:
    due = bench.settings.model_copy(update={"retrain_after": 50})
    classroom(bench).label(49)
    assert submit_due_trainings(bench.engine, due) == []
    classroom(bench).label(1)
    assert submit_due_trainings(bench.engine, bench.settings) == [], "off unless it is asked for"
    begun = submit_due_trainings(bench.engine, due)
    assert sorted(bench.job(job_id).spec["role"] for job_id in begun) == ["generator", "reranker"]
    assert submit_due_trainings(bench.engine, due) == []
    with bench.engine.begin() as connection:
        for job_id in begun:
            control.cancel(connection, job_id)
    assert submit_due_trainings(bench.engine, due) == [], "those labels have had their training"
    classroom(bench).label(50)
    assert len(submit_due_trainings(bench.engine, due)) == 2


def test_the_command_shows_and_queues_a_training(bench: Workshop, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in environment_of(bench.settings).items():
        monkeypatch.setenv(name, value)

    def called(*words: str) -> Result:
        return CliRunner().invoke(cli, ["train", "reranker", "--archive", "class", "--preset", "mini", *words])

    classroom(bench).label(12)
    few = called("--dry-run")
    assert (few.exit_code, "the gate needs 20" in few.stderr) == (1, True)
    classroom(bench).label(100)
    shown = called("--dry-run", "--set", "epochs=4", "--json")
    plan = json.loads(shown.stdout)
    [figures] = plan["archives"]
    assert figures["labelled"] == 112, "those of the first job, asked again, are the same questions"
    assert figures["questions"] + figures["calibration"] + figures["held_out"] == 100
    assert plan["examples"] == figures["positives"] + figures["negatives"] == 2 * figures["questions"]
    assert plan["steps"] == math.ceil(plan["examples"] * 4 / 16)
    later = called("--dry-run", "--since", "2100-01-01")
    assert later.exit_code == 1
    assert "0 questions labelled since 2100-01-01 00:00 UTC" in later.stderr
    assert "take an earlier time" in later.stderr
    assert isinstance(called("--dry-run", "--set", "epoch=4").exception, SettingsError)
    assert isinstance(called("--dry-run", "--set", "epochs=0").exception, SettingsError)
    uneven = called("--dry-run", "--set", "global_batch=8").exception
    assert isinstance(uneven, SettingsError) and "global_batch=8 is not a multiple of micro_batch=16" in str(uneven)
    queued = called("--json", "--name", "the winter's labels")
    assert json.loads(queued.stdout)["training"]["phase"] == "waiting"
    with bench.engine.begin() as connection:
        [job] = [job for job in views.list_jobs(connection) if job.kind == JobKind.TRAIN]
        assert job.name == "the winter's labels"
        control.cancel(connection, job.job_id)
    monkeypatch.setattr("ragllava.cli.progress.wait_with_bar", lambda client, job_id, *_: client.jobs.get(job_id))
    followed = called("--follow").stdout.splitlines()
    assert followed[0] == f"job {job.job_id + 1} queued; `ragllava jobs show {job.job_id + 1}` shows its progress"
    assert followed[1].startswith(f"job {job.job_id + 1} ")


def test_several_processes_train_one_adapter(bench: Workshop, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in environment_of(bench.settings).items():
        monkeypatch.setenv(name, value)
    several = bench.with_settings(train_processes=2)
    classroom(bench).label(100)
    job = run(several, request(overrides=NO_STEPS | {"micro_batch": 8}))
    assert job.training is not None
    assert job.training.status is TrainingStatus.REFUSED, job.error
    [version] = versions(bench)
    assert len(version.training["report"]["steps"]) == 2


def add_archive(bench: Workshop, tmp_path: Path, name: str) -> None:
    """Another archive of the same pictures."""
    folder = Classroom(bench.engine, bench.settings).draw(tmp_path / name)
    with bench.engine.begin() as connection:
        workers.register(connection, "ingest@test", ["ingest"], 1)
        workers.report_ready(connection, "ingest@test", {"test": "1"})
    bench.ingest(folder, captions=folder / "captions.csv", archive_name=name)


def with_stage(bench: Workshop, stage: Callable[[ShardContext[Resources]], None]) -> Workshop:
    return replace(bench, stages={JobKind.TRAIN: stage})


def interrupted_after(checks: int, error: Exception) -> Callable[[ShardContext[Resources]], None]:
    """The stage, which is told to stop at a later look at its lease."""
    left = iter([None] * checks)
    return lambda context: train_stage(replace(context, stop=lambda: next(left, error)))


_FIELDS = ("lease", "settings", "engine", "resources", "stop")


@dataclass(frozen=True)
class _FailsAtTheEnd(ShardContext[Resources]):
    """Fails once before or after the transaction that registers the version."""

    error: Exception
    moment: str

    def commit(self, work: Callable[Concatenate[Connection, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        ends = work.__name__ == "_register"
        if ends and self.moment == "before":
            raise self.error
        done = super().commit(work, *args, **kwargs)
        if ends:
            raise self.error
        return done


def test_a_refused_version_is_evaluated_again_on_more_labels(bench: Workshop, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is not trained again. Here it is refused once more: eight pictures prove too little for a second try."""
    for name, value in environment_of(bench.settings).items():
        monkeypatch.setenv(name, value)
    classroom(bench).label(100)
    refused = run(bench, request(precision=0.9))
    assert refused.training is not None and refused.training.status is TrainingStatus.REFUSED
    [before] = versions(bench)
    classroom(bench).label(400)
    result = CliRunner().invoke(cli, ["models", "judge", before.name, "--json"])
    assert result.exit_code == 0, result.output
    job_id = json.loads(result.stdout)["job"]
    bench.run()
    job = bench.job(job_id)
    assert job.training is not None and job.training.reason is not None
    assert (job.training.status, job.training.version) == (TrainingStatus.REFUSED, before.name)
    assert "version 2 tried against this champion" in job.training.reason
    [after] = versions(bench)
    assert (after.state, after.adapter_sha256) == ("candidate", before.adapter_sha256)
    gates = [version.training["gate"] for version in (before, after)]
    assert [gate["tried"] for gate in gates] == [0, 1], "it is one more try"
    questions = [gate["figures"][0]["questions"] for gate in gates]
    assert questions[1] > 2 * questions[0]
    assert after.training["earlier"][0]["champion"] == gates[0]["champion"]


def test_half_the_labels_of_a_training_have_a_refused_version_evaluated_again(bench: Workshop) -> None:
    due = bench.settings.model_copy(update={"retrain_after": 50})

    def begin() -> dict[str, int]:
        return {bench.job(job_id).spec["role"]: job_id for job_id in submit_due_trainings(bench.engine, due)}

    classroom(bench).label(100)
    run(bench, request(overrides=NO_STEPS))
    [version] = versions(bench)
    begun = begin()
    assert set(begun) == {Role.GENERATOR}, "the reranker has no new labels"
    with bench.engine.begin() as connection:
        control.cancel(connection, begun[Role.GENERATOR])
    classroom(bench).label(24)
    assert begin() == {}
    classroom(bench).label(1)
    begun = begin()
    assert set(begun) == {Role.RERANKER}, "no generator was refused"
    assert bench.job(begun[Role.RERANKER]).spec["version"] == version.name
    bench.run()
    job = bench.job(begun[Role.RERANKER])
    assert job.training is not None and job.training.status is TrainingStatus.REFUSED
    assert begin() == {}, "once for the same labels"
    classroom(bench).label(25)
    begun = begin()
    assert set(begun) == {Role.RERANKER, Role.GENERATOR}
    assert all(bench.job(job_id).spec["version"] is None for job_id in begun.values()), "50 labels: both are trained"
