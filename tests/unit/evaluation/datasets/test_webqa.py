"""WebQA in its original form and in the reference's, against rows written by hand."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from ragllava.errors import ImageRejected, InvalidInput, UsageError
from ragllava.evaluation.datasets.load import load_dataset
from ragllava.evaluation.datasets.records import EvaluationSet
from ragllava.evaluation.datasets.webqa import TsvPicture, unquoted
from ragllava.evaluation.metrics import webqa_score
from ragllava.imaging.decode import decode
from tests.support.dataset_fixtures import copied, draw_files, write_tsv

COLOR = "d5bbc7c80dba11ecb1e81171463288e9"
CHOOSE = "d5bbc8720dba11ecb1e81171463288e9"
YES_NO = "d5bbd6640dba11ecb1e81171463288e9"
GREYS = {30_000_000 + row: 40 * row for row in range(5)}


@pytest.fixture
def original(tmp_path: Path) -> Path:
    folder = copied("webqa", tmp_path)
    write_tsv(folder, GREYS)
    return folder


@pytest.fixture
def reference(tmp_path: Path) -> Path:
    folder = copied("webqa_ragvl", tmp_path)
    draw_files(folder / "datasets" / "val_image", {f"{image_id}.png": grey for image_id, grey in GREYS.items()})
    draw_files(folder / "finetune" / "tasks" / "train_img", {"30000004.jpeg": 160})
    return folder


def _greys(data: EvaluationSet) -> dict[str, Any]:
    """What each picture shows: the one grey it was drawn in."""
    pictures = {image.image_id: decode(image.picture.read()).picture for image in data.images}
    return {image_id: picture.convert("L").getpixel((4, 3)) for image_id, picture in pictures.items()}


def _change(path: Path, *keys: Any, value: Any) -> None:
    """Sets one value deep inside a JSON file."""
    content = json.loads(path.read_text())
    inner = content
    for key in keys[:-1]:
        inner = inner[key]
    inner[keys[-1]] = value
    path.write_text(json.dumps(content))


def test_original_questions(original: Path) -> None:
    data = load_dataset("webqa", original, "val")
    color, choose = data.questions
    assert (color.custom_id, color.type, color.relevant) == (COLOR, "color", ("30000000",))
    assert color.text == "What color is the door of the old lighthouse in Port Ansel?"
    assert color.answer == "The door of the old lighthouse is red."
    assert color.distractors == ("30000001", "30000003")
    assert choose.text == 'Which has more windows, the "new" lighthouse or Harlow Mill?'
    assert choose.references == ("Harlow Mill has more windows.", "The mill.")
    assert choose.relevant == ("30000001", "30000002")
    assert choose.distractors == ("30000003",)  # the row calls 30000002 wrong as well as right
    assert data.left_out == {"other split": 1, "question about text": 1}
    assert (data.top_n, data.retrieval_only) == (2, False)


def test_the_category_chooses_the_measure(original: Path) -> None:
    color = load_dataset("webqa", original, "val").questions[0]
    assert webqa_score("A red one", color.answer, color.type) == 1.0
    assert webqa_score("blue", color.answer, color.type) == 0.0


def test_original_pool_is_what_the_image_questions_name(original: Path) -> None:
    data = load_dataset("webqa", original, "val")
    captions = {image.image_id: image.caption for image in data.images}
    assert captions == {
        "30000000": "The old lighthouse of Port Ansel, seen from the pier",
        "30000001": "The new lighthouse of Port Ansel",
        "30000002": "Harlow Mill",
        "30000003": "The market hall of Norwick",  # its first row has none
    }
    assert _greys(data) == {str(image_id): GREYS[image_id] for image_id in GREYS if image_id != 30_000_004}


def test_original_train_split(original: Path) -> None:
    data = load_dataset("webqa", original, "train")
    assert [question.custom_id for question in data.questions] == [YES_NO]
    assert _greys(data) == {"30000004": 160, "30000003": 120}


def test_keywords_of_the_answer_go_before_the_sentence(original: Path) -> None:
    _change(original / "WebQA_train_val.json", COLOR, "Keywords_A", value='"red"')
    assert load_dataset("webqa", original, "val").questions[0].answer == "red"


def test_a_picture_is_read_by_its_row_alone(original: Path) -> None:
    """Behind the row of 30000002 the file is overwritten: what is not needed is not read."""
    data = load_dataset("webqa", original, "val")
    picture = data.images[[image.image_id for image in data.images].index("30000002")].picture
    assert isinstance(picture, TsvPicture)
    table = original / "imgs.tsv"
    content = table.read_bytes()
    end = content.index(b"\n", picture.offset) + 1
    table.write_bytes(b"\xff" * picture.offset + content[picture.offset : end] + b"\xff" * (len(content) - end))
    assert Image.open(io.BytesIO(picture.read())).getpixel((0, 0)) == 80


def test_tsv_and_offsets_must_belong_together(original: Path) -> None:
    write_tsv(original, {30_000_001: 1, 30_000_000: 2, 30_000_002: 0, 30_000_003: 0})
    data = load_dataset("webqa", original, "val")
    with pytest.raises(UsageError, match=r"has image '30000001' at byte 0, not 30000000; take imgs\.tsv and"):
        data.images[[image.image_id for image in data.images].index("30000000")].picture.read()


def test_a_row_that_is_no_base64_is_a_rejected_picture(original: Path) -> None:
    table = original / "imgs.tsv"
    content = table.read_bytes()
    table.write_bytes(content[:9] + b"?" + content[10:])
    data = load_dataset("webqa", original, "val")
    with pytest.raises(ImageRejected, match=r"row in imgs\.tsv is not base64"):
        data.images[[image.image_id for image in data.images].index("30000000")].picture.read()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("imgs.tsv", r"imgs\.tsv is missing .*WebQnA/WebQA.*unpack imgs\.7z\.001"),
        ("imgs.lineidx", r"imgs\.lineidx is missing .*WebQnA/WebQA"),
        ("WebQA_train_val.json", r"expected WebQA_train_val\.json .* or datasets/WebQA_val_image\.json"),
    ],
)
def test_missing_original_files_are_named(original: Path, name: str, message: str) -> None:
    (original / name).unlink()
    with pytest.raises(UsageError, match=message):
        load_dataset("webqa", original, "val")


def test_half_a_download_is_noticed(original: Path) -> None:
    table = original / "imgs.tsv"
    table.write_bytes(table.read_bytes()[:300])
    with pytest.raises(UsageError, match=r"imgs\.tsv is shorter than imgs\.lineidx says"):
        load_dataset("webqa", original, "val")
    write_tsv(original, {30_000_000: 0, 30_000_001: 0})
    with pytest.raises(UsageError, match=r"image 3000000\d should be row \d of .*imgs\.lineidx, which has 2"):
        load_dataset("webqa", original, "val")
    (original / "imgs.lineidx").write_text("0\nabc\n")
    with pytest.raises(InvalidInput, match=r"imgs\.lineidx, line 2: expected a position in bytes, found 'abc'"):
        load_dataset("webqa", original, "val")
    (original / "WebQA_train_val.json").write_text('{"a":\n')
    with pytest.raises(InvalidInput, match=r"WebQA_train_val\.json, line 2: the file is not JSON"):
        load_dataset("webqa", original, "val")


@pytest.mark.parametrize("split", ["test", "dev"])
def test_splits_that_the_original_does_not_give(original: Path, split: str) -> None:
    with pytest.raises(UsageError, match="has the splits train and val"):
        load_dataset("webqa", original, split)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("Q", 7, "'Q' must be text and not empty, found 7"),
        ("A", [], "'A' holds no answer"),
        ("A", "red", "'A' must be a list"),
        ("Qcate", None, "'Qcate' must be text"),
        ("img_posFacts", [{"image_id": "x1"}], "'image_id' must be a whole number, found 'x1'"),
        ("img_posFacts", [3], "expected a JSON object, found 3"),
        ("img_posFacts", [], "'img_posFacts' names no image"),
    ],
)
def test_wrong_rows_are_named_by_guid(original: Path, key: str, value: Any, message: str) -> None:
    _change(original / "WebQA_train_val.json", CHOOSE, key, value=value)
    with pytest.raises(InvalidInput, match=f"{CHOOSE}: {message}") as caught:
        load_dataset("webqa", original, "val")
    assert [error.custom_id for error in caught.value.errors] == [CHOOSE]


def test_all_wrong_rows_are_reported(original: Path) -> None:
    for guid in (COLOR, CHOOSE):
        _change(original / "WebQA_train_val.json", guid, "A", value=None)
    with pytest.raises(InvalidInput, match="1 more invalid lines") as caught:
        load_dataset("webqa", original, "val")
    assert [error.custom_id for error in caught.value.errors] == [COLOR, CHOOSE]


def test_reference_form(reference: Path) -> None:
    data = load_dataset("webqa", reference, "test")
    color, choose = data.questions
    assert (color.answer, color.text) == ("red", "What color is the door of the old lighthouse in Port Ansel?")
    assert (choose.answer, choose.relevant) == ("Harlow Mill has more windows.", ("30000001", "30000002"))
    assert [(image.image_id, image.caption) for image in data.images] == [
        ("30000000", "The old lighthouse of Port Ansel, seen from the pier"),
        ("30000001", "The new lighthouse of Port Ansel"),
        ("30000002", "Harlow Mill"),
        ("30000003", None),  # not in the caption map
    ]
    assert _greys(data) == {"30000000": 0, "30000001": 40, "30000002": 80, "30000003": 120}


def test_reference_form_as_a_list_with_bare_ids_and_jpeg(reference: Path) -> None:
    data = load_dataset("webqa", reference, "train")
    (question,) = data.questions
    assert (question.custom_id, question.relevant) == (YES_NO, ("30000004",))
    assert _greys(data)["30000004"] == pytest.approx(160, abs=2)


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("datasets/WebQA_test_image_index_to_id.json", r"index_to_id\.json is missing .*RagVL"),
        ("datasets/WebQA_caption_test.json", r"WebQA_caption_test\.json is missing .*RagVL"),
        ("datasets/val_image/30000002.png", "1 of 4 pictures are missing in .*val_image, first 30000002"),
    ],
)
def test_missing_reference_files_are_named(reference: Path, path: str, message: str) -> None:
    (reference / path).unlink()
    with pytest.raises(UsageError, match=message):
        load_dataset("webqa", reference, "test")


def test_a_labelled_image_outside_the_pool_is_refused(reference: Path) -> None:
    index = reference / "datasets" / "WebQA_test_image_index_to_id.json"
    index.write_text(json.dumps({"0": 30_000_000, "1": 30_000_001}))
    with pytest.raises(UsageError, match=f"image 30000002 of question {CHOOSE} is not among the images"):
        load_dataset("webqa", reference, "test")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('"What is it?"', "What is it?"),
        ("What is it?", "What is it?"),
        ('  "two\nlines "', "two lines"),
        ('"Is the "A" red?"', 'Is the "A" red?'),
        ('""A" is red."', '"A" is red.'),
        ('"Is ("A") red?"', 'Is ("A") red?'),
        ('"A" and "B"', '"A" and "B"'),
        ('"', '"'),
        ('""', ""),
        ("", ""),
    ],
)
def test_quote_marks_around_whole_strings(text: str, expected: str) -> None:
    assert unquoted(text) == expected
