"""Noisy cases for review in Label Studio: tasks out, annotations in.

A task has the addresses of the pictures, never their bytes: `s3://` addresses that Label Studio signs when a reviewer
opens the task, or signed URLs that expire. The images that the models kept are a prediction, which the reviewer
corrects; verdict and right answer have no prediction, so that nobody agrees without looking. Import reads Label
Studio's export in the format "JSON".
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ragllava.errors import LineError
from ragllava.records import Candidate, StoredImage
from ragllava.stages.feedback.files import (
    Dismissal,
    FeedbackFile,
    FeedbackLine,
    as_dismissal,
    as_line,
)
from ragllava.stages.record_files.json_files import parse_json
from ragllava.stages.record_files.layouts import Record, Rejected
from ragllava.stages.record_files.opening import opened_file
from ragllava.stores.learning.noisy import NoisyView

MAX_BYTES = 64 * 2**20  # of an export

# The names of the controls are the keys of the feedback, and those of a candidate end in its index in the list.
LABELING_CONFIG = """\
<View>
  <Header value="Question"/>
  <Text name="question" value="$question"/>
  <Header value="The answer given"/>
  <Text name="given_answer" value="$given_answer"/>
  <Choices name="verdict" toName="question" choice="single" showInline="true" required="true">
    <Choice value="right"/>
    <Choice value="wrong"/>
  </Choices>
  <Header value="The right answer, if the one given is wrong"/>
  <TextArea name="answer" toName="question" maxSubmissions="1" editable="true"/>
  <Header value="Why it is here"/>
  <Text name="reasons" value="$reasons"/>
  <Header value="Which pictures does the right answer rest on?"/>
  <Repeater on="$candidates" indexFlag="{{idx}}">
    <Image name="image_{{idx}}" value="$candidates[{{idx}}].image" maxWidth="400px"/>
    <Text name="caption_{{idx}}" value="$candidates[{{idx}}].caption"/>
    <Choices name="relevance_{{idx}}" toName="image_{{idx}}" choice="single" showInline="true">
      <Choice value="relevant"/>
      <Choice value="irrelevant"/>
    </Choices>
  </Repeater>
</View>
"""

_RELEVANCE = "relevance_"


def as_task(case: NoisyView, address: Callable[[StoredImage], str]) -> dict[str, Any]:
    """One task for Label Studio's import; `address` gives the address of a picture."""
    question = case.question
    models = question.models or {}
    return {
        "data": {
            "job": question.job_id,
            "custom_id": question.custom_id,
            "archive": question.archive,
            "question": question.text,
            "given_answer": question.answer if question.answer is not None else "(none: no picture is relevant enough)",
            "reasons": "\n".join(str(case.details.get(reason.value, reason.value)) for reason in case.reasons),
            "candidates": [_candidate_data(candidate, address) for candidate in question.candidates],
        },
        "predictions": [
            {
                "model_version": str(models.get("reranker", "unknown")),
                "result": [
                    _choice(index, "relevant")
                    for index, candidate in enumerate(question.candidates)
                    if candidate.evidence_no is not None
                ],
            }
        ],
    }


