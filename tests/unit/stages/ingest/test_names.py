"""Which caption belongs to which file."""

from __future__ import annotations

import unicodedata

import pytest

from ragllava.stages.ingest.captions import Captions


def assigned(captions: dict[str, str], sources: list[str], folder: str = "") -> dict[str, str | None]:
    book = Captions(captions)
    found = book.assign(sources, [f"{folder}{source}" for source in sources])
    return {source: said.caption for source, said in zip(sources, found, strict=True)}


@pytest.mark.parametrize(
    ("caption", "source"),
    [
        ("trip/a.png", "trip/a.png"),
        (".\\trip\\a.png", "trip/a.png"),
        ("a.png", "trip/a.png"),
        ("trip/a.png", "2019/trip/a.png"),
        ("/srv/ada/pictures/trip/a.png", "trip/a.png"),
        ("C:\\pictures\\a.png", "a.png"),
        ("trip/a.png", "trip.zip/trip/a.png"),
        (unicodedata.normalize("NFD", "Schl\u00f6\u00df.png"), "Schl\u00f6\u00df.png"),
        ("A.PNG", "a.png"),
        ("STRASSE.png", "Stra\u00dfe.png"),
        ("my%20trip/a.png", "My Trip/a.png"),
        ("trip/a", "trip/a.png"),
        ("000007", "00000.tar/000007.jpg"),
    ],
)
def test_names_that_fit(caption: str, source: str) -> None:
    assert assigned({caption: "caption"}, [source, "other.png"]) == {source: "caption", "other.png": None}


@pytest.mark.parametrize(
    ("caption", "source"),
    [
        ("2019/a.png", "2020/a.png"),
        ("x/trip/a.png", "y/trip/a.png"),
        ("ba.png", "a.png"),
        ("a.jpg", "a.png"),
        ("a.png/b.png", "a.png"),
    ],
)
def test_names_that_disagree_never_fit(caption: str, source: str) -> None:
    book = Captions({caption: "caption"})
    assert book.assign([source])[0].caption is None
    assert book.unused() == [caption]


def test_each_name_goes_to_the_closest_file_and_to_none_if_two_are_as_close() -> None:
    captions = {
        "a.png": "the file at the top, not its namesake",
        "trip/b.png": "the longer name first",
        "b.png": "then the one that is left",
        "c.png": "two files",
        "1/d.png": "two captions",
        "2/d.png": "for one file",
    }
    sources = ["a.png", "deep/a.png", "x/trip/b.png", "y/b.png", "1/c.png", "2/c.png", "3/d.png"]
    book = Captions(captions)
    assert [said.caption for said in book.assign(sources)] == [
        "the file at the top, not its namesake",
        None,
        "the longer name first",
        "then the one that is left",
        None,
        None,
        None,
    ]
    assert book.unused() == ["c.png", "1/d.png", "2/d.png"]
    assert book.ambiguous() == ["c.png"]


def test_the_folders_above_the_files_decide_between_captions() -> None:
    captions = {"2019/1.jpg": "nineteen", "2020/1.jpg": "twenty", "2020/2.jpg": "twenty, too"}
    assert assigned(captions, ["1.jpg", "2.jpg"], "/pictures/2019/") == {"1.jpg": "nineteen", "2.jpg": None}
    assert assigned(captions, ["1.jpg", "2.jpg"], "/pictures/2020/") == {"1.jpg": "twenty", "2.jpg": "twenty, too"}
    assert assigned({"pictures/1.jpg": "moved"}, ["1.jpg"], "/photos/") == {"1.jpg": "moved"}


def test_names_that_differ_in_case_only_are_two_names() -> None:
    captions = {"A.png": "large", "a.png": "small"}
    assert assigned(captions, ["a.png", "A.png"]) == {"a.png": "small", "A.png": "large"}
    assert assigned(captions, ["A.PNG"]) == {"A.PNG": None}


def test_the_same_file_listed_twice_is_one_file() -> None:
    book = Captions({"a.png": "caption"})
    said = book.assign(["a.png", "a.png"], ["/x/a.png", "/x/a.png"])
    assert [description.caption for description in said] == ["caption", "caption"]
    assert [said.caption for said in book.assign(["a.png", "a.png"], ["/x/a.png", "/y/a.png"])] == [None, None]


def test_many_files_of_one_name_are_matched_by_their_folders() -> None:
    captions = {f"set/{number}/1.jpg": str(number) for number in range(3000)}
    found = assigned(captions, [f"{number}/1.jpg" for number in range(3000)], "/data/set/")
    assert found == {f"{number}/1.jpg": str(number) for number in range(3000)}
