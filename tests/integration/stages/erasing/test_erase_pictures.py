"""Erasing pictures: afterwards nothing is left of them but what the removal named, wherever it was interrupted."""

from __future__ import annotations

import json
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import func, select, text

from ragllava.client import Client
from ragllava.errors import UsageError
from ragllava.feedback import Label, NoisyReason, Verdict
from ragllava.records import AnswerOptions, TaskName
from ragllava.source_files import SourceFile
from ragllava.stages.buckets import scanning
from ragllava.stages.buckets.binding import bind_archive
from ragllava.stages.buckets.scanning import ScanReport
from ragllava.stages.erasing.remove import Remover
from ragllava.stages.erasing.steps import IDLE_S, Eraser
from ragllava.stages.ingest.submit import submit_files
from ragllava.stages.ingest.uris import file_uri
from ragllava.stages.maintenance.stage import submit_task
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
from tests.support.waiting import wait_for
from tests.support.watched_store import watched_store
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
    sidecar = f"in/{NAME}.json"
    bucket.put(sidecar, b'{"caption": "", "city": "Zereldaville"}')
    objects, settings = workshop.resources.objects, workshop.settings
    bind_archive(workshop.engine, objects, ARCHIVE, f"s3://{bucket.name}/in/", BindingRole.PICTURES, {})

    def scan() -> ScanReport:
        [report] = scanning.scan(workshop.engine, settings, objects, ARCHIVE)
        workshop.run()
        return report

    scan()
    scan()
    row = workshop.images()[NAME]
    assert row.caption == CAPTION and row.metadata == {"city": "Zereldaville"}
    removal = remover(workshop).pictures(ARCHIVE, [NAME])
    assert len(removal.kept) == 1
    assert removal.kept[0].startswith(f"the bound bucket holds s3://{bucket.name}/in/{NAME}; ")
    named = {"table bound_objects", f"s3://{bucket.name}/in/{NAME}", f"s3://{bucket.name}/{sidecar}"}
    assert traces(workshop.engine, settings, NAME, CAPTION, "Zereldaville", row.sha256).keys() == named
    report = scan()
    assert not report.found_differences and list(report.refused) == [f"in/{NAME}"] and workshop.images() == {}

    picture.paste((1, 2, 3), (0, 0, 9, 9))
    bucket.put(f"in/{NAME}", encoded(picture, "PNG"))
    scan()
    assert NAME in workshop.images(), "what changes is ingested again"
    remover(workshop).pictures(ARCHIVE, [NAME])
    bucket.remove(f"in/{NAME}", sidecar)
    scan()
    assert traces(workshop.engine, settings, NAME, CAPTION, "Zereldaville", row.sha256) == {}


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


def asked_from_a_file(workshop: Workshop, *lines: dict[str, Any]) -> int:
    """A published job whose lines have further columns; its evidence is no picture."""
    with Client(workshop.settings) as client:
        options = AnswerOptions(threshold=1.0)
        job_id = client.questions.submit(list(lines), ARCHIVE, options, name=f"about {NAME}").job_id
    workshop.run()
    publish_missing_results(workshop.engine, workshop.resources.objects)
    return job_id


def test_the_further_columns_of_question_lines_lose_the_name(album: Workshop, folder: Path) -> None:
    """They are repeated in the results, also of a question whose evidence the picture is not."""
    job_id = asked_from_a_file(
        album,
        {"question": "Who is that?", "photo": NAME, "seen": ["barn.png", f"beside {NAME}."], "rating": 3},
        {"question": "What is it?", "photo": f"not-{NAME[1:]}", "seen": [], "rating": 4},
        {"question": "Where is it?", "photo": "barn.png", "seen": [CAPTION], "rating": 5},
    )
    results = f"jobs/{job_id}/results.jsonl"
    lines = [json.loads(line) for line in album.resources.objects.get(results).splitlines()]
    assert [line["evidence"] for line in lines] == [[], [], []]
    assert [line["input"]["photo"] for line in lines] == [NAME, f"not-{NAME[1:]}", "barn.png"]
    wanted = needles(album, folder)
    (folder / NAME).unlink()
    removal = remover(album).pictures(ARCHIVE, [NAME])
    assert traces(album.engine, album.settings, *wanted) == {}
    assert removal.counts["lines"] == 2 and removal.counts["results_written_again"] == 1 and removal.kept == ()
    lines = [json.loads(line) for line in album.resources.objects.get(results).splitlines()]
    assert [line["input"] for line in lines] == [
        {"photo": "(erased)", "seen": ["barn.png", "beside (erased)."], "rating": 3},
        {"photo": f"not-{NAME[1:]}", "seen": [], "rating": 4},
        {"photo": "barn.png", "seen": ["(erased)"], "rating": 5},
    ]
    assert album.job(job_id).name == "about (erased)"


def test_questions_that_name_it_stay_and_are_counted(album: Workshop, folder: Path) -> None:
    job_id = asked_from_a_file(
        album,
        {"question": f"Who is in {NAME}?"},
        {"question": "Who is that?", "custom_id": NAME},
        {"question": "Who else?", "where": {"source": NAME}},
        {"question": "Who is in barn.png?"},
    )
    (folder / NAME).unlink()
    sentence = "3 questions name it in their text, id or filter, and stay as they are"
    assert remover(album).pictures(ARCHIVE, [NAME], dry_run=True).kept == (sentence,)
    assert remover(album).pictures(ARCHIVE, [NAME]).kept == (sentence,)
    found = traces(album.engine, album.settings, NAME).keys()
    assert found == {"table questions", f"s3://{album.settings.s3_bucket}/jobs/{job_id}/results.jsonl"}


