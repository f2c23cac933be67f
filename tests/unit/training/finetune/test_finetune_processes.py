"""Fine-tuning in processes of its own, as a train worker starts it: killed, and in two at once."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from ragllava.errors import TrainingFailed, UsageError
from ragllava.records import Role
from ragllava.training.data.datasets import (
    DatasetOptions,
    LabelledQuestion,
    Retrieved,
    build_answer_dataset,
    build_rank_dataset,
    read_dataset,
    write_dataset,
)
from ragllava.training.data.examples import Evidence
from ragllava.training.finetune import run
from ragllava.training.finetune.checkpoints import last_checkpoint
from ragllava.training.finetune.launch import last_words, train_in_processes
from ragllava.training.finetune.presets import choose_settings
from ragllava.training.finetune.report import TrainingReport, read_report
from ragllava.training.finetune.run import Failure, FinetuneConfig, failure_file, main, read_failure, train
from ragllava.whole_files import MANIFEST
from tests.support.tiny_checkpoints import load_folder, save_family
from tests.support.toy_training import PICTURES, SMALL, losses, open_picture
from tests.support.waiting import wait_for

PROCESS_DEADLINE_S = 180

# A run that does fifteen steps and then nothing more, until it is killed.
HELD_UP = """
import sys, time
from ragllava.training.finetune import run

def hold_up(_owner, step, _last_step):
    while step == 15:
        time.sleep(1)

run._require_owner = hold_up
sys.exit(run.main(sys.argv[1:]))
"""


def prepare_run(folder: Path, role: Role, **settings: Any) -> Path:
    """A model, a data set, its pictures and the run file that names them."""
    save_family("llava", folder / "model")
    pictures = folder / "pictures"
    pictures.mkdir()
    for number, picture in enumerate(PICTURES):
        picture.save(pictures / f"{number}.png")
    found = tuple(Retrieved(f"{number}.png", "Harlow") for number in range(6))
    questions = [
        LabelledQuestion(f"Which {n}?", "red" if n % 2 else "3 windows", (Evidence(f"{n % 6}.png", "Ansel"),), found)
        for n in range(24)
    ]
    build = build_rank_dataset if role is Role.RERANKER else build_answer_dataset
    write_dataset(folder / "set", build(questions, DatasetOptions(seed=1, injected_share=0.5)))
    (folder / "tiny.toml").write_text(f'retriever = "local-dir:{folder}"\nmllm = "{folder / "model"}"\n')
    values = {
        "dataset": "set",
        "pictures": "pictures",
        "result": "tuned",
        "preset": "mini",
        "profile": str(folder / "tiny.toml"),
        "settings": {**SMALL, **settings},
    }
    run_file = folder / "run.json"
    run_file.write_text(json.dumps(values))
    return run_file


def train_here(run_file: Path, result: Path) -> TrainingReport:
    """The same run in this process, without a pause."""
    values = json.loads(run_file.read_text())
    dataset = read_dataset(run_file.parent / "set")
    mllm = load_folder(run_file.parent / "model", run_file.parent / "home")
    config = FinetuneConfig(dataset.card.role, choose_settings("mini", values["settings"]), result)
    return train(config, dataset.examples, mllm, open_picture)


@contextmanager
def started(command: list[str], home: Path) -> Iterator[subprocess.Popen[str]]:
    """A process of its own group, gone afterwards; its words go to `<home>.log`."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "RAGLLAVA_HOME": str(home)}
    with Path(f"{home}.log").open("a") as words:
        process = subprocess.Popen(
            [sys.executable, *command], env=environment, stdout=words, stderr=words, text=True, start_new_session=True
        )
        try:
            yield process
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def test_a_killed_training_goes_on_where_it_was(tmp_path: Path) -> None:
    """SIGKILL between checkpoints; dropout and picture noise go on with the same random numbers."""
    run_file = prepare_run(
        tmp_path, Role.GENERATOR, max_steps=20, steps_per_checkpoint=4, dropout=0.1, token_weighting=True
    )
    command = ["-m", "ragllava.training.finetune.run", str(run_file)]
    result, work = tmp_path / "tuned", tmp_path / "tuned.work"
    with started(["-c", HELD_UP, str(run_file)], tmp_path / "home") as process:

        def has_checkpoint() -> bool:
            assert process.poll() is None, f"ended with {process.returncode}"
            return (work / "checkpoint-8" / MANIFEST).exists()

        wait_for("the second checkpoint", has_checkpoint, PROCESS_DEADLINE_S)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    assert not result.exists()
    reached = last_checkpoint(work, json.loads((work / "checkpoint-8" / MANIFEST).read_text())["fingerprint"])
    assert reached is not None
    assert 8 <= reached.step < 20
    with started(command, tmp_path / "home") as process:
        assert process.wait(PROCESS_DEADLINE_S) == 0, Path(f"{tmp_path / 'home'}.log").read_text()
    report = read_report(result)
    assert [record.step for record in report.steps] == list(range(1, 21))
    straight = train_here(run_file, tmp_path / "straight")
    assert losses(report) == pytest.approx(losses(straight), abs=1e-4)
    assert [record.token_weight for record in report.steps] == pytest.approx(
        [record.token_weight for record in straight.steps], abs=1e-4
    )
    assert report.seconds > reached.seconds


