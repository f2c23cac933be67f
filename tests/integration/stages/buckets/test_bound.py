"""Bound buckets: events and scans keep an archive in sync, on a real store and with the mini retriever."""

from __future__ import annotations

import io
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
from PIL import ExifTags, Image
from sqlalchemy import Connection, func, select, text, update

from ragllava.errors import UsageError
from ragllava.settings import Settings
from ragllava.stages.answer.slow_reads import SlowReads
from ragllava.stages.buckets import observing, scanning, sync
from ragllava.stages.buckets.scanning import ScanReport
from ragllava.stages.buckets.sync import ProcessedEvents
from ragllava.stages.erasing.remove import Remover
from ragllava.stores.archives import archive
from ragllava.stores.buckets import bindings, bound_objects, change_events
from ragllava.stores.buckets.bindings import Binding, BindingRole
from ragllava.stores.buckets.bound_objects import ObjectKind
from ragllava.stores.database import in_transaction
from ragllava.stores.objects import ObjectStore
from ragllava.stores.schema import change_events as change_event_table
from ragllava.stores.schema import images, jobs
from tests.support.described_pictures import exif, jpeg_with
from tests.support.foreign_bucket import Bucket, make_bucket
from tests.support.workshop import ARCHIVE, Workshop


def png(seed: int) -> bytes:
    """A small picture of coloured noise: no two seeds are alike."""
    noise = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), np.uint8)
    stream = io.BytesIO()
    Image.fromarray(noise).resize((48, 48)).save(stream, "PNG")
    return stream.getvalue()


@dataclass(frozen=True)
class Bound:
    """An archive bound to `in/` of a bucket."""

    workshop: Workshop
    bucket: Bucket
    binding: Binding
    objects: ObjectStore

    def event(self, *keys: str) -> None:
        """Record events about these objects."""
        with self.workshop.engine.begin() as connection:
            change_events.record(connection, [(self.bucket.name, key) for key in keys])

    def process_events(self) -> ProcessedEvents:
        """Process the change events; postponed ones are due now."""
        in_transaction(self.workshop.engine, _make_all_due)  # repeated when others lock the rows in another order
        return sync.process_events(self.workshop.engine, self.workshop.settings, self.objects, SlowReads())

    def follow(self, *keys: str) -> None:
        """Record events about these objects, and process everything that follows."""
        self.event(*keys)
        self.process_events()
        self.workshop.run()
        self.process_events()

    def scan(self, *, retry_refused: bool = False) -> ScanReport:
        """Scan, and run the jobs."""
        services = self.workshop.engine, self.workshop.settings, self.objects
        [report] = scanning.scan(*services, ARCHIVE, retry_refused=retry_refused)
        self.workshop.run()
        sync.settle(self.workshop.engine)
        return report

    def captions(self) -> dict[str, str | None]:
        """The captions of the archive's living images, by source."""
        return {source: row.caption for source, row in self.workshop.images().items()}

    def metadata(self) -> dict[str, dict[str, Any] | None]:
        """The metadata of the archive's living images, by source."""
        return {source: row.metadata for source, row in self.workshop.images().items()}

    def ingest_jobs(self) -> list[int]:
        """The totals of all jobs so far, oldest first."""
        with self.workshop.engine.begin() as connection:
            return list(connection.scalars(select(jobs.c.total).order_by(jobs.c.id)))

    def waiting(self) -> int:
        """The number of remaining change events."""
        with self.workshop.engine.begin() as connection:
            return change_events.count_waiting(connection)

    def recorded(self) -> dict[str, bound_objects.BoundObject]:
        """The recorded states of the objects, by key."""
        with self.workshop.engine.begin() as connection:
            return {row.key: row for row in bound_objects.all_objects(connection, self.binding.binding_id)}


def _make_all_due(connection: Connection) -> None:
    connection.execute(update(change_event_table).values(not_before=func.now()))


@pytest.fixture
def bucketful(workshop: Workshop, settings: Settings) -> Iterator[Bound]:
    bucket = make_bucket(settings)
    with workshop.engine.begin() as connection:
        archive_id = archive.ensure_archive(connection, ARCHIVE).archive_id
        binding = bindings.bind(connection, archive_id, BindingRole.PICTURES, bucket.name, "in/", {})
    yield Bound(workshop, bucket, binding, ObjectStore(settings))


