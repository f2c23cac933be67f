"""Exports of Label Studio with missing or invalid parts."""

from __future__ import annotations

import json
from typing import Any

import pytest

from ragllava.errors import InvalidInput, LineError
from ragllava.stages.feedback.label_studio import read_annotations

DATA = {"job": 7, "custom_id": "q1", "question": "how many?", "candidates": [{"image_id": 3}]}
VERDICT = {"from_name": "verdict", "type": "choices", "value": {"choices": ["right"]}}


def read(*tasks: dict[str, Any]) -> tuple[list[Any], int]:
    file, waiting = read_annotations(json.dumps(tasks).encode(), name="export.json")
    return file.lines, waiting


def task(*regions: Any, data: Any = DATA) -> dict[str, Any]:
    return {"data": data, "annotations": [{"result": list(regions), "was_cancelled": False}]}


def test_a_task_that_nobody_has_annotated_waits() -> None:
    assert read({"data": DATA, "annotations": []}, {"data": DATA}) == ([], 2)


@pytest.mark.parametrize(
    ("broken", "code", "message"),
    [
        (task(VERDICT, data={"image": "a.png"}), "unknown_format", "not made by `ragllava noisy export`"),
        (task(VERDICT, data=None), "unknown_format", "not made by `ragllava noisy export`"),
        (task(), "invalid_verdict", "missing"),
        (task(VERDICT, {"from_name": "relevance_5", "value": {"choices": ["relevant"]}}), "unknown_format", "controls"),
        (task(VERDICT, {"from_name": "relevance_0", "value": {"choices": ["maybe"]}}), "unknown_format", "controls"),
        (task(VERDICT, {"from_name": "relevance_0", "value": {}}), "unknown_format", "controls"),
        (task("region"), "unknown_format", "controls"),
        (task(VERDICT, data=DATA | {"job": "seven"}), "unknown_job", "'seven'"),
    ],
)
def test_a_task_that_cannot_be_read_is_an_error_with_its_number(
    broken: dict[str, Any], code: str, message: str
) -> None:
    [good, bad], _ = read(task(VERDICT), broken)
    assert isinstance(bad, LineError) and not isinstance(good, LineError)
    assert (bad.line, bad.code) == (2, code)
    assert message in bad.message


@pytest.mark.parametrize("data", [b"{}", b"[1]", b"nonsense", b""])
def test_a_file_that_is_not_an_export_is_refused(data: bytes) -> None:
    with pytest.raises(InvalidInput):
        read_annotations(data, name="export.json")


def test_json_min_is_named() -> None:
    done = {
        "verdict": "wrong",
        "relevance_0": "relevant",
        "annotator": 1,
        "annotation_id": 1,
        "created_at": "2026-05-01",
    }
    with pytest.raises(InvalidInput, match='"JSON-MIN"; export the project again in the format "JSON"'):
        read_annotations(json.dumps([DATA | done]).encode(), name="export.json")
