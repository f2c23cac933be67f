"""Flickr30K and COCO: find the one image that a caption describes (Karpathy's test split, five captions an image).

Several forms of their files are read: Karpathy's own dataset_flickr30k.json and dataset_coco.json, which hold all
splits; COCO's own captions_val2014.json and its like, whose split is their name; and the files of the reference
implementation (RagVL) or of the CSV from Kaggle.

A caption is the question here, so the images carry none: the one to find would give itself away.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ragllava.errors import InvalidInput, LineError, UsageError
from ragllava.evaluation.datasets.files import (
    BadRow,
    find_images,
    find_path,
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
from ragllava.stages.record_files.layouts import Record, check_all

QUESTION_TYPE = "caption"

_REFERENCE_ORIGIN = "it is part of the RagVL download (IDEA-FinAI/RagVL on GitHub)"
_FLICKR_ORIGIN = "its pictures come from the Flickr30K download"
_COCO_ORIGIN = "its pictures are val2014.zip of the COCO download"
_KARPATHY_ORIGIN = "it is part of Karpathy's caption_datasets.zip or of the RagVL download (IDEA-FinAI/RagVL on GitHub)"
_FLICKR_FOLDERS = ("Images", "flickr30k-images", "finetune/tasks/flickr30k/Images", "tasks/flickr30k/Images", "images")
_COCO_FOLDERS = ("val2014", "finetune/tasks/MSCOCO/val2014", "tasks/MSCOCO/val2014")


def load_flickr30k(folder: Path, split: str) -> EvaluationSet:
    """Flickr30K from flickr30k_{split}_karpathy.txt (or .csv), a CSV of image,caption, or from dataset_flickr30k.json;
    with the folder of pictures.

    UsageError: a file or picture is missing; InvalidInput: rows are wrong.
    """
    names = [f"flickr30k_{split}_karpathy{suffix}" for suffix in (".txt", ".csv")]
    path = need_path(folder, [*spellings(*names), *spellings("dataset_flickr30k.json")], _KARPATHY_ORIGIN)
    if path.suffix == ".json":
        described = _read_karpathy(path, split)
        files = {Path(image.file_name).stem: image.file_name for image in described}
        captions = [(Path(image.file_name).stem, caption) for image in described for caption in image.captions]
        images = _images(folder, _FLICKR_FOLDERS, files, _FLICKR_ORIGIN)
        return EvaluationSet("flickr30k", split, images, _questions(captions), by_caption=True)
    pairs = check_all(path, _csv_rows(path), _read_pair)
    file_of = {Path(file_name).stem: file_name for file_name, _ in pairs}
    images = _images(folder, _FLICKR_FOLDERS, file_of, _FLICKR_ORIGIN)
    questions = _questions((Path(file_name).stem, caption) for file_name, caption in pairs)
    return EvaluationSet("flickr30k", split, images, questions, by_caption=True)


def load_coco(folder: Path, split: str) -> EvaluationSet:
    """COCO from coco_{split}_ids.txt and coco_{split}_caps.txt, line by line, with val2014's pictures; or from
    dataset_coco.json; or, of a split such as val2014, from captions_val2014.json with the pictures in val2014.

    File names of the first form come from coco_{split}_karpathy.json; without it they are COCO's own, COCO_val2014_ and
    twelve digits.
    UsageError: a file or picture is missing; InvalidInput: rows are wrong.
    """
    ids_file = find_path(folder, spellings(f"coco_{split}_ids.txt"))
    if ids_file is None:
        return _load_coco_original(folder, split)
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


@dataclass(frozen=True, slots=True)
class _DescribedImage:
    """An image of one split. `folder` is that of COCO's download (val2014), None where there is one folder for all."""

    image_id: str
    file_name: str
    captions: tuple[str, ...]
    folder: str | None


def _load_coco_original(folder: Path, split: str) -> EvaluationSet:
    own = find_path(folder, spellings(f"captions_{split}.json", folders=("", "annotations/", "datasets/")))
    if own is not None:
        described = _read_coco(own, split)
    else:
        names = [*spellings(f"coco_{split}_ids.txt"), *spellings("dataset_coco.json")]
        described = _read_karpathy(need_path(folder, names, _KARPATHY_ORIGIN), split)
    captions = [(image.image_id, caption) for image in described for caption in image.captions]
    images: list[EvaluationImage] = []
    for name in unique(image.folder or "val2014" for image in described):
        files = {image.image_id: image.file_name for image in described if (image.folder or "val2014") == name}
        paths = [path.replace("val2014", name) for path in _COCO_FOLDERS]
        images += _images(folder, paths, files, _COCO_ORIGIN.replace("val2014", name))
    return EvaluationSet("coco", split, tuple(images), _questions(captions), by_caption=True)


def _read_karpathy(path: Path, split: str) -> list[_DescribedImage]:
    """The images of one split of a dataset_*.json, with the captions as they were written."""
    entries = _entries(path, "images")
    splits = unique(str(entry.value.get("split")) for entry in entries if isinstance(entry.value, dict))
    if split not in splits:
        raise UsageError(f"{path} has no split {split!r}, but {', '.join(splits) or 'no images'}")

    def read(row: Record) -> _DescribedImage:
        entry = need_object(row.value)
        file_name = need_text(entry, "filename")
        captions = tuple(need_text(need_object(sentence), "raw") for sentence in need_list(entry, "sentences"))
        image_id = need_id(entry["cocoid"]) if "cocoid" in entry else Path(file_name).stem
        folder = need_text(entry, "filepath") if "filepath" in entry else None
        return _DescribedImage(image_id, file_name, captions, folder)

    wanted = [row for row in entries if not isinstance(row.value, dict) or row.value.get("split") == split]
    return check_all(path, wanted, read)


def _read_coco(path: Path, split: str) -> list[_DescribedImage]:
    """The images of a captions_*.json with their captions, in the order of the images."""
    names = dict(check_all(path, _entries(path, "images"), _read_name))

    def read(row: Record) -> tuple[str, str]:
        entry = need_object(row.value)
        image_id = need_id(entry.get("image_id"))
        if image_id not in names:
            raise BadRow(f"'image_id' {image_id} is not among 'images'")
        return image_id, need_text(entry, "caption")

    captions: dict[str, list[str]] = {image_id: [] for image_id in names}
    for image_id, caption in check_all(path, _entries(path, "annotations"), read):
        captions[image_id].append(caption)
    return [_DescribedImage(i, name, tuple(captions[i]), split) for i, name in names.items()]


def _entries(path: Path, key: str) -> list[Record]:
    """The entries of the list under `key`."""
    entries = read_map(path).get(key)
    if not isinstance(entries, list):
        raise UsageError(f"{path} has no list {key!r}; {_KARPATHY_ORIGIN}")
    return [Record(0, entry, f"{key}, entry {number}") for number, entry in enumerate(entries, start=1)]


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
    names = dict(check_all(path, _entries(path, "images"), _read_name))
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
