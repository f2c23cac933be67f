"""What the ingest stage stores of each file, on real stores and with the real mini retriever."""

from __future__ import annotations

import hashlib
import shutil
import tarfile
import zipfile
from collections import Counter
from pathlib import Path

import pytest
from PIL import Image
from sqlalchemy import select

from ragllava.jobs.states import JobState
from ragllava.stores.archives import ingest_files, vectors
from ragllava.stores.objects import content_key
from ragllava.stores.schema import blobs as blob_table
from tests.integration.conftest import Postcards
from tests.support.bad_files import build_corpus
from tests.support.ingest_runs import (
    captioned,
    counting,
    draw,
    nearest,
    stored_vectors,
)
from tests.support.picture_files import Case
from tests.support.workshop import Workshop


def test_postcards_are_stored_embedded_and_found(workshop: Workshop, postcards: Postcards) -> None:
    job = workshop.ingest(postcards.written.pictures, captions=postcards.written.captions)
    assert (job.state, job.progress.by_status) == (JobState.COMPLETED, {"stored": 60})
    images = workshop.images()
    assert {source: row.caption for source, row in images.items()} == {
        card.file_name: card.caption for card in postcards.archive.postcards
    }
    for source, row in images.items():
        data = (postcards.written.pictures / source).read_bytes()
        assert row.sha256 == hashlib.sha256(data).hexdigest()
        assert workshop.resources.objects.get(content_key(row.sha256)) == data
    with workshop.engine.begin() as connection:
        assert set(connection.scalars(select(blob_table.c.state))) == {"live"}
        index = vectors.active_index(connection, workshop.archive_id())
    assert index is not None and index.retriever == workshop.resources.models.retriever.version


def test_a_stored_vector_is_that_of_the_original_picture(
    workshop: Workshop, postcards: Postcards, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(postcards.written.pictures, tmp_path / "pictures"))
    draw(folder / "wide.png", seed=1, size=(2600, 900))  # reduced before the retriever sees it
    draw(folder / "tall.jpg", seed=2, size=(700, 3100))
    workshop.ingest(folder)
    stored = stored_vectors(workshop)
    assert len(stored) == 62
    images = workshop.images()
    originals = [Image.open(folder / source).convert("RGB") for source in images]
    expected = workshop.resources.models.retriever.embed_images(originals, batch_size=64)
    for (source, row), vector in zip(images.items(), expected, strict=True):
        assert float(stored[row.id] @ vector) > 0.999, source


def test_zip_and_tar_files_give_their_members(workshop: Workshop, tmp_path: Path) -> None:
    for number in range(4):
        draw(tmp_path / f"{number}.png", number)
    with zipfile.ZipFile(tmp_path / "some.zip", "w") as package:
        package.write(tmp_path / "0.png", "in/0.png")
        package.write(tmp_path / "1.png", "in/1.png")
        package.writestr("in/1.txt", "The second.")
    with tarfile.open(tmp_path / "more.tar.gz", "w:gz") as tar:
        for number in (1, 2, 3):
            tar.add(tmp_path / f"{number}.png", f"{number}.png")
    job = workshop.ingest(tmp_path / "some.zip", tmp_path / "more.tar.gz")
    assert job.progress.by_status == {"stored": 4, "duplicate": 1}
    assert {source: row.caption for source, row in workshop.images().items()} == {
        "some.zip/in/0.png": None,
        "some.zip/in/1.png": "The second.",
        "more.tar.gz/2.png": None,
        "more.tar.gz/3.png": None,
    }
    assert workshop.outcomes(job.job_id)[2] == (
        "more.tar.gz/1.png",
        "duplicate",
        "the same picture as some.zip/in/1.png",
    )
    assert nearest(workshop, tmp_path / "3.png") == ("more.tar.gz/3.png", 1.0)


def test_every_hostile_file_ends_with_its_outcome(workshop: Workshop, tmp_path: Path) -> None:
    cases = build_corpus(tmp_path / "archive")
    job = workshop.ingest(tmp_path / "archive")
    outcomes = workshop.outcomes(job.job_id)
    assert Counter(source for source, _, _ in outcomes) == Counter(case.source for case in cases)
    assert sum(job.progress.by_status.values()) == job.progress.total == len(cases)
    assert job.state == JobState.COMPLETED_WITH_ERRORS
    remaining = list(cases)
    for source, status, reason in outcomes:
        fitting = [case for case in remaining if case.source == source and fits(case, status, reason)]
        assert fitting, f"{source}: {status} ({reason})"
        remaining.remove(fitting[0])
    assert workshop.embedded() == len(workshop.images())
    with workshop.engine.begin() as connection:
        shown = {file.source: file.reason for file in ingest_files.rejected_files(connection, workshop.archive_id())}
    assert all(shown.values())
    # Of several members with one name the latest outcome counts; all other sources are offered once.
    once = [case for case in cases if [candidate.source for candidate in cases].count(case.source) == 1]
    assert {case.source for case in once if case.source in shown} == {case.source for case in once if case.rejected}


def fits(case: Case, status: str | None, reason: str | None) -> bool:
    """Whether a file's outcome is what its case promises."""
    if case.rejected is None:
        return status in ("stored", "duplicate", "updated")
    return status == "rejected" and case.rejected in (reason or "")