def test_new_objects_become_images_of_one_job(bucketful: Bound) -> None:
    keys = [f"in/{name}.png" for name in ("a", "b c", "grüße+%41", "deep/er")]
    for number, key in enumerate(keys):
        bucketful.bucket.put(key, png(number))
    bucketful.bucket.put("in/broken.png", b"no picture")
    bucketful.bucket.put("in/notes.md", b"not for the archive")
    bucketful.bucket.put("elsewhere/d.png", png(9))
    bucketful.follow(*keys, "in/broken.png", "in/notes.md", "elsewhere/d.png", "in/never-there.png")
    assert bucketful.ingest_jobs() == [5]
    assert bucketful.captions().keys() == {"a.png", "b c.png", "deep/er.png", "grüße+%41.png"}
    assert bucketful.workshop.embedded() == 4
    assert bucketful.waiting() == 0
    recorded = bucketful.recorded()
    assert set(recorded) == {*keys, "in/broken.png", "in/notes.md"}
    assert all(recorded[key].image_id and not recorded[key].is_waiting for key in keys)
    assert recorded["in/broken.png"].reason and "decoded" not in (recorded["in/notes.md"].reason or "")


def test_repeated_events_change_nothing(bucketful: Bound) -> None:
    bucketful.bucket.put("in/a.png", png(1))
    bucketful.bucket.put("in/bad.png", b"bad")
    bucketful.follow("in/a.png", "in/bad.png")
    before = bucketful.recorded()
    for _ in range(3):
        bucketful.event(*["in/a.png", "in/bad.png"] * 200)
    processed = bucketful.process_events()
    assert (processed.change_events, processed.changes.unchanged) == (2, 2)
    assert bucketful.recorded() == before
    assert bucketful.ingest_jobs() == [2]
    with bucketful.workshop.engine.begin() as connection:
        assert change_events.totals(connection)["unchanged"] == 2


def test_an_overwritten_object_replaces_its_image_and_a_deleted_one_takes_it_away(bucketful: Bound) -> None:
    for name, seed in (("a", 1), ("b", 2)):
        bucketful.bucket.put(f"in/{name}.png", png(seed))
    bucketful.follow("in/a.png", "in/b.png")
    first = bucketful.workshop.images()
    bucketful.bucket.put("in/a.png", png(3))
    bucketful.bucket.remove("in/b.png")
    bucketful.follow("in/a.png", "in/b.png")
    after = bucketful.workshop.images()
    assert after.keys() == {"a.png"}
    assert after["a.png"].sha256 != first["a.png"].sha256
    assert bucketful.workshop.embedded() == 1
    assert set(bucketful.recorded()) == {"in/a.png"}


def test_an_object_overwritten_with_unreadable_bytes_loses_its_image(bucketful: Bound) -> None:
    bucketful.bucket.put("in/a.png", png(1))
    bucketful.follow("in/a.png")
    bucketful.bucket.put("in/a.png", b"no picture any more")
    bucketful.follow("in/a.png")
    assert bucketful.workshop.images() == {}
    assert bucketful.workshop.embedded() == 0


def test_an_image_stays_as_long_as_one_of_its_objects_is_there(bucketful: Bound) -> None:
    for name in ("a", "b", "c"):
        bucketful.bucket.put(f"in/{name}.png", png(1))
    bucketful.follow("in/a.png", "in/b.png", "in/c.png")
    [first] = bucketful.workshop.images().values()
    named = f"in/{first.source}"
    bucketful.bucket.remove(named)
    bucketful.follow(named)
    [second] = bucketful.workshop.images().values()
    assert second.id == first.id and second.source != first.source
    bucketful.bucket.put(f"in/{second.source}", png(2))
    bucketful.follow(f"in/{second.source}")
    living = bucketful.workshop.images()
    assert len(living) == 2 and living[second.source].id != first.id
    [last] = [row for row in living.values() if row.id == first.id]
    bucketful.bucket.remove(f"in/{last.source}")
    bucketful.follow(f"in/{last.source}")
    assert [row.source for row in bucketful.workshop.images().values()] == [second.source]
    assert bucketful.workshop.embedded() == 1