def test_two_processes_do_as_one(tmp_path: Path) -> None:
    """`accelerate launch`, which starts one process for each GPU; here they share the processor and talk by gloo."""
    # At diffusion step 0 the noise loss makes both of its passes and is yet free of chance.
    run_file = prepare_run(
        tmp_path, Role.GENERATOR, max_steps=6, steps_per_checkpoint=3, token_weighting=True, diffusion_step=0
    )
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    launcher = ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--main_process_port", port]
    command = [*launcher, "--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
    with started([*command, "-m", "ragllava.training.finetune.run", str(run_file)], tmp_path / "home") as process:
        code = process.wait(PROCESS_DEADLINE_S)
    words = Path(f"{tmp_path / 'home'}.log").read_text()
    assert code == 0, words
    together = read_report(tmp_path / "tuned")
    alone = train_here(run_file, tmp_path / "alone")
    assert losses(together) == pytest.approx(losses(alone), abs=1e-4)
    assert words.count("adapter written to") == 1
    assert words.count("trained 6 steps") == 2, "two processes took part"


def test_why_processes_failed_is_told_and_whether_another_try_can_help(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """accelerate ends with status 1 and a border of `=` whatever happened; the second start is not told of the first.

    What cannot be done as asked and what only went wrong are told apart.
    """
    prepare_run(tmp_path, Role.RERANKER)
    for name, value in {"HOME": tmp_path / "home", "PROFILE": tmp_path / "tiny.toml", "DEVICE": "cpu"}.items():
        monkeypatch.setenv(f"RAGLLAVA_{name}", str(value))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    dataset = read_dataset(tmp_path / "set")

    def start(global_batch: int) -> None:
        chosen = choose_settings("mini", SMALL | {"global_batch": global_batch})
        config = FinetuneConfig(Role.RERANKER, chosen, tmp_path / "job" / "result")
        train_in_processes(config, dataset, damaged, 2, on_checkpoint=ignore, on_step=ignore, on_loss=ignore)

    with pytest.raises(
        UsageError, match=r"^global_batch=12 is not a multiple of micro_batch=4 × 2 devices; change one"
    ):
        start(12)
    with pytest.raises(TrainingFailed, match="2 processes ended: it is text, not a picture"):
        start(8)


def damaged(_image: str, file: Path) -> None:
    file.write_bytes(b"no picture")


def ignore(*_facts: object) -> None:
    """A hook that has nothing to do."""


def test_processes_that_were_killed_leave_no_reason_but_the_last_line_that_says_something(tmp_path: Path) -> None:
    log = tmp_path / "launch.log"
    log.write_text("Root Cause:\n  traceback : Signal 9 (SIGKILL) received by PID 12\n======\n\n")
    assert last_words(log) == "traceback : Signal 9 (SIGKILL) received by PID 12"
    log.write_text("====\n")
    assert last_words(log) == "without a word"
    for torn in ("", '{"sentence": "cut', "[]"):
        (tmp_path / "failed.json").write_text(torn)
        assert read_failure(tmp_path / "run.json") is None


def test_a_reason_is_told_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """When another process finds it and ends, the launcher ends this one, which may still be writing."""
    run_file = tmp_path / "run.json"

    def looked_at(failure: Failure) -> dict[str, Any]:
        assert not failure_file(run_file).exists()
        return asdict(failure)

    monkeypatch.setattr(run, "asdict", looked_at)
    assert main([str(run_file)]) == 2
    assert read_failure(run_file) is not None


def test_of_two_that_fail_at_the_same_moment_the_first_one_s_reason_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_file = tmp_path / "run.json"
    first = '{"sentence": "the first", "hopeless": false}'

    def overtaken(failure: Failure) -> dict[str, Any]:
        assert not failure_file(run_file).exists(), "it has looked before"
        failure_file(run_file).write_text(first)
        return asdict(failure)

    monkeypatch.setattr(run, "asdict", overtaken)
    assert main([str(run_file)]) == 2
    assert failure_file(run_file).read_text() == first
    assert list(tmp_path.iterdir()) == [failure_file(run_file)]


def test_a_run_file_that_cannot_be_read_ends_with_one_sentence(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run_file = tmp_path / "run.json"
    assert main([str(run_file)]) == 2
    run_file.write_text('{"dataset": "a", "pictures": "b", "result": "c", "presets": "mini"}')
    assert main([str(run_file)]) == 2
    run_file.write_text('{"dataset": "a", "pictures": "b", "result": "c", "preset": "mini"}')
    assert main([str(run_file)]) == 2
    assert read_failure(run_file) == Failure(f"{run_file}: cannot be read (No such file or directory)", hopeless=True)
    assert main([str(tmp_path / "nowhere" / "run.json")]) == 2
    sentences = [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]
    assert [
        next(part for part in ("cannot be read", "not a training run", "no complete data set") if part in sentence)
        for sentence in sentences
    ] == ["cannot be read", "not a training run", "no complete data set", "cannot be read"]
