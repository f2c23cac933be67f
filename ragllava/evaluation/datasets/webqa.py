"""WebQA: questions about one or two images of a large pool, with free answers in categories.

Two forms of its files are read. The original: WebQA_train_val.json with imgs.tsv and imgs.lineidx, splits train and
val. The reference implementation's (RagVL): WebQA_{split}_image.json with its index, caption maps and picture
folders, splits train, dev and test, where test is the original's val. Only questions about images count.

The keywords of the answers (webqa_keywords.py) are what answers are compared with, where there are any.
"""

from __future__ import annotations

import base64
import binascii
from array import array
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ragllava.errors import ImageRejected, RejectionClass, UsageError
from ragllava.evaluation.datasets.files import (
    BadRow,
    find_images,
    find_path,
    json_rows,
    need_id,
    need_list,
    need_number,
    need_object,
    need_path,
    need_text,
    read_map,
    read_text,
    spellings,
    unique,
)
from ragllava.evaluation.datasets.records import EvaluationImage, EvaluationQuestion, EvaluationSet
from ragllava.evaluation.datasets.webqa_keywords import find_keyword_tables, is_placeholder, read_keywords
from ragllava.imaging.decode import MAX_BYTES
from ragllava.metadata import clean_caption
from ragllava.stages.record_files.layouts import Record, check_all

TOP_N = 2
ROWS_PER_SERIES = 10_000_000  # an image's row in imgs.tsv is its id modulo this

_ORIGINAL_ORIGIN = "it is part of the WebQA download (WebQnA/WebQA on GitHub)"
_REFERENCE_ORIGIN = "it is part of the RagVL download (IDEA-FinAI/RagVL on GitHub)"
_ORIGINAL_FOLDERS = ("", "WebQA_data_first_release/")
_ORIGINAL_SPLITS = ("train", "val")
_REFERENCE_SPLITS = ("train", "dev", "test")
_ORIGINAL_NAME_OF = {"test": "val"}  # what the reference calls test is the original's val
_TEXT_QUESTION = "question about text"
_OTHER_SPLIT = "other split"


def load_webqa(folder: Path, split: str) -> EvaluationSet:
    """One split of WebQA from the files in `folder`, in whichever form they are.

    The pool of the original form is every image that a question of the split names, right or wrong; that of the
    reference's form is its index. Keywords of the answers come from the questions' own file, or from the tables of the
    public baseline, if they lie in `folder`; otherwise answers are compared with a sentence. UsageError: a file or
    picture is missing; InvalidInput: rows are wrong.
    """
    reference = find_path(folder, spellings(f"WebQA_{split}_image.json"))
    if reference is not None:
        return _with_keywords(_load_reference(folder, reference, split), folder)
    original = find_path(folder, spellings("WebQA_train_val.json", folders=_ORIGINAL_FOLDERS))
    if original is None:
        raise UsageError(
            f"no questions of WebQA's split {split!r} in {folder}: expected WebQA_train_val.json from the WebQA "
            f"download (splits {' and '.join(_ORIGINAL_SPLITS)}) or datasets/WebQA_{split}_image.json from the RagVL "
            f"download (splits {', '.join(_REFERENCE_SPLITS)})"
        )
    if split not in _ORIGINAL_SPLITS:
        raise UsageError(
            f"{original} has the splits train and val, not {split!r}; the answers of WebQA's own test split are not "
            "public, and what publications on RagVL call test is val"
        )
    return _with_keywords(_load_original(folder, original, split), folder)


def _with_keywords(data: EvaluationSet, folder: Path) -> EvaluationSet:
    """The set with the keywords of the baseline's tables, where its own files have none; and with what was found."""
    tables = find_keyword_tables(folder, _ORIGINAL_NAME_OF.get(data.split, data.split))
    keywords = read_keywords(tables)
    questions = tuple(
        replace(question, answer=keywords[question.custom_id])
        if question.answer in question.references and question.custom_id in keywords
        else question
        for question in data.questions
    )
    count = sum(question.answer not in question.references or question.custom_id in keywords for question in questions)
    source = f"keywords for {count} of {len(questions)} questions"
    if tables:
        source += f", from {', '.join(table.name for table in tables)}"
    if count < len(questions):
        source += "; the sentence for the others"
    return replace(data, questions=questions, answers_from=source)