def test_a_change_waits_for_the_job_of_the_version_before(bucketful: Bound) -> None:
    bucketful.bucket.put("in/a.png", png(1))
    bucketful.event("in/a.png")
    bucketful.process_events()
    bucketful.bucket.remove("in/a.png")
    bucketful.event("in/a.png")
    assert bucketful.process_events().kept == 1
    bucketful.workshop.run()
    bucketful.follow()
    assert bucketful.workshop.images() == {} and bucketful.recorded() == {} and bucketful.waiting() == 0


def test_an_object_that_was_away_while_its_job_ran_is_looked_at_again(bucketful: Bound) -> None:
    bucketful.bucket.put("in/a.png", png(1))
    bucketful.event("in/a.png")
    bucketful.process_events()
    bucketful.bucket.remove("in/a.png")
    bucketful.workshop.run()
    bucketful.bucket.put("in/a.png", png(1))
    bucketful.event("in/a.png")
    bucketful.follow()
    bucketful.follow()
    assert bucketful.workshop.images().keys() == {"a.png"}


def test_concurrent_processing_makes_one_job(bucketful: Bound) -> None:
    keys = [f"in/{number}.png" for number in range(40)]
    for number, key in enumerate(keys):
        bucketful.bucket.put(key, png(number))
    bucketful.event(*keys)
    with ThreadPoolExecutor(4) as threads:
        done = list(threads.map(lambda _: bucketful.process_events(), range(4)))
    assert sum(len(processed.changes.added) for processed in done) == 40
    bucketful.workshop.run()
    bucketful.follow(*keys)
    assert sum(bucketful.ingest_jobs()) == 40
    assert len(bucketful.workshop.images()) == 40


def test_an_event_that_arrives_during_the_observation_is_not_lost(bucketful: Bound) -> None:
    bucketful.event("in/a.png")
    with bucketful.workshop.engine.begin() as connection:
        claimed = change_events.claim(connection, 10, 60.0)
        assert change_events.claim(connection, 10, 60.0) == []
    bucketful.event("in/a.png")
    with bucketful.workshop.engine.begin() as connection:
        change_events.finish(connection, claimed)
        [again] = change_events.claim(connection, 10, 60.0)
        change_events.finish(connection, [again])
        assert change_events.count_waiting(connection) == 0


def test_captions_of_a_file_go_before_sidecars_and_those_before_metadata(bucketful: Bound) -> None:
    put = bucketful.bucket.put
    put("in/a.png", png(1), {"caption": "from%20metadata: 50 % gr%C3%BCn"})
    put("in/b.png", png(2), {"caption": "=?UTF-8?B?YsO8cm8=?="})
    put("in/c.png", png(3), {"caption": "metadata"})
    put("in/b.txt", b"from the\nsidecar")
    put("in/c.caption", b"sidecar")
    put("in/captions.csv", b"image,caption\nc.png,from the file\n")
    bucketful.follow("in/a.png", "in/b.png", "in/b.txt", "in/c.png", "in/c.caption", "in/captions.csv")
    assert bucketful.captions() == {
        "a.png": "from metadata: 50 % grün",
        "b.png": "from the sidecar",
        "c.png": "from the file",
    }
    bucketful.bucket.remove("in/captions.csv", "in/b.txt")
    bucketful.follow("in/captions.csv", "in/b.txt")
    assert bucketful.captions() == {"a.png": "from metadata: 50 % grün", "b.png": "büro", "c.png": "sidecar"}
    assert bucketful.ingest_jobs() == [3], "a caption is not a reason to embed anything again"


