"""One training in several processes, one for each GPU: `accelerate launch` started, watched and ended."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from ragllava.errors import RagllavaError, TrainingFailed, UsageError
from ragllava.training.data.datasets import Dataset, write_dataset
from ragllava.training.finetune.batches import images_of
from ragllava.training.finetune.checkpoints import read_checkpoint
from ragllava.training.finetune.report import TrainingReport, read_report
from ragllava.training.finetune.run import FinetuneConfig, failure_file, read_failure
from ragllava.training.finetune.trainer import CheckpointHook, LossHook, StepHook, report_loss

_LOOK_S = 1.0
_GRACE_S = 20.0


def train_in_processes(
    config: FinetuneConfig,
    dataset: Dataset,
    store_picture: Callable[[str, Path], None],
    processes: int,
    *,
    on_checkpoint: CheckpointHook,
    on_step: StepHook,
    on_loss: LossHook,
) -> TrainingReport:
    """As `finetune.train`, in so many processes of this machine. `store_picture` writes a picture into a file.

    `on_loss` is called with the losses of a checkpoint's steps when it is whole.
    `on_step` is called about once a second with the step of the last checkpoint, and what it raises ends the
    processes; the next start continues from that checkpoint. Raises UsageError when it cannot be done, TrainingFailed.
    """
    run_file = _prepare(config, dataset, store_picture)
    failure_file(run_file).unlink(missing_ok=True)
    log = config.result.with_name("launch.log")
    with log.open("wb") as output:
        process = subprocess.Popen(
            _command(run_file, processes), stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )
    watch = _Watch(config.work, on_checkpoint, on_step, on_loss)
    try:
        while process.poll() is None:
            watch.look()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(_LOOK_S)
    finally:
        _end(process)
    if process.returncode:
        raise _failed(run_file, log, processes, process.returncode)
    return read_report(config.result)


def last_words(log: Path) -> str:
    """The last line that says something: torch ends with a border."""
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines()]
    return next((line for line in reversed(lines) if any(map(str.isalnum, line))), "without a word")


def _failed(run_file: Path, log: Path, processes: int, status: int) -> RagllavaError:
    failure = read_failure(run_file)
    if failure is None:
        return TrainingFailed(f"training in {processes} processes ended with status {status}: {last_words(log)}")
    if failure.hopeless:
        return UsageError(failure.sentence)
    return TrainingFailed(f"training in {processes} processes ended: {failure.sentence}")


class _Watch:
    """Tells about new checkpoints of a training that runs elsewhere."""

    def __init__(self, work: Path, on_checkpoint: CheckpointHook, on_step: StepHook, on_loss: LossHook) -> None:
        self._work = work
        self._on_checkpoint = on_checkpoint
        self._on_step = on_step
        self._on_loss = on_loss
        self._step = self._last_step = 0

    def look(self) -> None:
        """Call the hooks once."""
        for folder in sorted(self._work.glob("checkpoint-[0-9]*"), key=lambda folder: int(folder.name.split("-")[1])):
            if int(folder.name.split("-")[1]) <= self._step:
                continue
            checkpoint = read_checkpoint(folder)
            if checkpoint is not None:
                self._report_losses(folder, self._step)
                self._step, self._last_step = checkpoint.step, checkpoint.last_step
                self._on_checkpoint(folder)
        self._on_step(self._step, self._last_step)

    def _report_losses(self, checkpoint: Path, after: int) -> None:
        """Those of the steps since the checkpoint before."""
        for entry in json.loads((checkpoint / "trainer_state.json").read_text())["log_history"]:
            if entry["step"] > after:
                report_loss(self._on_loss, entry)


def _prepare(config: FinetuneConfig, dataset: Dataset, store_picture: Callable[[str, Path], None]) -> Path:
    """Write the run file with all that it names beside it."""
    folder = config.result.parent
    pictures = folder / "pictures"
    pictures.mkdir(parents=True, exist_ok=True)
    write_dataset(folder / "dataset", dataset)
    for image in {image for example in dataset.examples for image in images_of(example)}:
        if not (pictures / image).exists():
            store_picture(image, pictures / image)
    described = {
        "dataset": "dataset",
        "pictures": "pictures",
        "result": config.result.name,
        "preset": config.settings.preset,
        "settings": {name: getattr(config.settings.values, name) for name in config.settings.overridden},
        "owner": os.getpid(),
    }
    run_file = folder / "run.json"
    run_file.write_text(json.dumps(described, indent=1))
    return run_file


def _command(run_file: Path, processes: int) -> list[str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    launcher = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", str(processes)]
    alone = ["--main_process_port", port, "--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
    return [*launcher, *alone, "-m", "ragllava.training.finetune.run", str(run_file)]


def _end(process: subprocess.Popen[bytes]) -> None:
    """End the launcher and all that it started; they are a session of their own."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(_GRACE_S)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