def unquoted(text: str) -> str:
    """`text` on one line, without the pair of quote marks that WebQA's files put around whole strings.

    Quote marks that belong to the text stay: those of "A" and "B" are two pairs, not one around all.
    """
    line = " ".join(text.split())
    inner = line[1:-1]
    wraps = len(line) >= 2 and line[0] == line[-1] == '"' and not _closes_before_it_opens(inner)
    return " ".join(inner.split()) if wraps else line


def _closes_before_it_opens(text: str) -> bool:
    """Whether the first quote mark ends a quotation: it stands right behind a word or its punctuation."""
    first = text.find('"')
    return first > 0 and not text[first - 1].isspace() and text[first - 1] not in "(["


@dataclass(frozen=True, slots=True)
class TsvPicture:
    """A picture in imgs.tsv, a file of 50 GB: one row of id, tab and base64, found by its offset in bytes."""

    path: Path
    offset: int
    image_id: str

    def read(self) -> bytes:
        """Reads this one row. UsageError: the row is another image's; ImageRejected: it is not base64."""
        try:
            with self.path.open("rb") as file:
                file.seek(self.offset)
                line = file.readline(2 * MAX_BYTES)
        except OSError as error:
            raise UsageError(f"cannot read {self.path}: {error.strerror or error}") from error
        name, _, content = line.partition(b"\t")
        if name.strip() != self.image_id.encode():
            raise UsageError(
                f"{self.path} has image {name[:40].decode(errors='replace')!r} at byte {self.offset}, not "
                f"{self.image_id}; take imgs.tsv and imgs.lineidx from the same download"
            )
        try:
            return base64.b64decode(content.strip(), validate=True)
        except binascii.Error as error:
            raise ImageRejected(RejectionClass.DAMAGED, f"its row in {self.path.name} is not base64: {error}") from None


def _load_original(folder: Path, path: Path, split: str) -> EvaluationSet:
    rows = json_rows(path)
    ours = [row for row in rows if isinstance(row.value, dict) and row.value.get("split") == split]
    broken = [row for row in rows if not isinstance(row.value, dict)]
    asked_about = [row for row in ours if not _is_about_text(row.value)]
    asked = check_all(path, broken + asked_about, _read_original)
    captions: dict[str, str | None] = {}
    for _, own_captions in asked:
        for image_id, caption in own_captions.items():
            captions[image_id] = captions.get(image_id) or caption
    pictures = _tsv_pictures(folder, list(captions))
    return EvaluationSet(
        name="webqa",
        split=split,
        images=tuple(
            EvaluationImage(image_id, caption, picture)
            for (image_id, caption), picture in zip(captions.items(), pictures, strict=True)
        ),
        questions=tuple(question for question, _ in asked),
        top_n=TOP_N,
        left_out={_OTHER_SPLIT: len(rows) - len(ours), _TEXT_QUESTION: len(ours) - len(asked)},
    )


def _is_about_text(entry: dict[str, Any]) -> bool:
    return not entry.get("img_posFacts") and (entry.get("Qcate") == "text" or bool(entry.get("txt_posFacts")))


def _read_original(row: Record) -> tuple[EvaluationQuestion, Mapping[str, str | None]]:
    """The question, and the captions of all images that its row names."""
    entry = need_object(row.value)
    right = [need_object(fact) for fact in need_list(entry, "img_posFacts")]
    wrong = [need_object(fact) for fact in need_list(entry, "img_negFacts")]
    captions = {_number(fact): _caption(fact.get("caption")) for fact in wrong + right}
    return _question(row, entry, unique(map(_number, right)), unique(map(_number, wrong))), captions


def _number(fact: dict[str, Any]) -> str:
    """The image's id as in imgs.tsv; it must be a number, because it tells the row."""
    return need_number(fact.get("image_id"), "'image_id'")


