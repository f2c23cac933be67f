"""MultimodalQA: short questions about one image out of a few that an article shows.

Two forms of its files are read. The original: MMQA_{split}.jsonl.gz, MMQA_images.jsonl.gz and the folder of pictures,
splits train and dev. The reference implementation's (RagVL): MMQA_{split}_image.json, MMQA_ImageQ_metadata.json and
MMQA_imgs. As there, only questions of type ImageQ count: they ask about one image alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from ragllava.errors import UsageError
from ragllava.evaluation.datasets.files import (
    BadRow,
    find_images,
    find_path,
    json_lines,
    json_rows,
    need_id,
    need_list,
    need_object,
    need_path,
    need_text,
    spellings,
    unique,
)
from ragllava.evaluation.datasets.records import EvaluationImage, EvaluationQuestion, EvaluationSet
from ragllava.metadata import clean_caption
from ragllava.stages.record_files.layouts import Record, check_all

TOP_N = 1
QUESTION_TYPE = "ImageQ"

_ORIGIN = "it is part of the MultimodalQA download (allenai/multimodalqa on GitHub)"
_PICTURES_ORIGIN = "unpack final_dataset_images.zip of the MultimodalQA download there"
_REFERENCE_ORIGIN = "it is part of the RagVL download (IDEA-FinAI/RagVL on GitHub)"
_ORIGINAL = {"folders": ("", "dataset/"), "ends": (".gz", "")}
_PICTURE_FOLDERS = (
    "final_dataset_images",
    "MMQA_imgs",
    "finetune/tasks/MMQA_imgs",
    "tasks/MMQA_imgs",
    "images",
    "dataset/final_dataset_images",
)


def load_multimodalqa(folder: Path, split: str) -> EvaluationSet:
    """The image questions of one split of MultimodalQA from the files in `folder`, in whichever form they are.

    The pool of the original form is every image that one of these questions lists, 3 to 15 each; that of the
    reference's form is its index, or without one the labelled images. Captions are RagVL's; the original has none, so
    the title of the image's article stands in. UsageError: a file or picture is missing, or the answers of the split
    are not public; InvalidInput: rows are wrong.
    """
    reference = find_path(folder, spellings(f"MMQA_{split}_image.json", f"MMQA_{split}_ImageQ.json"))
    if reference is not None:
        return _load_reference(folder, reference, split)
    original = find_path(folder, spellings(f"MMQA_{split}.jsonl", f"MultiModalQA_{split}.jsonl", **_ORIGINAL))
    if original is None:
        raise UsageError(
            f"no questions of MultimodalQA's split {split!r} in {folder}: expected MMQA_{split}.jsonl.gz from the "
            f"MultimodalQA download (splits train and dev) or datasets/MMQA_{split}_image.json from the RagVL download"
        )
    if split == "test":
        raise UsageError(f"{original} has no answers, those of the test split are not public; take the split dev")
    return _load_original(folder, original, split)


def _load_original(folder: Path, path: Path, split: str) -> EvaluationSet:
    rows = list(json_lines(path))
    asked = [row for row in rows if _type(row.value) in (QUESTION_TYPE, None)]
    questions = check_all(path, asked, _read_original)
    pool = unique(image_id for question in questions for image_id in (*question.relevant, *question.distractors))
    images_file = need_path(folder, spellings("MMQA_images.jsonl", "images.jsonl", **_ORIGINAL), _ORIGIN)
    images = _images(folder, pool, images_file, json_lines(images_file), "title")
    left_out = {"other type of question": len(rows) - len(asked)}
    return EvaluationSet("multimodalqa", split, images, tuple(questions), TOP_N, left_out)


def _load_reference(folder: Path, path: Path, split: str) -> EvaluationSet:
    questions = check_all(path, json_rows(path), _read_question)
    index = find_path(folder, spellings(f"{path.stem}_index_to_id.json"))
    if index is None:
        pool = unique(image_id for question in questions for image_id in question.relevant)
    else:
        pool = unique(check_all(index, json_rows(index), lambda row: need_id(row.value)))
    metadata_file = need_path(folder, spellings("MMQA_ImageQ_metadata.json"), _REFERENCE_ORIGIN)
    images = _images(folder, pool, metadata_file, json_rows(metadata_file), "caption")
    return EvaluationSet("multimodalqa", split, images, tuple(questions), TOP_N)


def _type(entry: Any) -> str | None:
    """The type of question; None if the row names none."""
    metadata = entry.get("metadata") if isinstance(entry, dict) else None
    kind = metadata.get("type") if isinstance(metadata, dict) else None
    return kind if isinstance(kind, str) else None


def _read_original(row: Record) -> EvaluationQuestion:
    if _type(row.value) is None:
        raise BadRow("'metadata' must be an object with the question's 'type'")
    return _read_question(row)


def _read_question(row: Record) -> EvaluationQuestion:
    entry = need_object(row.value)
    context = [need_object(item) for item in need_list(entry, "supporting_context")]
    right = unique(need_id(item.get("doc_id")) for item in context if item.get("doc_part", "image") == "image")
    if not right:
        raise BadRow("'supporting_context' names no image, so nothing could be found")
    answers = [_answer(item) for item in need_list(entry, "answers")]
    if not answers:
        raise BadRow("'answers' is empty")
    metadata = entry.get("metadata") or {}
    listed = unique(map(need_id, need_object(metadata).get("image_doc_ids") or []))
    return EvaluationQuestion(
        custom_id=need_id(entry.get("qid")),
        answer=answers[0],
        type=_type(entry) or QUESTION_TYPE,
        relevant=right,
        text=need_text(entry, "question"),
        references=tuple(answers),
        distractors=tuple(image_id for image_id in listed if image_id not in right),
    )


def _answer(item: Any) -> str:
    """One accepted answer: an object around it, or as the format's description has it, the bare answer."""
    value = item.get("answer") if isinstance(item, dict) else item
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return str(value)
    return need_text({"answer": value}, "answer")


def _images(
    folder: Path, pool: Sequence[str], metadata_file: Path, rows: Iterable[Record], caption_key: str
) -> tuple[EvaluationImage, ...]:
    """The pool, with file names and captions from the metadata of either form; an entry of JSON lines has an `id`."""

    def read(row: Record) -> tuple[str, tuple[str, str | None]]:
        entry = need_object(row.value)
        image_id = need_id(entry.get("id")) if row.line else row.name
        caption = entry.get(caption_key)
        cleaned = clean_caption(caption) if isinstance(caption, str) else None
        return image_id, (need_text(entry, "path"), cleaned)

    listed = dict(check_all(metadata_file, rows, read))
    unknown = next((image_id for image_id in pool if image_id not in listed), None)
    if unknown is not None:
        raise UsageError(f"{metadata_file} does not describe image {unknown}; do the files belong together?")
    files = {image_id: listed[image_id] for image_id in pool}
    return find_images(need_path(folder, _PICTURE_FOLDERS, _PICTURES_ORIGIN), files, _PICTURES_ORIGIN)
