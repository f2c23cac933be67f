"""MultimodalQA in its original form and in the reference's, against rows written by hand."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from ragllava.errors import InvalidInput, UsageError
from ragllava.evaluation.datasets.load import load_dataset
from ragllava.evaluation.datasets.records import EvaluationSet, FilePicture
from ragllava.imaging.decode import decode
from tests.support.dataset_fixtures import copied, draw_files

PICTURES = {"Flag of Norwick.jpg": 10, "Port, Ansel.png": 90, "Harlow.gif": 170, "Ashby.tif": 250}


@pytest.fixture
def original(tmp_path: Path) -> Path:
    folder = copied("multimodalqa", tmp_path)
    for name in ("MMQA_dev.jsonl", "MMQA_images.jsonl"):
        _pack(folder / name)
    draw_files(folder / "final_dataset_images", PICTURES)
    return folder


@pytest.fixture
def reference(tmp_path: Path) -> Path:
    folder = copied("multimodalqa_ragvl", tmp_path)
    draw_files(folder / "finetune" / "tasks" / "MMQA_imgs", PICTURES)
    return folder


def _pack(path: Path) -> None:
    path.with_name(f"{path.name}.gz").write_bytes(gzip.compress(path.read_bytes()))
    path.unlink()


def _rewrite(path: Path, line: int, **changes: Any) -> None:
    """Changes keys of one line of a packed JSONL file; None removes the key."""
    lines = [json.loads(text) for text in gzip.decompress(path.read_bytes()).decode().splitlines()]
    lines[line - 1] = {key: value for key, value in (lines[line - 1] | changes).items() if value is not None}
    path.write_bytes(gzip.compress("\n".join(map(json.dumps, lines)).encode()))


def _shown(data: EvaluationSet) -> dict[str, Any]:
    pictures = {image.image_id: decode(image.picture.read()).picture for image in data.images}
    return {image_id: picture.convert("L").getpixel((4, 3)) for image_id, picture in pictures.items()}


def test_original_questions_are_the_image_questions(original: Path) -> None:
    data = load_dataset("multimodalqa", original, "dev")
    flag, towers = data.questions
    assert (flag.custom_id, flag.answer, flag.type, flag.relevant) == ("q01", "lion", "ImageQ", ("aa01",))
    assert flag.text == "What animal is on the flag of Norwick?"
    assert flag.distractors == ("bb02", "cc03")
    assert (towers.custom_id, towers.answer, towers.references) == ("q02", "3", ("3",))
    assert data.left_out == {"other type of question": 2}
    assert (data.top_n, data.retrieval_only) == (1, False)


def test_original_pool_in_all_its_formats(original: Path) -> None:
    data = load_dataset("multimodalqa", original, "dev")
    titles = {image.image_id: image.caption for image in data.images}
    assert titles == {"aa01": "Flag of Norwick", "bb02": "Port Ansel", "cc03": "Harlow", "dd04": "Ashby"}
    assert _shown(data) == pytest.approx({"aa01": 10, "bb02": 90, "cc03": 170, "dd04": 250}, abs=2)
    pictures = [image.picture for image in data.images]
    assert all(isinstance(picture, FilePicture) for picture in pictures)


@pytest.mark.parametrize("name", ["MMQA_dev.jsonl", "MMQA_dev.jsonl.gz", "MultiModalQA_dev.jsonl.gz"])
def test_files_that_somebody_unpacked_or_renamed(original: Path, name: str) -> None:
    """A browser may unpack a file and leave .gz in its name."""
    packed = original / "MMQA_dev.jsonl.gz"
    plain = gzip.decompress(packed.read_bytes())
    packed.unlink()
    (original / name).write_bytes(plain)
    assert len(load_dataset("multimodalqa", original, "dev").questions) == 2


def test_a_converted_picture_is_found_under_its_new_suffix(original: Path) -> None:
    pictures = original / "final_dataset_images"
    (pictures / "Ashby.tif").unlink()
    draw_files(pictures, {"Ashby.png": 200})
    assert _shown(load_dataset("multimodalqa", original, "dev"))["dd04"] == 200


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"answers": []}, "'answers' is empty"),
        ({"answers": None}, "'answers' must be a list, found None"),
        ({"question": " "}, "'question' must be text"),
        ({"supporting_context": [{"doc_id": "tt09", "doc_part": "text"}]}, "'supporting_context' names no image"),
        ({"metadata": "ImageQ"}, "'metadata' must be an object with the question's 'type'"),
        ({"qid": None}, "an id must be a number or text, found None"),
    ],
)
def test_wrong_rows_are_named_by_line(original: Path, changes: dict[str, Any], message: str) -> None:
    _rewrite(original / "MMQA_dev.jsonl.gz", 3, **changes)
    with pytest.raises(InvalidInput, match=rf"MMQA_dev\.jsonl\.gz, line 3: {message}"):
        load_dataset("multimodalqa", original, "dev")


def test_bare_answers_as_in_the_description_of_the_format(original: Path) -> None:
    _rewrite(original / "MMQA_dev.jsonl.gz", 1, answers=["lion", 1234567, 2.0, 2.5])
    question = load_dataset("multimodalqa", original, "dev").questions[0]
    assert question.references == ("lion", "1234567", "2", "2.5")


def test_a_line_that_is_no_json(original: Path) -> None:
    (original / "MMQA_images.jsonl.gz").write_bytes(gzip.compress(b'{"id": "aa01"\n'))
    with pytest.raises(InvalidInput, match=r"MMQA_images\.jsonl\.gz, line 1: the line is not valid JSON"):
        load_dataset("multimodalqa", original, "dev")


def test_half_a_gzip_file(original: Path) -> None:
    packed = original / "MMQA_dev.jsonl.gz"
    packed.write_bytes(packed.read_bytes()[:-20])
    with pytest.raises(UsageError, match=r"cannot read .*MMQA_dev\.jsonl\.gz.*is the download complete"):
        load_dataset("multimodalqa", original, "dev")


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("MMQA_dev.jsonl.gz", r"expected MMQA_dev\.jsonl\.gz .* or datasets/MMQA_dev_image\.json"),
        ("MMQA_images.jsonl.gz", r"MMQA_images\.jsonl\.gz is missing .*allenai/multimodalqa"),
        ("final_dataset_images/Harlow.gif", r"1 of 4 pictures are missing in .*, first Harlow\.gif; unpack final_"),
    ],
)
def test_missing_original_files_are_named(original: Path, path: str, message: str) -> None:
    (original / path).unlink()
    with pytest.raises(UsageError, match=message):
        load_dataset("multimodalqa", original, "dev")


def test_the_test_split_has_no_answers(original: Path) -> None:
    (original / "MMQA_dev.jsonl.gz").rename(original / "MMQA_test.jsonl.gz")
    with pytest.raises(UsageError, match=r"has no answers.*take the split dev"):
        load_dataset("multimodalqa", original, "test")


def test_reference_form(reference: Path) -> None:
    data = load_dataset("multimodalqa", reference, "test")
    assert [(question.custom_id, question.answer) for question in data.questions] == [("q01", "lion"), ("q02", "3")]
    captions = {image.image_id: image.caption for image in data.images}
    assert captions == {
        "aa01": "Flag of Norwick, on a seal",
        "bb02": "Port Ansel, on a seal",
        "cc03": "Harlow, on a seal",
    }
    assert _shown(data) == pytest.approx({"aa01": 10, "bb02": 90, "cc03": 170}, abs=2)


def test_reference_form_without_index_and_under_its_older_name(reference: Path) -> None:
    datasets = reference / "datasets"
    (datasets / "MMQA_test_image_index_to_id.json").unlink()
    (datasets / "MMQA_test_image.json").rename(datasets / "MMQA_test_ImageQ.json")
    data = load_dataset("multimodalqa", reference, "test")
    assert [image.image_id for image in data.images] == ["aa01", "bb02"]


def test_an_image_without_metadata_is_named(reference: Path) -> None:
    (reference / "datasets" / "MMQA_test_image_index_to_id.json").write_text('["aa01", "bb02", "zz99"]')
    with pytest.raises(UsageError, match=r"MMQA_ImageQ_metadata\.json does not describe image zz99"):
        load_dataset("multimodalqa", reference, "test")


def test_a_caption_may_be_missing(reference: Path) -> None:
    (reference / "datasets" / "MMQA_test_image_index_to_id.json").write_text('["aa01", "bb02", "dd04"]')
    assert load_dataset("multimodalqa", reference, "test").images[2].caption is None