def read_annotations(source: Path | bytes, *, name: str) -> tuple[FeedbackFile, int]:
    """The feedback in Label Studio's JSON export, and how many tasks have no annotation yet.

    Of several annotations of a task the latest counts; a task whose annotations were all skipped is dismissed. The
    `line` of an error is the number of its task in the file, from 1. Raises InvalidInput when the file is not such an
    export, UsageError when it cannot be opened.
    """
    with opened_file(source, name) as stream:
        content = stream.read(MAX_BYTES + 1)
        if len(content) > MAX_BYTES:
            raise Rejected("file_too_large", f"the file has more than {MAX_BYTES // 2**20} MiB; split it")
        tasks = parse_json(content.decode("utf-8-sig", "surrogateescape"))
        if not isinstance(tasks, list) or not all(isinstance(task, dict) for task in tasks):
            message = 'this is not a list of tasks; export from Label Studio in the format "JSON"'
            raise Rejected("unknown_format", message)
        if tasks and not any("data" in task or "annotations" in task for task in tasks) and _is_min(tasks):
            message = 'this is Label Studio\'s format "JSON-MIN"; export the project again in the format "JSON"'
            raise Rejected("unknown_format", message)
    lines: list[FeedbackLine | LineError] = []
    dismissed: list[Dismissal] = []
    waiting = 0
    for number, task in enumerate(tasks, start=1):
        annotations = [annotation for annotation in task.get("annotations") or () if isinstance(annotation, dict)]
        if not annotations:
            waiting += 1
            continue
        done = [annotation for annotation in annotations if not annotation.get("was_cancelled")]
        line = _read_task(number, task, max(done, key=_moment) if done else None)
        if isinstance(line, Dismissal):
            dismissed.append(line)
        else:
            lines.append(line)
    return FeedbackFile(name, lines, tuple(dismissed)), waiting


def _is_min(tasks: Sequence[Mapping[str, Any]]) -> bool:
    """Whether these are tasks of the format JSON-MIN, which has data and labels of a task side by side."""
    return any("annotation_id" in task or "annotator" in task or "candidates" in task for task in tasks)


def _candidate_data(candidate: Candidate, address: Callable[[StoredImage], str]) -> dict[str, Any]:
    return {
        "image": address(candidate.image),
        "image_id": candidate.image.image_id,
        "source": candidate.image.source,
        "caption": candidate.image.caption or "",
        "relevance": None if candidate.relevance is None else round(candidate.relevance, 4),
        "retrieval_rank": candidate.retrieval_rank + 1,
    }


def _choice(index: int, value: str) -> dict[str, Any]:
    return {
        "id": f"kept_{index}",
        "from_name": f"{_RELEVANCE}{index}",
        "to_name": f"image_{index}",
        "type": "choices",
        "value": {"choices": [value]},
    }


def _moment(annotation: Mapping[str, Any]) -> str:
    """When it was last changed, in ISO 8601 of one form, which sorts as text."""
    return str(annotation.get("updated_at") or annotation.get("created_at") or "")


def _read_task(
    number: int, task: Mapping[str, Any], annotation: Mapping[str, Any] | None
) -> FeedbackLine | Dismissal | LineError:
    """The feedback of an annotation; without one, the task is dismissed."""
    data = task.get("data")
    try:
        if not isinstance(data, dict) or not isinstance(data.get("candidates"), list):
            raise Rejected("unknown_format", "the task was not made by `ragllava noisy export`")
        if annotation is None:
            return as_dismissal(Record(number, data))
        feedback = _feedback_of(annotation, data["candidates"])
    except Rejected as rejected:
        return rejected.at(number)
    return as_line(Record(number, feedback | {key: data.get(key) for key in ("job", "custom_id", "question")}), None)


def _feedback_of(annotation: Mapping[str, Any], candidates: Sequence[Any]) -> dict[str, Any]:
    """The keys of feedback from the regions of an annotation; images that nobody marked are left out."""
    feedback: dict[str, Any] = {}
    marked: dict[str, list[Any]] = {"relevant": [], "irrelevant": []}
    for region in annotation.get("result") or ():
        try:
            control, value = str(region["from_name"]), region["value"]
            if control == "verdict":
                feedback["verdict"] = value["choices"][0]
            elif control == "answer":
                feedback["answer"] = value["text"][-1] if isinstance(value["text"], list) else value["text"]
            elif control.startswith(_RELEVANCE):
                image_id = candidates[int(control.removeprefix(_RELEVANCE))]["image_id"]
                marked[value["choices"][0]].append(image_id)
        except (KeyError, IndexError, TypeError, ValueError):
            message = "a part of the annotation does not fit the controls of `ragllava noisy export --config`"
            raise Rejected("unknown_format", message) from None
    return feedback | {key: images for key, images in marked.items() if images}
