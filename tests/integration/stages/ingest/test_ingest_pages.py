"""Pages of documents in an archive: from folders and buckets, changed, shortened and deleted."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
from PIL import Image
from sqlalchemy import text

from ragllava.jobs.views import JobView
from ragllava.source_files import FileOutcome, FileStatus
from ragllava.stages.buckets.watched_folder import WatchedFolder
from ragllava.stages.erasing.remove import Remover
from ragllava.stages.ingest.pages import DocumentOutcomes, Part
from tests.integration.stages.buckets.test_bound import Bound, bucketful
from tests.support.ingest_runs import draw
from tests.support.picture_files import BLUE, GREEN, RED, Colour, encoded, grainy, jpeg
from tests.support.stored_traces import traces
from tests.support.workshop import ARCHIVE, Workshop

__all__ = ["bucketful"]


def document(*colours: Colour, kind: str = "PDF") -> bytes:
    """A document with a page of each colour."""
    first, *others = [Image.new("RGB", (64, 48), colour) for colour in colours]
    return encoded(first, kind, save_all=True, append_images=others)


def pages(name: str, number: int) -> set[str]:
    return {f"{name}#page={page}" for page in range(1, number + 1)}


@pytest.mark.parametrize(("name", "kind"), [("album.pdf", "PDF"), ("fax.tif", "TIFF")])
def test_each_page_is_an_image_with_the_caption_of_its_document(
    name: str, kind: str, workshop: Workshop, tmp_path: Path
) -> None:
    (tmp_path / name).write_bytes(document(RED, GREEN, BLUE, kind=kind))
    (tmp_path / "album.txt").write_text("The summer of 1932")
    (tmp_path / "fax.txt").write_text("The summer of 1932")
    draw(tmp_path / "plain.png", seed=1)
    job = workshop.ingest(tmp_path)
    assert job.progress.by_status == {"stored": 2}, "a document is one file of the job"
    assert (name, "stored", "3 pages") in workshop.outcomes(job.job_id)
    images = workshop.images()
    assert images.keys() == pages(name, 3) | {"plain.png"}
    assert workshop.embedded() == 4
    for page in range(1, 4):
        row = images[f"{name}#page={page}"]
        assert row.caption == "The summer of 1932"
        assert row.metadata["page"] == page
        assert row.uri.endswith(f"/{name}#page={page}")
        picture = workshop.resources.pictures.get_many([row.sha256])[row.sha256]
        assert isinstance(picture, Image.Image)
        assert picture.getpixel((20, 20)) == pytest.approx((RED, GREEN, BLUE)[page - 1], abs=4)
    again = workshop.ingest(tmp_path)
    assert again.progress.by_status == {"duplicate": 2}
    assert workshop.embedded() == 4


def test_a_page_is_evidence_under_its_own_name(workshop: Workshop, tmp_path: Path) -> None:
    (tmp_path / "album.pdf").write_bytes(document(RED, GREEN))
    workshop.ingest(tmp_path)
    with workshop.engine.begin() as connection:
        sources = connection.execute(text("SELECT source, sha256 FROM images JOIN embeddings ON image_id = id")).all()
    assert {row.source for row in sources} == pages("album.pdf", 2)
    assert len({row.sha256 for row in sources}) == 2


@pytest.mark.parametrize(("name", "kind"), [("album.pdf", "PDF"), ("fax.tif", "TIFF")])
def test_a_caption_file_names_single_pages(name: str, kind: str, workshop: Workshop, tmp_path: Path) -> None:
    folder = tmp_path / "scans"
    folder.mkdir()
    (folder / name).write_bytes(document(RED, GREEN, BLUE, kind=kind))
    captions = tmp_path / "list.csv"

    def ingest(*rows: str) -> JobView:
        captions.write_text("\n".join(["file,caption,year,place", *rows]))
        return workshop.ingest(folder, captions=captions)

    job = ingest(f"{name},The summer,1932,Wenby", f"{name}#page=2,A boat,1933,", f"{name}#page=3,,,")
    assert workshop.outcomes(job.job_id) == [(name, "stored", "3 pages")]
    images = workshop.images()
    assert [images[f"{name}#page={page}"].caption for page in (1, 2, 3)] == ["The summer", "A boat", None]
    said = [{key: images[f"{name}#page={page}"].metadata.get(key) for key in ("year", "place")} for page in (1, 2)]
    assert said == [{"year": "1932", "place": "Wenby"}, {"year": "1933", "place": "Wenby"}]

    job = ingest(f"{name}#page=2,A red boat,,", f"{name}#page=7,A barn,,", f"{name}#page=9,A mill,,")
    reason = "caption and metadata updated; captions name pages 7, 9, which it does not have"
    [(_, status, note)] = workshop.outcomes(job.job_id)
    assert (status, note) == ("updated", reason.replace("caption and metadata updated", "3 pages"))
    assert workshop.images()[f"{name}#page=2"].caption == "A red boat"


def test_a_picture_is_its_own_first_page(workshop: Workshop, tmp_path: Path) -> None:
    draw(tmp_path / "a.png", seed=1)
    (tmp_path / "list.csv").write_text("file,caption\na.png#page=1,A boat\na.png#page=2,A barn\n")
    job = workshop.ingest(tmp_path / "a.png", captions=tmp_path / "list.csv")
    assert workshop.outcomes(job.job_id) == [("a.png", "stored", "captions name page 2, which it does not have")]
    assert workshop.images()["a.png"].caption == "A boat"


def test_a_shorter_version_of_a_document_replaces_the_longer_one(workshop: Workshop, tmp_path: Path) -> None:
    album = tmp_path / "album.tif"
    album.write_bytes(document(RED, GREEN, BLUE, kind="TIFF"))
    workshop.ingest(album)
    album.write_bytes(document(BLUE, RED, kind="TIFF"))
    workshop.ingest(album)
    assert workshop.images().keys() == pages("album.tif", 2)
    album.write_bytes(document(GREEN, kind="TIFF"))
    workshop.ingest(album)
    assert workshop.images().keys() == {"album.tif"}, "a TIFF of one page is a picture"
    album.write_bytes(document(RED, GREEN, kind="TIFF"))
    workshop.ingest(album)
    assert workshop.images().keys() == pages("album.tif", 2)


def test_a_document_over_several_steps_has_one_outcome(workshop: Workshop, tmp_path: Path) -> None:
    small = workshop.with_settings(files_per_step=2)
    colours = [(10 * number, 200, 30) for number in range(7)]
    (tmp_path / "long.tif").write_bytes(document(*colours, kind="TIFF"))
    job = small.ingest(tmp_path)
    assert small.outcomes(job.job_id) == [("long.tif", "stored", "7 pages")]
    assert small.images().keys() == pages("long.tif", 7)


def test_what_is_missing_of_a_stored_picture_is_noted(workshop: Workshop, tmp_path: Path) -> None:
    noise = grainy((300, 300), 80).convert("RGB")
    (tmp_path / "cut.jpg").write_bytes(jpeg(noise)[:-20_000])
    job = workshop.ingest(tmp_path)
    [(_, status, reason)] = workshop.outcomes(job.job_id)
    assert status == "stored"
    assert reason is not None and "end of the file is missing" in reason


def test_a_watched_folder_follows_its_documents(workshop: Workshop, tmp_path: Path) -> None:
    folder = tmp_path / "watched"
    folder.mkdir()
    watched = WatchedFolder(folder, ARCHIVE, exclude=["drafts"])
    (folder / "drafts").mkdir()
    draw(folder / "drafts" / "a.png", seed=3)

    def follow() -> tuple[Sequence[str], Sequence[str], Sequence[str]]:
        changes = watched.compare(workshop.engine, workshop.settings)
        workshop.run()
        if watched.jobs_ended(workshop.engine):
            watched.compare(workshop.engine, workshop.settings)
        return changes.new, changes.gone, changes.captions

    (folder / "a.pdf").write_bytes(document(RED, GREEN))
    assert follow() == (["a.pdf"], [], [])
    assert workshop.images().keys() == pages("a.pdf", 2)
    assert follow() == ([], [], []), "the pages stay"
    watched = WatchedFolder(folder, ARCHIVE, exclude=["drafts"])
    assert follow() == ([], [], []), "and are known to the next process"
    (folder / "a.txt").write_text("An album")
    assert follow() == ([], [], ["a.pdf"])
    assert {row.caption for row in workshop.images().values()} == {"An album"}
    (folder / "captions.csv").write_text("file,caption\na.pdf#page=2,The second\n")
    assert follow() == ([], [], ["a.pdf"])
    assert {name: row.caption for name, row in workshop.images().items()} == {
        "a.pdf#page=1": "An album",
        "a.pdf#page=2": "The second",
    }
    (folder / "captions.csv").unlink()
    (folder / "b.pdf").write_bytes((folder / "a.pdf").read_bytes())
    (folder / "a.pdf").unlink()
    follow()
    assert workshop.images().keys() == pages("b.pdf", 2), "a renamed document keeps its pages"
    assert workshop.embedded() == 2
    (folder / "b.pdf").write_bytes(document(BLUE))
    follow()
    assert workshop.images().keys() == pages("b.pdf", 1)
    (folder / "b.pdf").unlink()
    follow()
    assert workshop.images() == {}


def test_a_bound_bucket_follows_its_documents(bucketful: Bound) -> None:
    bucket, workshop = bucketful.bucket, bucketful.workshop
    both = document(RED, GREEN)
    bucket.put("in/a.pdf", both)
    bucketful.follow("in/a.pdf")
    assert bucketful.captions() == dict.fromkeys(pages("a.pdf", 2))
    assert not bucketful.scan().found_differences
    bucket.put("in/a.txt", b"An album")
    bucketful.follow("in/a.txt")
    assert bucketful.captions() == dict.fromkeys(pages("a.pdf", 2), "An album")
    bucket.put("in/captions.csv", b"file,caption\na.pdf#page=2,The second\na.pdf#page=9,No page\n")
    bucketful.follow("in/captions.csv")
    assert bucketful.captions() == {"a.pdf#page=1": "An album", "a.pdf#page=2": "The second"}
    bucket.put("in/captions.csv", b"file,caption\na.pdf,All\n")
    bucketful.follow("in/captions.csv")
    assert bucketful.captions() == dict.fromkeys(pages("a.pdf", 2), "All")
    bucket.remove("in/captions.csv")
    bucketful.follow("in/captions.csv")
    assert bucketful.captions() == dict.fromkeys(pages("a.pdf", 2), "An album")
    bucket.put("in/b.pdf", both)
    bucketful.follow("in/b.pdf")
    assert workshop.images().keys() == pages("a.pdf", 2)
    bucket.remove("in/a.pdf")
    bucketful.follow("in/a.pdf")
    assert workshop.images().keys() == pages("b.pdf", 2), "its copy names the pages now"
    assert not bucketful.scan().found_differences
    bucket.put("in/b.pdf", document(BLUE))
    bucketful.follow("in/b.pdf")
    assert workshop.images().keys() == pages("b.pdf", 1)
    bucket.remove("in/b.pdf")
    bucketful.follow("in/b.pdf")
    assert workshop.images() == {}
    assert workshop.embedded() == 0


def test_a_new_document_in_a_bucket_gets_the_captions_of_its_pages(bucketful: Bound) -> None:
    bucketful.bucket.put("in/captions.csv", b"file,caption\nscans/a.pdf#page=1,One\nscans/a.pdf#page=2,Two\n")
    bucketful.bucket.put("in/scans/a.pdf", document(RED, GREEN))
    bucketful.follow("in/captions.csv", "in/scans/a.pdf")
    assert bucketful.captions() == {"scans/a.pdf#page=1": "One", "scans/a.pdf#page=2": "Two"}
    [removed] = [row for name, row in bucketful.workshop.images().items() if name.endswith("2")]
    shop = bucketful.workshop
    Remover(shop.engine, shop.settings, bucketful.objects, "tester").pictures(ARCHIVE, [str(removed.id)])
    assert traces(shop.engine, shop.settings, "Two").keys() == {f"s3://{bucketful.bucket.name}/in/captions.csv"}
    assert bucketful.captions() == {"scans/a.pdf#page=1": "One"}


def test_the_outcome_of_a_document_counts_its_rejected_pages() -> None:
    outcomes = DocumentOutcomes()
    stored, rejected = FileStatus.STORED, FileStatus.REJECTED
    assert outcomes.add(Part(4, 1, 3), FileOutcome(4, rejected, "it is blank")) is None
    for _ in range(2):  # a repeated transaction
        assert outcomes.add(Part(4, 2, 3), FileOutcome(4, stored, None, 11)) is None
    last = outcomes.add(Part(4, 3, 3), FileOutcome(4, FileStatus.DUPLICATE, "the same picture as x", 12))
    assert last == FileOutcome(4, stored, "3 pages, 1 of them rejected: it is blank", 11)
    assert outcomes.add(Part(5), FileOutcome(5, rejected, "no")) == FileOutcome(5, rejected, "no")
