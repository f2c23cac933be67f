"""Flickr30K and COCO: find the one image that a caption describes (Karpathy's test split, five captions an image).

A caption is the question here, so the images carry none: the one to find would give itself away.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from ragllava.errors import InvalidInput, LineError, UsageError
from ragllava.evaluation.datasets.files import (
    BadRow,
    find_images,
    find_path,
    need_id,
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
from ragllava.stages.record_files import Record, check_all

QUESTION_TYPE = "caption"

_REFERENCE_ORIGIN = "it is part of the RagVL download (IDEA-FinAI/RagVL on GitHub)"
_FLICKR_ORIGIN = "its pictures come from the Flickr30K download"
_COCO_ORIGIN = "its pictures are val2014.zip of the COCO download"
_FLICKR_FOLDERS = ("Images", "flickr30k-images", "finetune/tasks/flickr30k/Images", "tasks/flickr30k/Images", "images")
_COCO_FOLDERS = ("val2014", "finetune/tasks/MSCOCO/val2014", "tasks/MSCOCO/val2014")


def load_flickr30k(folder: Path, split: str) -> EvaluationSet:
    """Flickr30K from flickr30k_{split}_karpathy.txt (or .csv): a CSV of image,caption, with the folder of pictures.

    UsageError: a file or picture is missing; InvalidInput: rows are wrong.
    """
    names = [f"flickr30k_{split}_karpathy{suffix}" for suffix in (".txt", ".csv")]
    path = need_path(folder, spellings(*names), _REFERENCE_ORIGIN)
    pairs = check_all(path, _csv_rows(path), _read_pair)
    file_of = {Path(file_name).stem: file_name for file_name, _ in pairs}
    images = _images(folder, _FLICKR_FOLDERS, file_of, _FLICKR_ORIGIN)
    questions = _questions((Path(file_name).stem, caption) for file_name, caption in pairs)
    return EvaluationSet("flickr30k", split, images, questions, by_caption=True)


def load_coco(folder: Path, split: str) -> EvaluationSet:
    """COCO from coco_{split}_ids.txt and coco_{split}_caps.txt, line by line, with val2014's pictures.

    File names come from coco_{split}_karpathy.json; without it they are COCO's own, COCO_val2014_ and twelve digits.
    UsageError: a file or picture is missing; InvalidInput: rows are wrong.
    """
    ids_file = need_path(folder, spellings(f"coco_{split}_ids.txt"), _REFERENCE_ORIGIN)
    captions_file = need_path(folder, spellings(f"coco_{split}_caps.txt"), _REFERENCE_ORIGIN)
    ids = check_all(ids_file, _lines(ids_file), lambda row: need_number(row.value, "an image id"))
    captions = check_all(captions_file, _lines(captions_file), lambda row: need_text({"caption": row.value}, "caption"))
    if len(ids) != len(captions):
        raise UsageError(
            f"{ids_file} has {len(ids)} lines and {captions_file} has {len(captions)}; they must run in step"
        )
    pool = unique(ids)
    names = _coco_names(find_path(folder, spellings(f"coco_{split}_karpathy.json")), pool)
    images = _images(folder, _COCO_FOLDERS, names, _COCO_ORIGIN)
    return EvaluationSet("coco", split, images, _questions(zip(ids, captions, strict=True)), by_caption=True)


def _csv_rows(path: Path) -> Iterator[Record]:
    """The rows under the header, each with the line where it begins: a quoted caption may span lines."""
    reader = csv.reader(io.StringIO(read_text(path), newline=""))
    header = [name.strip().lower() for name in next(reader, [])]
    if header != ["image", "caption"]:
        message = f"expected the columns image,caption, found {','.join(header)[:80] or 'nothing'}"
        raise InvalidInput(str(path), [LineError("missing_column", 1, message)])
    line = reader.line_num + 1
    for cells in reader:
        if cells:
            yield Record(line, cells)
        line = reader.line_num + 1


def _read_pair(row: Record) -> tuple[str, str]:
    cells: list[str] = row.value
    if len(cells) != 2:
        raise BadRow(f"expected image,caption, found {len(cells)} columns; a caption with commas needs quote marks")
    entry = dict(zip(("image", "caption"), cells, strict=True))
    return need_text(entry, "image"), need_text(entry, "caption")


def _lines(path: Path) -> list[Record]:
    """All lines, also empty ones: the files of COCO have the same order. Nothing follows the last line break."""
    lines = read_text(path).removesuffix("\n").split("\n")
    return [Record(number, text.strip()) for number, text in enumerate(lines, start=1)]


def _coco_names(path: Path | None, pool: Sequence[str]) -> dict[str, str]:
    if path is None:
        return {image_id: f"COCO_val2014_{int(image_id):012d}.jpg" for image_id in pool}
    entries = read_map(path).get("images")
    if not isinstance(entries, list):
        raise UsageError(f"{path} has no list 'images'; {_REFERENCE_ORIGIN}")
    rows = (Record(0, entry, f"entry {number}") for number, entry in enumerate(entries, start=1))
    names = dict(check_all(path, rows, _read_name))
    unknown = next((image_id for image_id in pool if image_id not in names), None)
    if unknown is not None:
        raise UsageError(f"{path} does not name the file of image {unknown}; do the files belong together?")
    return {image_id: names[image_id] for image_id in pool}


def _read_name(row: Record) -> tuple[str, str]:
    entry = need_object(row.value)
    return need_id(entry.get("id")), Path(need_text(entry, "file_name")).name


def _images(
    folder: Path, picture_folders: Sequence[str], file_of: Mapping[str, str], origin: str
) -> tuple[EvaluationImage, ...]:
    """`file_of` maps image ids, in the order of the pool, to file names."""
    files = {image_id: (file_name, None) for image_id, file_name in file_of.items()}
    return find_images(need_path(folder, picture_folders, origin), files, origin)


def _questions(pairs: Iterable[tuple[str, str]]) -> tuple[EvaluationQuestion, ...]:
    """A question for each (image id, caption); its id is Flickr30K's own notation: image#number from 0."""
    seen: dict[str, int] = {}
    questions = []
    for image_id, caption in pairs:
        number = seen[image_id] = seen.get(image_id, -1) + 1
        questions.append(EvaluationQuestion(f"{image_id}#{number}", "", QUESTION_TYPE, (image_id,), caption))
    return tuple(questions)
