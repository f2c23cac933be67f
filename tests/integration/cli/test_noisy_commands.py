"""`ragllava feedback` and `ragllava noisy …` on real services."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import Engine

from ragllava.feedback import NoisyReason, NoisyState
from ragllava.settings import Settings
from ragllava.stages.feedback.label_studio import LABELING_CONFIG
from tests.support.reviewed_job import Review, open_review
from tests.support.run_command import Run


@pytest.fixture
def review(settings: Settings, engine: Engine) -> Iterator[Review]:
    with open_review(settings, engine) as review:
        yield review


def test_feedback_counts_its_labels(review: Review, run: Run) -> None:
    Path("labels.csv").write_text(
        "custom_id,verdict,answer,relevant\nq0,wrong,three,boats.png; tower.png\nq1,wrong,,\n"
    )
    code, out, err = run("feedback", "labels.csv", "--job", review.job_id)
    assert (code, err) == (0, "")
    assert out.splitlines() == [
        "labels.csv: 2 labels (0 right, 2 wrong)",
        "1 are labelled wrong without a right answer; "
        "`ragllava noisy list --archive harbour --reason said_wrong --state open` shows them",
    ]
    code, out, _ = run("noisy", "list", "--archive", "harbour", "--reason", "said_wrong", "--state", "open")
    assert code == 0 and [line.split()[1] for line in out.splitlines()[1:]] == ["q1"]
    boats, _, tower, *_ = (image.image_id for image in review.images)
    assert review.labels()[0].label.relevant == (boats, tower)
    Path("labels.csv").write_text(
        "custom_id,verdict,answer,relevant\nq0,wrong,three,boats.png; tower.png\nq1,right,,\n"
    )
    code, out, err = run("feedback", "labels.csv", "--job", review.job_id)
    assert (code, err, out) == (0, "", "labels.csv: 1 labels (1 right, 0 wrong), 1 unchanged\n")
    assert json.loads(run("feedback", "labels.csv", "--job", review.job_id, "--json")[1])["unchanged"] == 2


def test_feedback_with_a_bad_line_stores_nothing_and_says_how_to_go_on(review: Review, run: Run) -> None:
    Path("labels.jsonl").write_text(
        '{"custom_id": "q0", "verdict": "right"}\n{"custom_id": "q9", "verdict": "right"}\n'
    )
    code, out, err = run("feedback", "labels.jsonl", "--job", review.job_id)
    assert (code, out) == (1, "")
    unknown = f'job {review.job_id} has no question with the custom_id "q9" [unknown_question]'
    assert err.splitlines() == [
        f"ragllava: labels.jsonl, line 2: {unknown}",
        "nothing was stored; --skip-invalid stores the valid lines, if there are any",
    ]
    assert review.labels() == []
    code, out, err = run(
        "feedback", "labels.jsonl", "--job", review.job_id, "--skip-invalid", "--source", "gold", "--json"
    )
    assert code == 0
    assert err == f"labels.jsonl, line 2: {unknown}\n"
    printed = json.loads(out)
    assert (printed["right"], [refused["line"] for refused in printed["refused"]]) == (1, [2])
    assert review.labels()[0].label.source == "gold"


def test_noisy_cases_are_listed(review: Review, run: Run) -> None:
    assert run("noisy", "list", "--archive", "harbour")[1] == "harbour has no noisy case\n"
    review.doubt(0, NoisyReason.LOW_CONFIDENCE)
    review.doubt(1, NoisyReason.NO_EVIDENCE)
    code, out, _ = run("noisy", "list", "--archive", "harbour", "--reason", "no_evidence")
    _header, row = out.splitlines()
    assert code == 0
    assert row.split()[:4] == [str(review.job_id), "q1", "open", "no_evidence"]
    code, out, err = run("noisy", "list", "--archive", "harbour", "--limit", 1)
    assert (len(out.splitlines()), err) == (2, "the first 1; --limit shows more\n")
    cases = json.loads(run("noisy", "list", "--archive", "harbour", "--json")[1])
    assert [(case["custom_id"], case["reasons"], case["state"]) for case in cases] == [
        ("q0", ["low_confidence"], "open"),
        ("q1", ["no_evidence"], "open"),
    ]


def test_one_case_is_shown_with_all_that_is_known(review: Review, run: Run) -> None:
    review.doubt(0, NoisyReason.LOW_CONFIDENCE, "the answer's confidence is only 0.20")
    review.say({"custom_id": "q0", "verdict": "wrong", "answer": "three", "relevant": ["tower.png"]})
    code, out, _ = run("noisy", "show", review.job_id, "q0")
    lines = out.splitlines()
    assert code == 0
    assert lines[:6] == [
        "question  question 0?",
        "answer    two  (confidence 0.90)",
        "noisy     labelled",
        "  low_confidence: the answer's confidence is only 0.20",
        "  said_wrong: a person calls the answer 'two' wrong; the right answer is 'three'",
        "label     wrong (person); right answer: three; relevant: tower.png",
    ]
    rows = [line.split() for line in lines[7:]]
    assert [row[:4] for row in rows] == [
        ["1", "0.9000", "3", "boats.png"],
        ["2", "0.8000", "2", "bridge.png"],
        ["-", "0.1000", "1", "tower.png"],
    ]
    shown = json.loads(run("noisy", "show", review.job_id, "q0", "--json")[1])
    assert [candidate["kept"] for candidate in shown["candidates"]] == [True, True, False]
    assert shown["label"]["answer"] == "three"


def test_a_question_without_doubt_is_shown_as_well(review: Review, run: Run) -> None:
    _, out, _ = run("noisy", "show", review.job_id, "q1")
    assert out.splitlines()[:3] == ["question  question 1?", "answer    none: no_evidence", "noisy     no"]
    assert json.loads(run("noisy", "show", review.job_id, "q3", "--json")[1])["label"] is None
    code, _, err = run("noisy", "show", review.job_id, "q9")
    assert (code, err) == (1, f'ragllava: job {review.job_id} has no question with the custom_id "q9"\n')


def test_cases_go_to_label_studio_and_come_back(review: Review, run: Run) -> None:
    review.doubt(0, NoisyReason.LOW_CONFIDENCE)
    review.doubt(1, NoisyReason.NO_EVIDENCE)
    code, out, _ = run("noisy", "export", "tasks.json", "--archive", "harbour", "--config", "config.xml")
    assert (code, out.splitlines()[0]) == (0, "tasks.json: 2 tasks")
    assert Path("config.xml").read_text() == LABELING_CONFIG
    tasks = json.loads(Path("tasks.json").read_text())
    verdict = {"from_name": "verdict", "to_name": "question", "type": "choices", "value": {"choices": ["right"]}}
    tasks[0]["annotations"] = [{"result": [verdict, *tasks[0]["predictions"][0]["result"]], "was_cancelled": False}]
    Path("done.json").write_text(json.dumps(tasks))
    code, out, err = run("noisy", "import", "done.json")
    assert (code, err) == (0, "")
    assert out.splitlines() == ["done.json: 1 labels (1 right, 0 wrong)", "1 tasks have no annotation yet"]
    assert {name: case.state for name, case in review.cases().items()} == {
        "q0": NoisyState.LABELLED,
        "q1": NoisyState.OPEN,
    }
    assert run("noisy", "export", "rest.json", "--archive", "harbour")[1] == "rest.json: 1 tasks\n"


def test_signed_addresses_can_be_asked_for(review: Review, run: Run) -> None:
    review.doubt(0, NoisyReason.LOW_CONFIDENCE)
    run("noisy", "export", "tasks.json", "--archive", "harbour", "--presign", 1)
    [task] = json.loads(Path("tasks.json").read_text())
    assert all(c["image"].startswith("http") and "Expires=3600" in c["image"] for c in task["data"]["candidates"])


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ("nodir/c.xml", "nodir/c.xml cannot be written: No such file or directory"),
        (".", ". cannot be written: it is a folder"),
        ("./tasks.json", "tasks.json cannot hold both the tasks and the labeling configuration; give --config another"),
    ],
)
def test_tasks_are_not_written_where_the_configuration_cannot_be(
    review: Review, run: Run, config: str, says: str
) -> None:
    review.doubt(0, NoisyReason.LOW_CONFIDENCE)
    before = list(Path().iterdir())
    code, out, err = run("noisy", "export", "tasks.json", "--archive", "harbour", "--config", config)
    assert (code, out) == (1, "")
    assert says in err
    assert list(Path().iterdir()) == before


def test_an_import_without_a_valid_task_says_so(review: Review, run: Run) -> None:
    Path("done.json").write_text(json.dumps([{"data": {}, "annotations": [{"was_cancelled": True, "result": []}]}]))
    code, out, err = run("noisy", "import", "done.json", "--skip-invalid")
    assert (code, out) == (1, "")
    assert err.splitlines() == [
        "ragllava: done.json, line 1: the task was not made by `ragllava noisy export` [unknown_format]",
        "nothing was stored; no line is valid",
    ]
