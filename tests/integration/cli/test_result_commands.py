"""`ragllava results` and `report`: whose results they are, which files they replace, and which picture is meant."""

from __future__ import annotations

import errno
import json
from pathlib import Path
from typing import Any

import pytest

from tests.integration.conftest import Postcards
from tests.support.clip_art import write_clip_art
from tests.support.run_command import Run
from tests.support.workshop import ARCHIVE, Workshop


@pytest.fixture
def two_jobs(workshop: Workshop, postcards: Postcards) -> Workshop:
    """Job 2 and job 3 are the same question to the same archive."""
    workshop.ingest(postcards.written.pictures, captions=postcards.written.captions)
    workshop.ask([postcards.archive.questions[0].text])
    workshop.ask([postcards.archive.questions[0].text])
    return workshop


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv", "a.parquet", "a.html"])
def test_a_file_of_another_job_is_replaced_only_by_force(
    two_jobs: Workshop, run: Run, tmp_path: Path, name: str
) -> None:
    path, command = tmp_path / name, "report" if name.endswith(".html") else "results"
    for _ in range(2):  # the second time it replaces its own
        code, out, err = run(command, 2, "-o", path)
        assert (code, err) == (0, "")
        assert f"job 2 (questions.jsonl), archive {ARCHIVE}" in out
    content = path.read_bytes()
    code, out, err = run(command, 3, "-o", path)
    assert (code, out) == (1, "")
    assert err == (
        f"ragllava: {path} exists and is of job 2, archive {ARCHIVE}; "
        f"--force replaces it with job 3, archive {ARCHIVE}\n"
    )
    assert path.read_bytes() == content
    assert run(command, 3, "-o", path, "--force")[0] == 0
    assert path.read_bytes() != content


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv", "a.parquet", "a.html"])
@pytest.mark.parametrize("content", [b"dear diary", b'{"custom_id": "a"}', b"custom_id,line\na,1\n", b"<html>"])
def test_a_file_of_another_kind_is_kept(
    two_jobs: Workshop, run: Run, tmp_path: Path, name: str, content: bytes
) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    code, _, err = run("report" if name.endswith(".html") else "results", 2, "-o", path)
    assert code == 1 and "exists and is not a result of a job; --force" in err
    assert path.read_bytes() == content


def test_an_empty_file_and_one_without_a_row_are_replaced(run: Run, workshop: Workshop, tmp_path: Path) -> None:
    workshop.submit(["What?"], _archive(workshop, tmp_path))
    for name in ("a.jsonl", "a.csv", "a.parquet"):
        (tmp_path / name).touch()
        for _ in range(2):
            assert run("results", 2, "-o", tmp_path / name)[0] == 0


def _archive(workshop: Workshop, tmp_path: Path) -> str:
    workshop.ingest(write_clip_art(tmp_path / "art", 1), archive_name="art")
    return "art"


def test_each_row_names_its_job_and_archive(two_jobs: Workshop, run: Run, tmp_path: Path) -> None:
    run("results", "latest", "-o", tmp_path / "a.jsonl")
    row = json.loads((tmp_path / "a.jsonl").read_text())
    assert (row["job"], row["archive"]) == (3, ARCHIVE)


def test_evidence_of_an_ambiguous_name_has_its_address(
    workshop: Workshop, postcards: Postcards, tmp_path: Path
) -> None:
    """Two folders have a postcard of one name; one of them has another size, so that their bytes differ."""
    first, other = postcards.written.pictures, tmp_path / "other"
    other.mkdir()
    asked = postcards.archive.questions[0]
    twin = asked.relevant[0]
    (other / twin).write_bytes(_resized(first / twin))
    workshop.ingest(first, captions=postcards.written.captions)
    workshop.ingest(other)
    rows: list[dict[str, Any]] = [row.as_json() for row in workshop.ask([q.text for q in postcards.archive.questions])]
    evidence = [image for row in rows for image in row["evidence"]]
    assert {image["uri"] for image in evidence if image["source"] != twin} == {None}
    uris = {image["uri"] for image in evidence if image["source"] == twin}
    assert uris and uris <= {f"file://{first / twin}", f"file://{other / twin}"}


def _resized(path: Path) -> bytes:
    import io

    from PIL import Image

    buffer = io.BytesIO()
    Image.open(path).convert("RGB").resize((100, 100)).save(buffer, "PNG")
    return buffer.getvalue()


def test_a_full_disk_is_one_sentence_with_the_file(
    two_jobs: Workshop, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("ragllava.stages.results.results.write_json_lines", full)
    code, out, err = run("results", 2, "-o", tmp_path / "a.jsonl")
    assert (code, out) == (1, "")
    assert err.startswith(f"ragllava: {tmp_path / 'a.jsonl'} cannot be written: No space left on device; free some")
    assert list(tmp_path.glob("*a.jsonl*")) == []