def test_metadata_come_from_the_caption_file_and_from_inside(bucketful: Bound) -> None:
    inside = jpeg_with(exif({ExifTags.Base.ImageDescription: "A barn", ExifTags.Base.Model: "C1"}))
    bucketful.bucket.put("in/a.jpg", inside)
    bucketful.bucket.put("in/b.png", png(2))
    bucketful.bucket.put("in/captions.csv", b"file,caption,city,year\na.jpg,,Ansel,1968\nb.png,A boat,Wenby,\n")
    bucketful.follow("in/a.jpg", "in/b.png", "in/captions.csv")
    assert bucketful.metadata() == {
        "a.jpg": {"camera": "C1", "city": "Ansel", "year": "1968"},
        "b.png": {"city": "Wenby"},
    }
    assert bucketful.captions() == {"a.jpg": "A barn", "b.png": "A boat"}

    bucketful.bucket.put("in/captions.csv", b"file,caption,city\na.jpg,Listed,Ansel\n")
    bucketful.event("in/captions.csv")
    assert sorted(bucketful.process_events().changes.captions) == ["in/a.jpg", "in/b.png"]
    assert bucketful.metadata() == {"a.jpg": {"camera": "C1", "city": "Ansel"}, "b.png": None}
    assert bucketful.captions() == {"a.jpg": "Listed", "b.png": None}

    bucketful.bucket.remove("in/captions.csv")
    bucketful.follow("in/captions.csv")
    assert bucketful.metadata() == {"a.jpg": {"camera": "C1"}, "b.png": None}
    assert bucketful.captions() == {"a.jpg": "A barn", "b.png": None}
    assert bucketful.ingest_jobs() == [2], "metadata are not a reason to embed anything again"


def test_a_caption_file_in_a_folder_is_of_that_folder(bucketful: Bound) -> None:
    put = bucketful.bucket.put
    for number, name in enumerate(("a", "trip/a", "trip/b", "trip/deep/c")):
        put(f"in/{name}.png", png(number))
    put("in/captions.csv", b"file,caption\na.png,Top\ntrip/b.png,From above\n")
    put("in/trip/captions.csv", b"file,caption,city\na.png,Trip,Wenby\ntrip/b.png,Nearest,\ndeep/c.png,Deep,\n")
    bucketful.scan()
    expected = {"a.png": "Top", "trip/a.png": "Trip", "trip/b.png": "Nearest", "trip/deep/c.png": "Deep"}
    assert bucketful.captions() == expected
    assert bucketful.metadata()["trip/a.png"] == {"city": "Wenby"}
    bucketful.bucket.remove("in/trip/captions.csv")
    bucketful.follow("in/trip/captions.csv")
    left = {"a.png": "Top", "trip/a.png": None, "trip/b.png": "From above", "trip/deep/c.png": None}
    assert bucketful.captions() == left
    assert not bucketful.scan().found_differences


def test_a_sidecar_has_metadata_besides_its_caption(bucketful: Bound) -> None:
    put = bucketful.bucket.put
    put("in/a.png", png(1))
    put("in/a.json", b'{"caption": "A barn", "city": "Ansel", "year": 1968}')
    bucketful.scan()
    assert (bucketful.captions(), bucketful.metadata()) == (
        {"a.png": "A barn"},
        {"a.png": {"city": "Ansel", "year": 1968}},
    )
    put("in/captions.csv", b"file,caption,city\na.png,,Wenby\n")
    bucketful.follow("in/captions.csv")
    assert (bucketful.captions(), bucketful.metadata()) == (
        {"a.png": "A barn"},
        {"a.png": {"city": "Wenby", "year": 1968}},
    )
    put("in/a.json", b'{"caption": "A barn", "year": 1970}')
    bucketful.follow("in/a.json")
    assert bucketful.metadata() == {"a.png": {"city": "Wenby", "year": 1970}}
    assert not bucketful.scan().found_differences
    bucketful.bucket.remove("in/a.json", "in/captions.csv")
    bucketful.follow("in/a.json", "in/captions.csv")
    assert (bucketful.captions(), bucketful.metadata()) == ({"a.png": None}, {"a.png": None})


def test_captions_that_come_later_and_earlier_than_their_pictures(bucketful: Bound) -> None:
    bucketful.bucket.put("in/early.txt", b"early bird")
    bucketful.follow("in/early.txt")
    bucketful.bucket.put("in/early.png", png(1))
    bucketful.bucket.put("in/late.png", png(2))
    bucketful.event("in/early.png", "in/late.png")
    bucketful.process_events()
    bucketful.bucket.put("in/late.txt", b"late bird")
    bucketful.follow("in/late.txt")
    assert bucketful.captions() == {"early.png": "early bird", "late.png": "late bird"}
    bucketful.bucket.put("in/late.txt", b"other words")
    bucketful.bucket.put("in/captions.jsonl", b'{"image": "early.png", "caption": "of the file"}')
    bucketful.follow("in/late.txt", "in/captions.jsonl")
    assert bucketful.captions() == {"early.png": "of the file", "late.png": "other words"}


