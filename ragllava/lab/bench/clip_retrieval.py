"""`clip-retrieval inference` from PyPI, run as its users run it.

It needs an older numpy than ours, so it lives in a virtual environment of its own and is known by its command.
"""

from __future__ import annotations

import json
import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ragllava.errors import UsageError

ADVICE = (
    "not measured: make a virtual environment, `pip install clip-retrieval 'setuptools<80'` there, and name its "
    "command with --clip-retrieval PATH"
)
_LIMIT_S = 1_800.0


@dataclass(frozen=True, slots=True)
class ClipRetrievalRun:
    """`seconds` by its own statistics: reading, embedding and collecting, without its start and the model's loading.
    `vectors` (N, D) are in the order of the files' names."""

    seconds: float
    vectors: npt.NDArray[np.float32]


def run_clip_retrieval(command: Path, pictures: Path, model: str, batch_size: int, output: Path) -> ClipRetrievalRun:
    """Embed all pictures of a folder; `model` as its `--clip_model`. Raises UsageError when it fails."""
    arguments = {
        "input_dataset": pictures,
        "output_folder": output,
        "input_format": "files",
        "enable_text": False,
        "batch_size": batch_size,
        "clip_model": model,
    }
    words = [str(command), "inference", *(f"--{name}={value}" for name, value in arguments.items())]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment |= {"HF_HUB_OFFLINE": "1", "WANDB_MODE": "offline"}
    try:
        done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=_LIMIT_S, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise UsageError(f"{command} cannot be run: {error}") from error
    statistics = sorted((output / "stats").glob("[0-9]*.json"))
    if done.returncode or not statistics:
        said = (done.stderr.strip() or done.stdout.strip() or "nothing").splitlines()[-1]
        raise UsageError(f"{command} ended with status {done.returncode}; the last that it said: {said}")
    seconds = sum(float(json.loads(path.read_text())["total_duration"]) for path in statistics)
    parts = sorted((output / "img_emb").glob("*.npy"), key=lambda path: int(path.stem.rsplit("_", 1)[-1]))
    return ClipRetrievalRun(seconds, np.concatenate([np.load(path) for path in parts]).astype(np.float32))
