"""`clip-retrieval inference` from PyPI, run as its users run it.

It needs an older numpy than this package, so it runs in a virtual environment of its own and is called as a command.
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import numpy as np

from ragllava.errors import UsageError
from ragllava.stores.archives.vectors import Vectors

ADVICE = (
    "not measured: create a virtual environment, run `pip install clip-retrieval 'setuptools<80'` in it, and pass its "
    "command with --clip-retrieval PATH"
)
_LIMIT_S = 1_800.0


def run_clip_retrieval(
    command: Path, pictures: Path, model: str, batch_size: int, output: Path
) -> tuple[float, Vectors]:
    """Embed all pictures of a folder; `model` as its `--clip_model`. Raises UsageError if it fails.

    Returns the seconds in its own statistics (reading, embedding and collecting, without its start and the loading of
    the model) and the vectors (N, D) in the order of the file names.
    """
    options = {
        "input_dataset": pictures,
        "output_folder": output,
        "input_format": "files",
        "enable_text": False,
        "batch_size": batch_size,
        "clip_model": model,
    }
    arguments = [str(command), "inference", *(f"--{name}={value}" for name, value in options.items())]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment |= {"HF_HUB_OFFLINE": "1", "WANDB_MODE": "offline"}
    try:
        done = subprocess.run(arguments, env=environment, capture_output=True, text=True, timeout=_LIMIT_S, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise UsageError(f"cannot run {command}: {error}") from error
    statistics = sorted((output / "stats").glob("[0-9]*.json"))
    if done.returncode or not statistics:
        last_line = (done.stderr.strip() or done.stdout.strip() or "nothing").splitlines()[-1]
        raise UsageError(f"{command} ended with status {done.returncode}; its last line of output: {last_line}")
    seconds = sum(float(json.loads(path.read_text())["total_duration"]) for path in statistics)
    parts = sorted((output / "img_emb").glob("*.npy"), key=lambda path: int(path.stem.rsplit("_", 1)[-1]))
    return seconds, np.concatenate([np.load(path) for path in parts]).astype(np.float32)
