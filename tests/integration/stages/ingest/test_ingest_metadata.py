"""Metadata at ingest: columns of caption files, what is inside the pictures, and changes to both."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from PIL import ExifTags
from sqlalchemy import update

from ragllava.stores.archives import archive
from ragllava.stores.schema import images
from tests.support.described_pictures import exif, jpeg_with, xmp
from tests.support.ingest_runs import counting, draw
from tests.support.workshop import Workshop

BARN = jpeg_with(
    exif({ExifTags.Base.ImageDescription: "A barn", ExifTags.Base.Model: "C1"}),
    xmp("<photoshop:City>Inside</photoshop:City>"),
)


def described(workshop: Workshop) -> dict[str, tuple[str | None, dict[str, Any] | None]]:
    """Caption and metadata of each living image, by source."""
    return {source: (row.caption, row.metadata) for source, row in workshop.images().items()}


def ingest(workshop: Workshop, folder: Path, *rows: dict[str, Any]) -> list[tuple[str | None, str | None]]:
    """Ingest a folder with a caption file beside it; status and reason of each file."""
    captions = folder.parent / "captions.jsonl"
    captions.write_text("\n".join(json.dumps(row) for row in rows))
    job = workshop.ingest(folder, captions=captions if rows else None)
    return [(status, reason) for _, status, reason in workshop.outcomes(job.job_id)]


def test_columns_become_metadata_and_changes_are_taken_over(workshop: Workshop, tmp_path: Path) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number in range(3):
        draw(folder / f"{number}.png", number)
    ingest(
        workshop,
        folder,
        {"file": "0.png", "caption": "A barn", "Year": 1968, "public": True, "tags": ["a", "b"], "city": "Ansel"},
        {"file": "1.png", "caption": "", "year": "1970"},
    )
    first = {"year": 1968, "public": True, "tags": ["a", "b"], "city": "Ansel"}
    assert described(workshop) == {
        "0.png": ("A barn", first),
        "1.png": (None, {"year": "1970"}),
        "2.png": (None, None),
    }
    with workshop.engine.begin() as connection:
        ids = [row.id for row in workshop.images().values()]
        assert sorted(archive.load_metadata(connection, ids).values(), key=len) == [{}, {"year": "1970"}, first]
    second, retriever = counting(workshop)
    outcomes = ingest(
        second,
        folder,
        {"file": "0.png", "caption": "A barn", "year": 1969, "city": "Ansel"},
        {"file": "1.png", "caption": "A boat", "year": "1971"},
    )
    assert outcomes == [
        ("updated", "metadata updated"),
        ("updated", "caption and metadata updated"),
        ("duplicate", "the same picture as 2.png"),
    ]
    after = {
        "0.png": ("A barn", {"year": 1969, "city": "Ansel"}),
        "1.png": ("A boat", {"year": "1971"}),
        "2.png": (None, None),
    }
    assert described(workshop) == after
    ingest(second, folder)
    assert described(workshop) == after, "what is not given erases nothing"
    assert retriever.seen == 0


def test_captions_and_metadata_inside_pictures(workshop: Workshop, tmp_path: Path) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number, name in enumerate(("inside", "sidecar", "listed")):
        (folder / f"{name}.jpg").write_bytes(BARN + bytes([number]))
    (folder / "sidecar.txt").write_text("Beside it")
    (folder / "listed.txt").write_text("Beside it")
    ingest(workshop, folder, {"file": "listed.jpg", "caption": "Listed", "city": "Ansel", "year": 1968})
    inside = {"camera": "C1", "city": "Inside"}
    assert described(workshop) == {
        "inside.jpg": ("A barn", inside),
        "sidecar.jpg": ("Beside it", inside),
        "listed.jpg": ("Listed", {"camera": "C1", "city": "Ansel", "year": 1968}),
    }
    # A column that is gone uncovers what is inside.
    ingest(workshop, folder, {"file": "listed.jpg", "caption": "Listed", "year": 1968})
    assert described(workshop)["listed.jpg"] == ("Listed", {"camera": "C1", "city": "Inside", "year": 1968})


def test_files_with_the_same_bytes_keep_their_captions(workshop: Workshop, tmp_path: Path) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for name in ("a", "b", "c"):
        (folder / f"{name}.jpg").write_bytes(BARN)
    ingest(
        workshop,
        folder,
        {"file": "b.jpg", "caption": "Better than inside", "city": "B"},
        {"file": "c.jpg", "caption": "Of the third", "city": "C"},
    )
    both = "Better than inside Of the third"
    assert described(workshop) == {"a.jpg": (both, {"camera": "C1", "city": "B"})}
    ingest(workshop, folder, {"file": "a.jpg", "caption": "Its own", "city": "A"})
    assert described(workshop) == {"a.jpg": (f"Its own {both}", {"camera": "C1", "city": "A"})}


def test_pictures_of_an_older_version_are_read_when_they_are_ingested_again(workshop: Workshop, tmp_path: Path) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    (folder / "barn.jpg").write_bytes(BARN)
    draw(folder / "plain.png", 1)
    ingest(workshop, folder, {"file": "barn.jpg", "caption": "Listed", "city": "Ansel"})
    with workshop.engine.begin() as connection:  # as version 0.2 has left them
        connection.execute(update(images).values(metadata=None, embedded=None))
        connection.execute(update(images).where(images.c.source == "barn.jpg").values(caption=None))
    second, retriever = counting(workshop)
    assert ingest(second, folder) == [
        ("updated", "caption and metadata updated"),
        ("duplicate", "the same picture as plain.png"),
    ]
    assert described(workshop) == {
        "barn.jpg": ("A barn", {"camera": "C1", "city": "Inside"}),
        "plain.png": (None, None),
    }
    assert {row.embedded is None for row in workshop.images().values()} == {False}
    assert retriever.seen == 0


def test_hostile_columns_are_stored_harmlessly(workshop: Workshop, tmp_path: Path) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    draw(folder / "a.png", 1)
    captions = tmp_path / "captions.csv"
    rows = b'file,caption,na\'me; DROP TABLE images,tab\\N,bytes\r\na.png,A barn,"x\\\\,\ty",\\N,caf\xe9\r\n'
    captions.write_bytes(rows)
    workshop.ingest(folder, captions=captions)
    expected = {"na_me_drop_table_images": "x\\\\, y", "tab_n": "\\N", "bytes": "café"}
    assert described(workshop) == {"a.png": ("A barn", expected)}
