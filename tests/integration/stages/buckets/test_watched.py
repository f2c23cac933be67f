"""Following a folder: what each comparison does, on real stores and with the mini retriever."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from ragllava.errors import UsageError
from ragllava.stages.buckets.watched_folder import FolderChanges, WatchedFolder
from tests.support.picture_files import BLUE, GREEN, RED, encoded, quadrants
from tests.support.workshop import ARCHIVE, Workshop


def draw(path: Path, colour: tuple[int, int, int], side: int = 48) -> None:
    """A picture of one colour with our corner; every colour and side has other bytes."""
    picture = quadrants(size=(side, side))
    picture.paste(colour, (0, 0, side // 2, side))
    path.write_bytes(encoded(picture, "PNG"))


@pytest.fixture
def watched(tmp_path: Path) -> WatchedFolder:
    folder = tmp_path / "watched"
    folder.mkdir()
    return WatchedFolder(folder, ARCHIVE)


def follow(watched: WatchedFolder, workshop: Workshop) -> FolderChanges:
    """Compare, let the job end, and compare again, as the command does."""
    changes = watched.compare(workshop.engine, workshop.settings)
    workshop.run()
    if watched.jobs_ended(workshop.engine):
        watched.compare(workshop.engine, workshop.settings)
    return changes


def test_an_archive_follows_its_folder(watched: WatchedFolder, workshop: Workshop) -> None:
    draw(watched.folder / "a.png", RED)
    draw(watched.folder / "b.png", GREEN)
    (watched.folder / "b.txt").write_text("green")
    (watched.folder / "broken.png").write_bytes(b"no picture")
    assert sorted(follow(watched, workshop).new) == ["a.png", "b.png", "broken.png"]
    assert {name: row.caption for name, row in workshop.images().items()} == {"a.png": None, "b.png": "green"}
    assert not follow(watched, workshop).found_differences, "a refused file is not offered again"

    draw(watched.folder / "a.png", BLUE)
    (watched.folder / "b.txt").write_text("very green")
    changes = follow(watched, workshop)
    assert (changes.new, changes.gone, changes.captions) == (["a.png"], [], ["b.png"])
    assert workshop.embedded() == 2

    (watched.folder / "b.png").unlink()
    assert follow(watched, workshop).gone == ["b.png"]
    assert workshop.images().keys() == {"a.png"}
    assert workshop.embedded() == 1


def test_metadata_of_the_caption_file_are_followed(watched: WatchedFolder, workshop: Workshop, tmp_path: Path) -> None:
    watched.captions = tmp_path / "captions.csv"
    watched.captions.write_text("file,caption,city\na.png,,Ansel\n")
    draw(watched.folder / "a.png", RED)
    follow(watched, workshop)
    assert workshop.images()["a.png"].metadata == {"city": "Ansel"}
    assert not follow(watched, workshop).found_differences

    watched.captions.write_text("file,caption,city\na.png,A barn,Wenby\n")
    changes = follow(watched, workshop)
    assert (changes.new, changes.captions, changes.job_id) == ([], ["a.png"], None)
    image = workshop.images()["a.png"]
    assert (image.caption, image.metadata) == ("A barn", {"city": "Wenby"})

    watched.captions.write_text("file,caption,city\n")
    assert not follow(watched, workshop).found_differences, "as in an ingest, what is not given erases nothing"


def test_another_process_knows_what_the_archive_holds(watched: WatchedFolder, workshop: Workshop) -> None:
    draw(watched.folder / "a.png", RED)
    draw(watched.folder / "b.png", GREEN)
    follow(watched, workshop)
    (watched.folder / "a.png").unlink()
    later = WatchedFolder(watched.folder, ARCHIVE)
    changes = follow(later, workshop)
    assert (changes.new, changes.gone, changes.job_id) == ([], ["a.png"], None)
    assert workshop.images().keys() == {"b.png"}


def test_a_moved_file_keeps_its_image_and_a_copy_keeps_it_alive(watched: WatchedFolder, workshop: Workshop) -> None:
    draw(watched.folder / "a.png", RED)
    follow(watched, workshop)
    before = workshop.images()["a.png"]
    (watched.folder / "sub").mkdir()
    (watched.folder / "a.png").rename(watched.folder / "sub" / "b.png")
    shutil.copy(watched.folder / "sub" / "b.png", watched.folder / "c.png")
    assert follow(watched, workshop).job_id is None
    [image] = workshop.images().values()
    assert image.id == before.id and image.source in ("sub/b.png", "c.png")
    (watched.folder / image.source).unlink()
    follow(watched, workshop)
    [image] = workshop.images().values()
    assert image.id == before.id
    (watched.folder / image.source).unlink()
    follow(watched, workshop)
    assert workshop.images() == {} and workshop.embedded() == 0


def test_a_file_overwritten_with_unreadable_bytes_loses_its_image(watched: WatchedFolder, workshop: Workshop) -> None:
    draw(watched.folder / "a.png", RED)
    follow(watched, workshop)
    (watched.folder / "a.png").write_bytes(b"broken now")
    follow(watched, workshop)
    assert workshop.images() == {}


def test_a_folder_that_is_gone_retires_nothing(watched: WatchedFolder, workshop: Workshop) -> None:
    draw(watched.folder / "a.png", RED)
    follow(watched, workshop)
    os.rename(watched.folder, watched.folder.with_name("away"))  # noqa: PTH104 - the object's own path must stay
    with pytest.raises(UsageError, match="no such file or directory"):
        watched.compare(workshop.engine, workshop.settings)
    assert workshop.images().keys() == {"a.png"}
