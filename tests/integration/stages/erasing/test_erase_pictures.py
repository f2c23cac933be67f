"""Erasing pictures: afterwards nothing is left of them but what the removal named, wherever it was interrupted."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import func, select, text

from ragllava.errors import UsageError
from ragllava.records import Label, NoisyReason, SourceFile, Verdict
from ragllava.stages.buckets import sync
from ragllava.stages.buckets.binding import bind_archive
from ragllava.stages.buckets.sync import ScanReport
from ragllava.stages.erasing.remove import Remover
from ragllava.stages.ingest.submit import submit_files
from ragllava.stages.ingest.uris import file_uri
from ragllava.stages.results.finalize import publish_missing_results
from ragllava.stores.buckets.bindings import BindingRole
from ragllava.stores.database import in_transaction
from ragllava.stores.learning import labels as label_store
from ragllava.stores.learning import noisy
from ragllava.stores.maintenance import erasures
from ragllava.stores.objects import content_key
from ragllava.stores.schema import candidates, images, vocabulary
from tests.support.foreign_bucket import make_bucket
from tests.support.maintenance_tasks import do
from tests.support.picture_files import BLUE, GREEN, RED, encoded, quadrants
from tests.support.stored_traces import traces
from tests.support.workshop import ARCHIVE, Workshop

NAME, CAPTION, WORD = "zerelda-portrait.png", "Zerelda Quimperfeld at the lighthouse", "quimperfeld"


def remover(workshop: Workshop, **values: Any) -> Remover:
    return Remover(workshop.engine, workshop.settings, workshop.resources.objects, "tester", **values)


def a_picture(path: Path, colour: tuple[int, int, int]) -> bytes:
    picture = quadrants(size=(48, 48))
    picture.paste(colour, (0, 0, 24, 48))
    path.write_bytes(encoded(picture, "PNG"))
    return path.read_bytes()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "pictures"
    folder.mkdir()
    return folder


@pytest.fixture
def album(workshop: Workshop, folder: Path) -> Workshop:
    """Three pictures, one of them about a person, and questions whose answers rest on all of them."""
    for name, colour in ((NAME, RED), ("barn.png", GREEN), ("boat.png", BLUE)):
        a_picture(folder / name, colour)
    listed = [
        SourceFile(NAME, file_uri(folder / NAME), CAPTION, metadata={"city": "Zereldaville"}),
        SourceFile("barn.png", file_uri(folder / "barn.png"), "A barn in Wenby"),
        SourceFile("boat.png", file_uri(folder / "boat.png"), "A boat"),
    ]
    shop = workshop.with_settings(leave_one_out=False)
    shop.ingest_files(listed)
    shop.ingest_files([SourceFile(f"copy of {NAME}", file_uri(folder / NAME), None)])  # a duplicate has names, too
    return shop


def asked(workshop: Workshop) -> int:
    """A published job of two questions, whose evidence are all pictures."""
    job_id = workshop.submit(["Who is at the lighthouse?", "What is it?"], threshold=0.0, top_n=3).job_id
    workshop.run()
    publish_missing_results(workshop.engine, workshop.resources.objects)
    return job_id


def judged(workshop: Workshop, job_id: int, image_ids: Sequence[int]) -> None:
    """Labels, noisy cases and reports of maintenance that name the picture."""
    archive_id = workshop.archive_id()
    with workshop.engine.begin() as connection:
        label = Label(job_id, 0, Verdict.RIGHT, "nobody", tuple(image_ids), (), "person")
        label_store.insert_labels(connection, [label])
        detail = f"{NAME} has a relevance of 0.501, close to the threshold 0.500"
        noisy.add_reason(connection, archive_id, job_id, 0, NoisyReason.NEAR_THRESHOLD, detail)
        detail = f"nobody labelled these images: {CAPTION} (0.93); say which are"
        noisy.add_reason(connection, archive_id, job_id, 1, NoisyReason.UNLABELLED_RELEVANT, detail)
    task = do(workshop, "gaps", ARCHIVE)
    with workshop.engine.begin() as connection:
        report = {"archives": [{"archive": ARCHIVE, "examples": [{"source": NAME, "explanation": f"{NAME} is gone"}]}]}
        connection.execute(
            text("UPDATE maintenance_tasks SET report = CAST(:report AS jsonb) WHERE job_id = :job_id"),
            {"report": json.dumps(report), "job_id": task.job_id},
        )


def needles(workshop: Workshop, folder: Path) -> list[str | bytes]:
    row = workshop.images()[NAME]
    content = workshop.resources.objects.get_content(row.sha256)
    return [row.sha256, content[40:140], CAPTION, NAME, "Zereldaville", WORD]


def test_nothing_is_left_of_a_removed_picture(album: Workshop, folder: Path) -> None:
    job_id = asked(album)
    row = album.images()[NAME]
    barn = album.images()["barn.png"]
    judged(album, job_id, [row.id, barn.id])
    wanted = needles(album, folder)
    (folder / NAME).unlink()
    before = traces(album.engine, album.settings, *wanted)
    for place in ("images", "files", "image_words", "word_counts", "vocabulary", "noisy_cases", "maintenance_tasks"):
        assert f"table {place}" in before, place
    assert {f"s3://{album.settings.s3_bucket}/jobs/{job_id}/results.jsonl"} <= before.keys()

    planned = remover(album).pictures(ARCHIVE, [NAME], dry_run=True)
    assert planned.erasure_id is None and planned.counts["images"] == 1 and planned.counts["answers"] == 2
    assert traces(album.engine, album.settings, *wanted).keys() == before.keys(), "a dry run changes nothing"

    removal = remover(album).pictures(ARCHIVE, [NAME])
    assert traces(album.engine, album.settings, *wanted) == {}
    assert removal.kept == ("the texts of 2 answers that rest on it stay as they are",)
    assert removal.counts["candidates"] == planned.counts["candidates"] == 2
    assert removal.counts["files"] == 2 and removal.counts["objects"] == 1 and removal.counts["labels"] == 1

    # What is left is whole: the other pictures, the results, the label, the line about the erasure.
    assert {name for row in album.rows(job_id) for name in [c.image.source for c in row.evidence]} == {
        "barn.png",
        "boat.png",
    }
    assert album.job(job_id).result is not None
    with album.engine.begin() as connection:
        label = label_store.newest_labels(connection, [(job_id, 0)])[job_id, 0]
        assert label.relevant == (barn.id,), "the erased picture leaves training"
        line = erasures.list_erasures(connection)[0]
    assert (line.kind, line.target_id, line.account) == ("pictures", row.id, "tester")
    assert line.finished_at is not None and line.counts == removal.counts


def test_what_is_shared_or_derived_is_named(album: Workshop, folder: Path) -> None:
    album.ingest(folder / NAME, archive_name="other")
    sha256 = album.images()[NAME].sha256
    objects = album.resources.objects
    objects.put("training/7-20260101/snapshot/0/examples.jsonl", f'{{"image": "{sha256}"}}'.encode())
    objects.put("training/8-20260101/snapshot/0/examples.jsonl", b"{}")
    kept = remover(album).pictures(ARCHIVE, [NAME]).kept
    assert kept == (
        "the archive other holds the same bytes, which stay",
        "the training snapshot training/7-20260101/snapshot",
        f"the file {folder / NAME} is still there",
    )
    assert objects.exists(content_key(sha256))
    remover(album).pictures("other", [NAME])
    assert not objects.exists(content_key(sha256))


def test_a_bound_object_is_named_and_not_ingested_again(workshop: Workshop) -> None:
    bucket = make_bucket(workshop.settings)
    picture = quadrants(size=(48, 48))
    bucket.put(f"in/{NAME}", encoded(picture, "PNG"), {"caption": CAPTION})
    objects, settings = workshop.resources.objects, workshop.settings
    bind_archive(workshop.engine, objects, ARCHIVE, f"s3://{bucket.name}/in/", BindingRole.PICTURES, {})

    def scan() -> ScanReport:
        [report] = sync.scan(workshop.engine, settings, objects, ARCHIVE)
        workshop.run()
        return report

    scan()
    scan()
    row = workshop.images()[NAME]
    assert row.caption == CAPTION
    removal = remover(workshop).pictures(ARCHIVE, [NAME])
    assert len(removal.kept) == 1
    assert removal.kept[0].startswith(f"the bound bucket holds s3://{bucket.name}/in/{NAME}; ")
    named = {"table bound_objects", f"s3://{bucket.name}/in/{NAME}"}
    assert traces(workshop.engine, settings, NAME, CAPTION, row.sha256).keys() == named
    report = scan()
    assert not report.found_differences and list(report.refused) == [f"in/{NAME}"] and workshop.images() == {}

    picture.paste((1, 2, 3), (0, 0, 9, 9))
    bucket.put(f"in/{NAME}", encoded(picture, "PNG"))
    scan()
    assert NAME in workshop.images(), "what changes is ingested again"
    remover(workshop).pictures(ARCHIVE, [NAME])
    bucket.remove(f"in/{NAME}")
    scan()
    assert traces(workshop.engine, settings, NAME, CAPTION, row.sha256) == {}


class Killed(BaseException):  # no border of an isolated part catches it
    """The process ends here."""


def test_an_interrupted_removal_can_be_finished_at_every_step(album: Workshop, folder: Path) -> None:
    """Killed before each step in turn; what was begun is whole again when the rest is done."""
    job_id = asked(album)
    judged(album, job_id, [album.images()[NAME].id])
    wanted = needles(album, folder)
    (folder / NAME).unlink()
    killed_at: list[str] = []

    def die_once(name: str) -> None:
        if name not in killed_at:
            killed_at.append(name)
            raise Killed(name)

    with pytest.raises(Killed):
        remover(album, before_step=die_once).pictures(ARCHIVE, [NAME])
    for _ in range(20):
        assert [candidate for row in album.rows(job_id) for candidate in row.evidence], "results can be read meanwhile"
        try:
            remover(album, before_step=die_once).finish_interrupted()
            break
        except Killed:
            continue
    assert {"answers", "images", "object", "results", "finish"} <= set(killed_at)
    assert traces(album.engine, album.settings, *wanted) == {}
    with album.engine.begin() as connection:
        assert erasures.open_erasures(connection) == []
        dangling = select(func.count()).where(candidates.c.image_id.not_in(select(images.c.id)))
        assert connection.scalar(dangling) == 0
        assert WORD not in set(connection.scalars(select(vocabulary.c.word)))


def test_what_a_running_job_writes_meanwhile_goes_when_it_has_ended(album: Workshop, folder: Path) -> None:
    submitted = album.submit(["Who is at the lighthouse?"], threshold=0.0, top_n=3)
    image_id = album.images()[NAME].id
    removal = remover(album).pictures(ARCHIVE, [NAME])
    assert removal.waits_for == (submitted.job_id,)
    album.run()
    with album.engine.begin() as connection:  # as a worker does that searched before
        number = {"job_id": submitted.job_id, "question_no": 0, "run_no": 1, "image_id": image_id}
        connection.execute(candidates.insert().values(**number, retrieval_rank=9, retrieval_score=0.1, evidence_no=9))
    assert remover(album).finish_interrupted() == 1
    with album.engine.begin() as connection:
        assert connection.scalar(select(func.count()).where(candidates.c.image_id == image_id)) == 0
        assert erasures.list_erasures(connection)[0].finished_at is not None


def test_a_picture_that_is_ingested_at_this_moment_is_not_removed(album: Workshop, folder: Path) -> None:
    listed = [SourceFile(NAME, file_uri(folder / NAME), None)]
    job_id = in_transaction(album.engine, submit_files, album.settings, archive_name=ARCHIVE, files=listed)
    with pytest.raises(UsageError, match=f"job {job_id} ingests it"):
        remover(album).pictures(ARCHIVE, [NAME])
    assert NAME in album.images()


def test_unknown_and_ambiguous_names_are_refused(album: Workshop) -> None:
    with pytest.raises(UsageError, match="has no picture"):
        remover(album).pictures(ARCHIVE, ["nobody.png"])
    with pytest.raises(UsageError, match="name at least one picture"):
        remover(album).pictures(ARCHIVE, [])