def test_a_caption_file_that_cannot_be_read_leaves_the_captions_as_they_are(bucketful: Bound) -> None:
    bucketful.bucket.put("in/a.png", png(1))
    bucketful.bucket.put("in/captions.csv", b"image,caption\na.png,good\n")
    bucketful.follow("in/a.png", "in/captions.csv")
    bucketful.bucket.put("in/captions.csv", b"nothing,of,this\n1,2,3\n")
    bucketful.follow("in/captions.csv")
    assert bucketful.captions() == {"a.png": "good"}
    assert "captions.csv: the first line must be a header" in (bucketful.recorded()["in/captions.csv"].reason or "")


def test_a_scan_repairs_what_events_have_lost_and_names_it(bucketful: Bound) -> None:
    for number in range(6):
        bucketful.bucket.put(f"in/{number}.png", png(number))
    bucketful.bucket.put("in/bad.png", b"bad")
    first = bucketful.scan()
    assert sorted(first.changes.added) == [*(f"in/{number}.png" for number in range(6)), "in/bad.png"]
    again = bucketful.scan()
    assert not again.found_differences and again.listed == 7
    assert list(again.refused) == ["in/bad.png"]

    bucketful.bucket.remove("in/0.png")
    bucketful.bucket.put("in/1.png", png(11))
    bucketful.bucket.put("in/2.txt", b"two")
    bucketful.bucket.put("in/6.png", png(6))
    with bucketful.workshop.engine.begin() as connection:  # an image that was retired by mistake
        connection.execute(update(images).where(images.c.source == "3.png").values(retired=True))
    report = bucketful.scan()
    changes = report.changes
    assert (changes.gone, changes.replaced, changes.captions) == (["in/0.png"], ["in/1.png"], ["in/2.png"])
    assert (sorted(changes.added), changes.restored) == (["in/6.png"], ["in/3.png"])
    assert bucketful.captions() == {
        "1.png": None, "2.png": "two", "3.png": None, "4.png": None, "5.png": None, "6.png": None,
    }  # fmt: skip
    assert bucketful.workshop.embedded() == 6
    assert not bucketful.scan().found_differences
    assert report.as_json()["added"] == {"number": 1, "first": ["in/6.png"]}


def test_what_was_refused_is_tried_again_when_somebody_asks(bucketful: Bound) -> None:
    """As after an upgrade, or the installation of a decoder: the object is the same."""
    strict = replace(bucketful, workshop=bucketful.workshop.with_settings(max_picture_side=40))
    bucketful.bucket.put("in/a.png", png(1))
    bucketful.bucket.put("in/bad.png", b"bad")
    bucketful.bucket.put("in/captions.csv", b"a,b\n1,2\n")
    assert strict.scan().changes.added == ["in/a.png", "in/bad.png"]
    assert bucketful.captions() == {}
    report = bucketful.scan()
    assert not report.found_differences and sorted(report.refused) == ["in/a.png", "in/bad.png", "in/captions.csv"]

    assert bucketful.scan(retry_refused=True).changes.restored == ["in/a.png", "in/bad.png"]
    assert bucketful.captions() == {"a.png": None}
    report = bucketful.scan()
    assert not report.found_differences and sorted(report.refused) == ["in/bad.png", "in/captions.csv"]


def test_a_name_that_an_earlier_version_knew_nothing_of_is_tried_again(
    bucketful: Bound, monkeypatch: pytest.MonkeyPatch
) -> None:
    bucketful.bucket.put("in/a.heic.png", png(1))
    bucketful.bucket.put("in/a.heic.txt", b"A barn")
    bucketful.bucket.put("in/notes.md", b"no picture")
    with monkeypatch.context() as earlier:
        earlier.setattr(observing, "kind_of", lambda binding, key: ObjectKind.OTHER)
        bucketful.scan()
    assert bucketful.captions() == {} and bucketful.ingest_jobs() == []
    bucketful.scan()
    assert bucketful.captions() == {"a.heic.png": "A barn"}
    assert not bucketful.scan().found_differences and bucketful.ingest_jobs() == [1]