def _question(row: Record, entry: dict[str, Any], right: Sequence[str], wrong: Iterable[str]) -> EvaluationQuestion:
    """The question in either form; `wrong` are images that its row calls wrong."""
    if not right:
        raise BadRow("'img_posFacts' names no image, so nothing could be found")
    references = [unquoted(need_text({"A": answer}, "A")) for answer in need_list(entry, "A")]
    references = [answer for answer in references if not is_placeholder(answer)]
    answer = _keywords(entry) or next(iter(references), "")
    if not answer:
        raise BadRow("'A' holds no answer")
    return EvaluationQuestion(
        custom_id=row.name,
        answer=answer,
        type=need_text(entry, "Qcate"),
        relevant=tuple(right),
        text=unquoted(need_text(entry, "Q")),
        references=tuple(references),
        distractors=tuple(image_id for image_id in wrong if image_id not in right),
    )


def _keywords(entry: dict[str, Any]) -> str | None:
    """Those of the row itself; the original's files have "TBD" there, which is not an answer."""
    for name in ("EM", "Keywords_A"):
        value = entry.get(name)
        text = " ".join(map(str, value)) if isinstance(value, list) else value
        if isinstance(text, str) and not is_placeholder(unquoted(text)):
            return unquoted(text)
    return None


def _caption(value: Any) -> str | None:
    return clean_caption(unquoted(value)) if isinstance(value, str) else None


def _tsv_pictures(folder: Path, image_ids: Sequence[str]) -> list[TsvPicture]:
    table = need_path(
        folder, spellings("imgs.tsv", folders=_ORIGINAL_FOLDERS), f"{_ORIGINAL_ORIGIN}; unpack imgs.7z.001"
    )
    index = need_path(folder, spellings("imgs.lineidx", folders=_ORIGINAL_FOLDERS), _ORIGINAL_ORIGIN)
    offsets = _read_offsets(index)
    if offsets and offsets[-1] >= table.stat().st_size:
        raise UsageError(f"{table} is shorter than {index.name} says; is the unpacking complete?")
    rows = [int(image_id) % ROWS_PER_SERIES for image_id in image_ids]
    beyond = next((number for number, row in enumerate(rows) if row >= len(offsets)), None)
    if beyond is not None:
        raise UsageError(f"image {image_ids[beyond]} should be row {rows[beyond]} of {index}, which has {len(offsets)}")
    return [TsvPicture(table, offsets[row], image_id) for row, image_id in zip(rows, image_ids, strict=True)]


def _read_offsets(path: Path) -> array[int]:
    """The byte at which each row of imgs.tsv begins."""
    rows = (Record(line, text) for line, text in enumerate(read_text(path).split(), start=1))
    return array("q", check_all(path, rows, _read_offset))


def _read_offset(row: Record) -> int:
    if not row.value.isdecimal():
        raise BadRow(f"expected a position in bytes, found {row.value!r:.40}")
    return int(row.value)


def _load_reference(folder: Path, path: Path, split: str) -> EvaluationSet:
    rows = json_rows(path)
    questions = check_all(path, rows, _read_reference)
    index = need_path(folder, spellings(f"WebQA_{split}_image_index_to_id.json"), _REFERENCE_ORIGIN)
    pool = unique(check_all(index, json_rows(index), lambda row: need_id(row.value)))
    captions_file = "WebQA_caption_test.json" if split == "test" else "WebQA_caption_train_dev.json"
    captions = read_map(need_path(folder, spellings(captions_file), _REFERENCE_ORIGIN))
    files = {image_id: (image_id, _caption(captions.get(image_id))) for image_id in pool}
    return EvaluationSet(
        name="webqa",
        split=split,
        images=find_images(_picture_folder(folder, split), files, _REFERENCE_ORIGIN),
        questions=tuple(questions),
        top_n=TOP_N,
    )


def _read_reference(row: Record) -> EvaluationQuestion:
    entry = need_object(row.value)
    facts = need_list(entry, "img_posFacts")
    right = unique(need_id(fact.get("image_id") if isinstance(fact, dict) else fact) for fact in facts)
    if row.name.startswith("entry ") and "Guid" in entry:  # a list instead of an object under guids
        row = replace(row, name=need_id(entry["Guid"]))
    return _question(row, entry, right, wrong=())


def _picture_folder(folder: Path, split: str) -> Path:
    name = "val_image" if split == "test" else "train_img"
    paths = spellings(name, folders=("", "datasets/", "finetune/tasks/", "tasks/", "datasets/tasks/"))
    return need_path(folder, paths, "its pictures come from the WebQA download, under the names that RagVL gives them")
