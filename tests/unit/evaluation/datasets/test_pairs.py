"""Flickr30K, COCO and the postcards as evaluation sets; what no set may be; pictures that go wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ragllava.errors import InvalidInput, UsageError
from ragllava.evaluation.datasets.load import DATASETS, load_dataset, postcard_set
from ragllava.evaluation.datasets.records import EvaluationImage, EvaluationQuestion, EvaluationSet, FilePicture
from ragllava.imaging.decode import decode
from ragllava.postcards.archive import draw_archive
from tests.support.dataset_fixtures import copied, draw_files


@pytest.fixture
def flickr(tmp_path: Path) -> Path:
    folder = copied("flickr30k", tmp_path)
    draw_files(folder / "finetune/tasks/flickr30k/Images", {"1007129816.jpg": 20, "1009434119.jpg": 220})
    return folder


@pytest.fixture
def coco(tmp_path: Path) -> Path:
    folder = copied("coco", tmp_path)
    names = {"COCO_val2014_000000391895.jpg": 20, "COCO_val2014_000000060623.jpg": 220}
    draw_files(folder / "finetune/tasks/MSCOCO/val2014", names)
    return folder


def _grey(image: EvaluationImage) -> object:
    return decode(image.picture.read()).picture.convert("L").getpixel((4, 3))


def test_flickr30k(flickr: Path) -> None:
    data = load_dataset("flickr30k", flickr, "test")
    assert [(question.custom_id, question.text) for question in data.questions] == [
        ("1007129816#0", "A man with a red hat ."),
        ("1007129816#1", "A man, tall and thin, wears a hat ."),
        ("1007129816#2", 'Somebody says "hello" .'),
        ("1009434119#0", "A dog runs over grass ."),
        ("1009434119#1", "A black dog ."),
    ]
    assert [question.relevant for question in data.questions] == [("1007129816",)] * 3 + [("1009434119",)] * 2
    assert [image.image_id for image in data.images] == ["1007129816", "1009434119"]
    assert [_grey(image) for image in data.images] == pytest.approx([20, 220], abs=2)


def test_captions_to_search_by_are_not_shown(flickr: Path) -> None:
    data = load_dataset("flickr30k", flickr, "test")
    assert data.retrieval_only
    assert data.by_caption
    assert [image.caption for image in data.images] == [None, None]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("image,caption\na.jpg,one, two\n", "line 2: expected image,caption, found 3 columns"),
        ('image,caption\na.jpg,"x\ny"\nb.jpg,\n', "line 4: 'caption' must be text and not empty"),
        ("file|text\n", "line 1: expected the columns image,caption, found file"),
        ("", "line 1: expected the columns image,caption, found nothing"),
    ],
)
def test_wrong_rows_of_flickr30k(flickr: Path, content: str, message: str) -> None:
    (flickr / "datasets" / "flickr30k_test_karpathy.txt").write_text(content)
    with pytest.raises(InvalidInput, match=f"karpathy.txt, {message}"):
        load_dataset("flickr30k", flickr, "test")


def test_coco(coco: Path) -> None:
    data = load_dataset("coco", coco, "test")
    assert [(question.custom_id, question.text, question.relevant) for question in data.questions] == [
        ("391895#0", "A man on a motorbike.", ("391895",)),
        ("391895#1", "Somebody rides a bike.", ("391895",)),
        ("60623#0", "A girl eats, with a fork", ("60623",)),
        ("391895#2", "A bike on a dirt road.", ("391895",)),
    ]
    assert data.by_caption
    assert {image.image_id: _grey(image) for image in data.images} == pytest.approx({"391895": 20, "60623": 220}, abs=2)


def test_coco_by_the_names_of_val2014(coco: Path) -> None:
    (coco / "datasets" / "coco_test_karpathy.json").unlink()
    data = load_dataset("coco", coco, "test")
    names = [image.picture.path.name for image in data.images if isinstance(image.picture, FilePicture)]
    assert names == ["COCO_val2014_000000391895.jpg", "COCO_val2014_000000060623.jpg"]


def karpathy(*images: dict[str, Any]) -> str:
    """A dataset_*.json as Karpathy publishes it."""
    entries = [
        {
            **image,
            "imgid": number,
            "sentids": list(range(len(image["sentences"]))),
            "sentences": [
                {"tokens": raw.lower().strip(" .").split(), "raw": raw, "imgid": number, "sentid": sentence}
                for sentence, raw in enumerate(image["sentences"])
            ],
        }
        for number, image in enumerate(images)
    ]
    return json.dumps({"images": entries, "dataset": "made"})


def test_karpathys_own_file_of_flickr30k(tmp_path: Path) -> None:
    entries = [
        {"filename": "11.jpg", "split": "train", "sentences": ["Not this one ."]},
        {"filename": "12.jpg", "split": "test", "sentences": ["Two dogs , both brown .", "Dogs."]},
        {"filename": "13.jpg", "split": "test", "sentences": ["A mill ."]},
    ]
    (tmp_path / "dataset_flickr30k.json").write_text(karpathy(*entries))
    draw_files(tmp_path / "flickr30k-images", {"12.jpg": 20, "13.jpg": 220})
    data = load_dataset("flickr30k", tmp_path, "test")
    assert [(question.custom_id, question.text) for question in data.questions] == [
        ("12#0", "Two dogs , both brown ."),
        ("12#1", "Dogs."),
        ("13#0", "A mill ."),
    ]
    assert {image.image_id: _grey(image) for image in data.images} == pytest.approx({"12": 20, "13": 220}, abs=2)
    with pytest.raises(UsageError, match=r"dataset_flickr30k\.json has no split 'val', but train, test"):
        load_dataset("flickr30k", tmp_path, "val")


def test_karpathys_own_file_of_coco(tmp_path: Path) -> None:
    """Its split restval is for training; test and val are of val2014."""
    name = "COCO_val2014_000000391895.jpg"
    entries = [
        {"filepath": "val2014", "filename": name, "cocoid": 391895, "split": "test", "sentences": ["A bike.", "Road."]},
        {
            "filepath": "train2014",
            "filename": "train_7.jpg",
            "cocoid": 7,
            "split": "train",
            "sentences": ["x"],
        },
    ]
    (tmp_path / "datasets").mkdir()
    (tmp_path / "datasets" / "dataset_coco.json").write_text(karpathy(*entries))
    draw_files(tmp_path / "val2014", {name: 20})
    draw_files(tmp_path / "train2014", {"train_7.jpg": 220})
    data = load_dataset("coco", tmp_path, "test")
    assert [(question.custom_id, question.text) for question in data.questions] == [
        ("391895#0", "A bike."),
        ("391895#1", "Road."),
    ]
    assert data.by_caption
    train = load_dataset("coco", tmp_path, "train")
    assert {image.image_id: _grey(image) for image in train.images} == pytest.approx({"7": 220}, abs=2)


def test_cocos_own_captions(tmp_path: Path) -> None:
    content = {
        "info": {"year": 2017},
        "licenses": [],
        "images": [{"id": 9, "file_name": "000000000009.jpg", "height": 6}, {"id": 5, "file_name": "000000000005.jpg"}],
        "annotations": [
            {"image_id": 5, "id": 1, "caption": "A mill\n"},
            {"image_id": 9, "id": 2, "caption": "A barn."},
            {"image_id": 5, "id": 3, "caption": "A mill at night."},
        ],
    }
    (tmp_path / "annotations").mkdir()
    path = tmp_path / "annotations" / "captions_val2017.json"
    path.write_text(json.dumps(content))
    draw_files(tmp_path / "val2017", {"000000000009.jpg": 20, "000000000005.jpg": 220})
    data = load_dataset("coco", tmp_path, "val2017")
    assert [(question.custom_id, question.text) for question in data.questions] == [
        ("9#0", "A barn."),
        ("5#0", "A mill"),
        ("5#1", "A mill at night."),
    ]
    assert {image.image_id: _grey(image) for image in data.images} == pytest.approx({"9": 20, "5": 220}, abs=2)
    path.write_text(json.dumps({**content, "annotations": [{"image_id": 4, "caption": "x"}]}))
    with pytest.raises(InvalidInput, match="annotations, entry 1: 'image_id' 4 is not among 'images'"):
        load_dataset("coco", tmp_path, "val2017")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("coco_test_ids.txt", "391895\n60623\n", "has 2 lines and .*caps.txt has 4"),
        ("coco_test_ids.txt", "391895\n391895\nx\n391895\n", "ids.txt, line 3: an image id must be a whole number"),
        ("coco_test_caps.txt", "one\n\nthree\nfour\n", "caps.txt, line 2: 'caption' must be text and not empty"),
        ("coco_test_karpathy.json", '{"images": []}', "does not name the file of image 391895"),
        ("coco_test_karpathy.json", "{}", "has no list 'images'"),
        ("coco_test_karpathy.json", '{"images": [{"id": 1}]}', "entry 1: 'file_name' must be text"),
    ],
)
def test_wrong_files_of_coco(coco: Path, name: str, content: str, message: str) -> None:
    (coco / "datasets" / name).write_text(content)
    with pytest.raises(UsageError, match=message):
        load_dataset("coco", coco, "test")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("flickr30k", r"flickr30k_test_karpathy\.txt is missing .*RagVL"),
        ("coco", r"coco_test_ids\.txt is missing .*RagVL"),
        ("webqa", r"no questions of WebQA's split 'test'"),
        ("multimodalqa", r"no questions of MultimodalQA's split 'test'"),
    ],
)
def test_an_empty_folder(tmp_path: Path, name: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        load_dataset(name, tmp_path, "test")


def test_missing_pictures_are_counted(flickr: Path) -> None:
    (flickr / "finetune/tasks/flickr30k/Images/1009434119.jpg").unlink()
    with pytest.raises(UsageError, match=r"1 of 2 pictures are missing in .*Images, first 1009434119\.jpg"):
        load_dataset("flickr30k", flickr, "test")


def test_a_picture_that_goes_away_after_loading(flickr: Path) -> None:
    data = load_dataset("flickr30k", flickr, "test")
    (flickr / "finetune/tasks/flickr30k/Images/1009434119.jpg").unlink()
    with pytest.raises(UsageError, match=r"cannot read the picture .*1009434119\.jpg"):
        data.images[1].picture.read()


def test_postcards() -> None:
    data = load_dataset("postcards", None, "test", seed=5)
    archive = draw_archive(5, 1000, 300)
    assert (len(data.images), len(data.questions), data.top_n) == (1000, 300, 2)
    assert sum(len(question.relevant) == 2 for question in data.questions) == 60
    assert [question.text for question in data.questions] == [question.text for question in archive.questions]
    last = archive.postcards[-1]
    assert (data.images[-1].image_id, data.images[-1].caption) == (last.file_name, last.caption)
    drawn = decode(data.images[-1].picture.read()).picture
    assert drawn.tobytes() == last.draw().pixels.tobytes()
    assert not data.by_caption


def test_a_smaller_archive_of_postcards() -> None:
    data = load_dataset("postcards", None, "test", seed=5, images=50)
    assert (len(data.images), len(data.questions)) == (50, 300)
    with pytest.raises(UsageError, match="coco is not drawn but read from files; omit --images"):
        load_dataset("coco", Path(), "test", images=50)


def test_postcards_differ_by_seed_and_split() -> None:
    sets = [
        postcard_set(draw_archive(seed, 20, 5, split=split), split) for seed in (1, 2) for split in ("train", "test")
    ]
    assert len({tuple(image.caption for image in data.images) for data in sets}) == 4


@pytest.mark.parametrize(
    ("name", "folder", "split", "message"),
    [
        ("imagenet", None, "test", f"no data set is called 'imagenet'; there are {', '.join(DATASETS)}"),
        ("postcards", None, "val", "the postcards have no split 'val'; use train or test"),
        ("coco", None, "test", "coco is not drawn but read from files; name its folder"),
        ("coco", Path("/no/such/folder"), "test", "/no/such/folder is not a folder"),
    ],
)
def test_what_cannot_be_loaded(name: str, folder: Path | None, split: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        load_dataset(name, folder, split)


def test_sets_that_would_give_wrong_figures_are_refused() -> None:
    image = EvaluationImage("a", None, FilePicture(Path("a.png")))
    question = EvaluationQuestion("q", "yes", "YesNo", ("a",), "Is it?")
    with pytest.raises(UsageError, match="image a occurs 2 times"):
        EvaluationSet("s", "test", (image, image), (question,))
    with pytest.raises(UsageError, match="question q occurs 2 times"):
        EvaluationSet("s", "test", (image,), (question, question))
    with pytest.raises(UsageError, match="no question to evaluate with"):
        EvaluationSet("s", "test", (image,), ())
    with pytest.raises(UsageError, match="image a of question q is not among the images"):
        EvaluationSet("s", "test", (), (question,))