def test_a_link_that_the_user_names_is_followed(workshop: Workshop, tmp_path: Path) -> None:
    (tmp_path / "latest.png").symlink_to(draw(tmp_path / "0.png", 0))
    assert workshop.ingest(tmp_path / "latest.png").progress.by_status == {"stored": 1}
    assert set(workshop.images()) == {"latest.png"}


# What is there already


def test_a_second_run_finds_only_duplicates_and_embeds_nothing(workshop: Workshop, postcards: Postcards) -> None:
    workshop.ingest(postcards.written.pictures, captions=postcards.written.captions)
    before = stored_vectors(workshop)
    second, retriever = counting(workshop)
    job = second.ingest(postcards.written.pictures, captions=postcards.written.captions)
    assert (job.state, job.progress.by_status) == (JobState.COMPLETED, {"duplicate": 60})
    assert retriever.seen == 0
    assert stored_vectors(workshop).keys() == before.keys()


def test_a_lost_object_is_put_back_when_its_file_is_ingested_again(workshop: Workshop, tmp_path: Path) -> None:
    path = draw(tmp_path / "a.png", 1)
    workshop.ingest(tmp_path)
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    objects = workshop.resources.objects
    objects.delete_content(sha256)
    assert workshop.ingest(tmp_path).progress.by_status == {"duplicate": 1}
    assert objects.get_content(sha256) == path.read_bytes()


def test_only_what_is_new_is_embedded(workshop: Workshop, tmp_path: Path) -> None:
    for number in range(5):
        draw(tmp_path / f"{number}.png", number)
    workshop.ingest(tmp_path)
    draw(tmp_path / "5.png", 5)
    second, retriever = counting(workshop)
    assert second.ingest(tmp_path).progress.by_status == {"duplicate": 5, "stored": 1}
    assert retriever.seen == 1


def test_a_changed_caption_is_updated_and_says_so(workshop: Workshop, tmp_path: Path) -> None:
    for number in range(3):
        draw(tmp_path / f"{number}.png", number)
    workshop.ingest_files(captioned(tmp_path, {"0.png": "old", "1.png": "same"}))
    job = workshop.ingest_files(captioned(tmp_path, {"0.png": "new", "1.png": "same", "2.png": "first"}))
    assert [(status, reason) for _, status, reason in workshop.outcomes(job.job_id)] == [
        ("updated", "caption updated"),
        ("duplicate", "the same picture as 1.png"),
        ("updated", "caption updated"),
    ]
    assert [workshop.images()[f"{n}.png"].caption for n in range(3)] == ["new", "same", "first"]


def test_no_caption_erases_none(workshop: Workshop, tmp_path: Path) -> None:
    draw(tmp_path / "0.png", 0)
    workshop.ingest_files(captioned(tmp_path, {"0.png": "The lighthouse."}))
    workshop.ingest_files(captioned(tmp_path, {}))
    assert workshop.images()["0.png"].caption == "The lighthouse."


def test_an_overwritten_file_takes_the_place_of_the_old_picture(workshop: Workshop, tmp_path: Path) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number in range(4):
        draw(folder / f"{number}.png", number)
    workshop.ingest(folder)
    old = workshop.images()["2.png"]
    shutil.copy(folder / "2.png", tmp_path / "old.png")
    draw(folder / "2.png", 99)
    assert workshop.ingest(folder).progress.by_status == {"duplicate": 3, "stored": 1}
    assert workshop.images()["2.png"].id != old.id
    assert nearest(workshop, folder / "2.png") == ("2.png", 1.0)
    assert nearest(workshop, tmp_path / "old.png")[1] < 0.99
    assert workshop.embedded() == 4
    shutil.copy(tmp_path / "old.png", folder / "2.png")
    workshop.ingest(folder)
    assert workshop.images()["2.png"].id == old.id
    assert nearest(workshop, tmp_path / "old.png") == ("2.png", 1.0)


@pytest.mark.parametrize("step", [1, 2, 8])
def test_files_with_the_same_bytes_make_one_image(workshop: Workshop, tmp_path: Path, step: int) -> None:
    """In one sub-batch or in two of them, of which the second is read before the first is committed."""
    for number in (0, 1):
        draw(tmp_path / f"a{number}.png", number)
        shutil.copy(tmp_path / f"a{number}.png", tmp_path / f"b{number}.png")
    job = workshop.with_settings(files_per_step=step).ingest(tmp_path)
    assert workshop.outcomes(job.job_id) == [
        ("a0.png", "stored", None),
        ("a1.png", "stored", None),
        ("b0.png", "duplicate", "the same picture as a0.png"),
        ("b1.png", "duplicate", "the same picture as a1.png"),
    ]
    assert workshop.embedded() == 2


def test_two_archives_share_the_bytes_and_nothing_else(workshop: Workshop, tmp_path: Path) -> None:
    draw(tmp_path / "0.png", 0)
    workshop.ingest_files(captioned(tmp_path, {"0.png": "one"}), "first")
    workshop.ingest_files(captioned(tmp_path, {"0.png": "two"}), "second")
    assert workshop.images("first")["0.png"].caption == "one"
    assert workshop.images("second")["0.png"].caption == "two"
    assert (workshop.embedded("first"), workshop.embedded("second")) == (1, 1)
    assert len(list(workshop.resources.objects.list_objects("sha256/"))) == 1
