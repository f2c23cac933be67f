"""The pictures of the benchmark's ingest rows, and how the figures of clip-retrieval are read."""

from __future__ import annotations

import stat
import sys
from pathlib import Path

import numpy as np
import pytest

from ragllava.errors import UsageError
from ragllava.imaging.decode import decode
from ragllava.lab.bench.clip_retrieval import run_clip_retrieval
from ragllava.lab.bench.photographs import CAMERAS, SMALL, draw_photographs, marked
from tests.support.picture_files import encoded, quadrants

# Writes what clip-retrieval writes: two parts of vectors, of which the tenth comes after the second, and statistics.
STAND_IN = """
import json, pathlib, sys
import numpy as np
given = dict(word[2:].split("=", 1) for word in sys.argv[2:])
assert sys.argv[1] == "inference" and given["input_format"] == "files" and given["enable_text"] == "False"
output = pathlib.Path(given["output_folder"])
for name in ("stats", "img_emb"):
    (output / name).mkdir(parents=True)
for part, seconds in ((2, 1.5), (10, 0.25)):
    (output / "stats" / f"{part}.json").write_text(json.dumps({"total_duration": seconds, "sample_count": 2}))
    np.save(output / "img_emb" / f"img_emb_{part}.npy", np.full((2, 3), part, np.float16))
"""


def program(folder: Path, text: str) -> Path:
    path = folder / "clip-retrieval"
    path.write_text(f"#!{sys.executable}\n{text}")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


def test_photographs_have_their_sizes_and_no_two_files_are_the_same() -> None:
    small = draw_photographs(3, 10, SMALL)
    assert len(set(small)) == 10
    assert [decode(data).picture.size for data in small] == [SMALL[0]] * 10
    assert 40_000 < len(small[0]) < 200_000  # about what a photograph of that size has
    assert draw_photographs(3, 2, SMALL) == small[:2] != draw_photographs(4, 2, SMALL)
    large = draw_photographs(3, 3, CAMERAS)
    assert [(image.width, image.height) for image in (decode(data, shorter_side=100) for data in large)] == [*CAMERAS]


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_a_mark_changes_the_bytes_but_not_the_picture(kind: str) -> None:
    data = encoded(quadrants(), kind)
    assert marked(data, "one") != marked(data, "two")
    assert decode(marked(data, "one")).picture.tobytes() == decode(data).picture.tobytes()


def test_seconds_and_vectors_of_all_parts_are_read_in_order(tmp_path: Path) -> None:
    seconds, vectors = run_clip_retrieval(program(tmp_path, STAND_IN), tmp_path, "a model", 16, tmp_path / "output")
    assert seconds == 1.75
    assert vectors.tolist() == [[2] * 3, [2] * 3, [10] * 3, [10] * 3]
    assert vectors.dtype == np.float32


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("import sys; sys.exit('no such model')", "ended with status 1; its last line of output: no such model"),
        ("print('nothing to do')", "ended with status 0; its last line of output: nothing to do"),
    ],
)
def test_a_failed_run_reports_the_reason(tmp_path: Path, text: str, sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence):
        run_clip_retrieval(program(tmp_path, text), tmp_path, "a model", 16, tmp_path / "output")


def test_a_missing_command_is_reported(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"cannot run .*clip-retrieval"):
        run_clip_retrieval(tmp_path / "clip-retrieval", tmp_path, "a model", 16, tmp_path / "output")