def waits_for_a_lock(workshop: Workshop) -> bool:
    with workshop.engine.begin() as connection:
        query = text("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted")
        return bool(connection.scalar(query))


@pytest.mark.parametrize("at", ["results.jsonl", "errors.jsonl"])
def test_a_tick_that_read_before_the_erasure_writes_nothing_after_it(album: Workshop, folder: Path, at: str) -> None:
    """The tick has read the rows and is about to write them, when the picture is erased."""
    job_id = album.submit(["Who is at the lighthouse?"], threshold=0.0, top_n=3).job_id
    album.run()
    with album.engine.begin() as connection:  # the ingest jobs have theirs
        connection.execute(text("UPDATE jobs SET result = '{}' WHERE kind = 'ingest'"))
    wanted = needles(album, folder)
    (folder / NAME).unlink()
    has_read, may_write = threading.Event(), threading.Event()

    def stop_once(key: str) -> None:
        if key.endswith(at) and not has_read.is_set():
            has_read.set()
            assert may_write.wait(240)

    with ThreadPoolExecutor(2) as threads:
        tick = threads.submit(publish_missing_results, album.engine, watched_store(album.settings, stop_once))
        assert has_read.wait(120)
        removal = threads.submit(remover(album).pictures, ARCHIVE, [NAME])
        wait_for("the erasure", lambda: removal.done() or waits_for_a_lock(album))
        may_write.set()
        assert tick.result() == 1
        assert removal.result().counts["results_written_again"] == 1
    assert traces(album.engine, album.settings, *wanted) == {}
    assert album.job(job_id).result is not None


def test_a_tick_leaves_a_job_to_who_writes_its_files(album: Workshop) -> None:
    objects, inner = album.resources.objects, list[int]()
    during = watched_store(album.settings, lambda _key: inner.append(publish_missing_results(album.engine, objects)))
    assert publish_missing_results(album.engine, objects) == 2, "the ingest jobs"
    job_id = album.submit(["What is it?"], threshold=0.0).job_id
    album.run()
    assert publish_missing_results(album.engine, during) == 1
    assert inner and not any(inner)
    assert album.job(job_id).result is not None and publish_missing_results(album.engine, objects) == 0


def test_what_a_maintenance_task_writes_meanwhile_goes_when_it_has_ended(album: Workshop, folder: Path) -> None:
    answered = asked(album)
    wanted = needles(album, folder)
    (folder / NAME).unlink()
    task = in_transaction(album.engine, submit_task, album.settings, TaskName.FIND_NOISY, None, {})
    removal = remover(album).pictures(ARCHIVE, [NAME])
    assert removal.waits_for == (task,)
    with album.engine.begin() as connection:  # as a task does that read before
        detail = f"nobody labelled these images: {CAPTION} (0.93); say which are"
        noisy.add_reason(connection, album.archive_id(), answered, 0, NoisyReason.UNLABELLED_RELEVANT, detail)
        report = {"figures": [{"source": NAME}]}
        statement = text("UPDATE maintenance_tasks SET report = CAST(:report AS jsonb) WHERE job_id = :task")
        connection.execute(statement, {"report": json.dumps(report), "task": task})
        connection.execute(
            text("UPDATE jobs SET state = 'completed', finished_at = now() WHERE id = :id"), {"id": task}
        )
    assert remover(album).finish_interrupted() == 1
    assert traces(album.engine, album.settings, *wanted) == {}


def test_the_tick_continues_what_made_no_progress_for_a_while(album: Workshop, folder: Path) -> None:
    wanted = needles(album, folder)
    (folder / NAME).unlink()

    def die(_step: str) -> None:
        raise Killed

    with pytest.raises(Killed):
        remover(album, before_step=die).pictures(ARCHIVE, [NAME])
    eraser = Eraser(album.engine, album.resources.objects)
    assert eraser.continue_all() == 0, "the command may still be at it"
    with album.engine.begin() as connection:
        later = text("UPDATE erasures SET updated_at = now() - make_interval(secs => :age)")
        connection.execute(later, {"age": IDLE_S + 1})
    assert eraser.continue_all() == 1
    assert traces(album.engine, album.settings, *wanted) == {}


def test_a_removed_page_takes_what_was_said_about_it(workshop: Workshop, folder: Path) -> None:
    first, second = quadrants(size=(48, 48)), quadrants(size=(60, 48))
    (folder / "album.pdf").write_bytes(encoded(first, "PDF", save_all=True, append_images=[second]))
    (folder / "captions.csv").write_text(f'file,caption\nalbum.pdf#page=2,"{CAPTION}"\nalbum.pdf#page=1,A barn\n')
    workshop.ingest(folder)
    row = workshop.images()["album.pdf#page=2"]
    assert row.caption == CAPTION and "table files" in traces(workshop.engine, workshop.settings, CAPTION)
    remover(workshop).pictures(ARCHIVE, ["album.pdf#page=2"])
    assert traces(workshop.engine, workshop.settings, CAPTION, row.sha256) == {}
    assert {name: image.caption for name, image in workshop.images().items()} == {"album.pdf#page=1": "A barn"}
    assert traces(workshop.engine, workshop.settings, "A barn").keys() >= {"table files", "table images"}