def test_an_erased_picture_is_not_tried_again(bucketful: Bound) -> None:
    bucketful.bucket.put("in/a.png", png(1))
    bucketful.scan()
    shop = bucketful.workshop
    Remover(shop.engine, shop.settings, bucketful.objects, "tester").pictures(ARCHIVE, ["a.png"])
    report = bucketful.scan(retry_refused=True)
    assert not report.found_differences and list(report.refused) == ["in/a.png"]
    assert bucketful.captions() == {}


def test_a_scan_of_a_bucket_that_is_gone_retires_nothing(bucketful: Bound) -> None:
    bucketful.bucket.put("in/a.png", png(1))
    bucketful.follow("in/a.png")
    bucketful.bucket.remove("in/a.png")
    bucketful.bucket.client.remove_bucket(bucketful.bucket.name)
    with pytest.raises(UsageError, match="there is no bucket"):
        bucketful.scan()
    bucketful.follow("in/a.png")
    assert bucketful.workshop.images().keys() == {"a.png"}
    assert bucketful.waiting() == 1


def test_an_unavailable_store_keeps_the_events(bucketful: Bound) -> None:
    bucketful.bucket.put("in/a.png", png(1))
    bucketful.event("in/a.png")
    nowhere = ObjectStore(
        bucketful.workshop.settings.model_copy(update={"s3_endpoint": "127.0.0.1:9", "s3_socket": None})
    )
    processed = sync.process_events(bucketful.workshop.engine, bucketful.workshop.settings, nowhere, SlowReads())
    assert (processed.change_events, processed.kept) == (1, 1)
    bucketful.follow()
    assert bucketful.workshop.images().keys() == {"a.png"}


def bind(workshop: Workshop, name: str, bucket: str, prefix: str, **options: Any) -> Binding:
    role = BindingRole.INBOX if options else BindingRole.PICTURES
    with workshop.engine.begin() as connection:
        archive_id = archive.ensure_archive(connection, name).archive_id
        return bindings.bind(connection, archive_id, role, bucket, prefix, options)


@pytest.mark.parametrize(
    ("bucket", "prefix", "options", "says"),
    [
        ("b", "in/", {}, "overlaps with s3://b/in/, which is bound to the archive one as pictures"),
        ("b", "", {}, "overlaps with s3://b/in/"),
        ("b", "in/deeper/", {}, "overlaps with s3://b/in/"),
        ("b", "out/", {}, "overlaps with the outbox s3://b/out/"),
        ("c", "", {"outbox": "s3://b/in/results/"}, "overlaps with the outbox s3://b/in/results/"),
        ("c", "", {"outbox": "s3://c/out/"}, "overlaps with its own outbox"),
    ],
)
def test_overlapping_bindings_are_refused(
    workshop: Workshop, bucket: str, prefix: str, options: dict[str, Any], says: str
) -> None:
    bind(workshop, "one", "b", "in/")
    bind(workshop, "one", "b", "questions/", outbox="s3://b/out/")
    with pytest.raises(UsageError, match=says):
        bind(workshop, "other", bucket, prefix, **options)
    assert bind(workshop, "one", "b", "in/").prefix == "in/", "the same binding again is not an overlap"
    bind(workshop, "other", "b", "inner/")
    bind(workshop, "other", "d", "")


def test_two_overlapping_bindings_at_once_are_one(workshop: Workshop) -> None:
    barrier = threading.Barrier(2)

    def attempt(prefix: str) -> bool:
        barrier.wait(60)
        try:
            bind(workshop, "one", "b", prefix)
        except UsageError:
            return False
        return True

    with ThreadPoolExecutor(2) as threads:
        made: Sequence[bool] = list(threads.map(attempt, ["in/", "in/deeper/"]))
    assert sorted(made) == [False, True]


def test_events_without_a_binding_are_not_recorded(bucketful: Bound) -> None:
    with bucketful.workshop.engine.begin() as connection:
        name = bucketful.bucket.name
        first = change_events.record(connection, [(name, "in/a"), (name, "in/a"), (name, "out/a"), ("other", "in/a")])
        second = change_events.record(connection, [(name, "in/a"), (name, "in/b")])
        assert (first.new, first.repeated, first.unbound) == (1, 1, 2)
        assert (second.new, second.repeated, second.unbound) == (1, 1, 0)
        assert connection.scalar(text("SELECT count(*) FROM change_events")) == 2
