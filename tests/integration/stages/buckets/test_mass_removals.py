"""An archive that loses most of its pictures at once is not emptied without being asked."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from ragllava.stages.buckets import scanning
from ragllava.stages.buckets.binding import bind_archive
from ragllava.stages.buckets.watched_folder import WatchedFolder
from ragllava.stores.buckets import held_removals
from ragllava.stores.buckets.bindings import BindingRole
from ragllava.stores.buckets.held_removals import HeldRemoval, is_too_much
from ragllava.stores.database import in_transaction
from tests.support.foreign_bucket import make_bucket
from tests.support.maintenance_tasks import do
from tests.support.picture_files import encoded, quadrants
from tests.support.workshop import ARCHIVE, Workshop

NAMES = [f"{number}.png" for number in range(6)]


def picture(number: int) -> bytes:
    image = quadrants(size=(48, 48))
    image.paste((30 * number, 90, 200 - 30 * number), (0, 0, 24, 48))
    return encoded(image, "PNG")


def held(workshop: Workshop) -> list[HeldRemoval]:
    return in_transaction(workshop.engine, held_removals.list_held)


def test_an_empty_mount_point_does_not_empty_the_archive(workshop: Workshop, tmp_path: Path) -> None:
    folder, unmounted = tmp_path / "mounted", tmp_path / "elsewhere"
    folder.mkdir()
    for number, name in enumerate(NAMES):
        (folder / name).write_bytes(picture(number))
    watched = WatchedFolder(folder, ARCHIVE)
    watched.compare(workshop.engine, workshop.settings)
    workshop.run()

    folder.rename(unmounted)
    folder.mkdir()
    for process in (watched, WatchedFolder(folder, ARCHIVE)):  # also a process that starts while it is away
        changes = process.compare(workshop.engine, workshop.settings)
        assert (changes.held, changes.gone) == (6, [])
    assert sorted(workshop.images()) == NAMES and workshop.embedded() == 6
    [entry] = held(workshop)
    assert (entry.archive, entry.gone, entry.pictures) == (ARCHIVE, 6, 6)
    assert "6 of 6 pictures" in entry.problem and "--allow-removals" in entry.problem

    folder.rmdir()
    unmounted.rename(folder)
    changes = watched.compare(workshop.engine, workshop.settings)
    assert not changes.found_differences and not held(workshop), "mounted again: nothing has changed"

    shutil.rmtree(folder)
    folder.mkdir()
    watched.allow_removals = True
    assert watched.compare(workshop.engine, workshop.settings).gone == NAMES
    assert workshop.images() == {} and not held(workshop)
    assert not watched.allow_removals, "allowed once, not for ever"


def test_a_bucket_that_is_suddenly_empty_keeps_its_pictures(workshop: Workshop) -> None:
    bucket = make_bucket(workshop.settings)
    for number, name in enumerate(NAMES):
        bucket.put(f"in/{name}", picture(number))
    address = f"s3://{bucket.name}/in/"
    services = workshop.engine, workshop.settings, workshop.resources.objects
    bind_archive(workshop.engine, workshop.resources.objects, ARCHIVE, address, BindingRole.PICTURES, {})
    scanning.scan(*services, ARCHIVE)
    workshop.run()
    scanning.scan(*services, ARCHIVE)

    bucket.remove(*(f"in/{name}" for name in NAMES[:5]))
    bucket.put("in/new.png", picture(7))
    [report] = scanning.scan(*services, ARCHIVE)
    assert report.held == 5 and report.changes.gone == [] and report.changes.added == ["in/new.png"]
    task = do(workshop, "scan", ARCHIVE)
    assert task.task is not None and task.task.status == "failed" and "--allow-removals" in str(task.task.reason)
    assert set(NAMES) <= workshop.images().keys()
    assert [entry.origin for entry in held(workshop)] == [address]

    [report] = scanning.scan(*services, ARCHIVE, allow_removals=True)
    assert report.held == 0 and report.changes.gone == [f"in/{name}" for name in NAMES[:5]]
    assert workshop.images().keys() == {NAMES[5], "new.png"} and not held(workshop)


@pytest.mark.parametrize(
    ("gone", "pictures", "share", "expected"),
    [
        (1, 1, 0.5, False),  # somebody who tries it with one picture
        (2, 2, 0.5, True),
        (3, 4, 0.5, False),
        (5, 10, 0.5, False),
        (6, 10, 0.5, True),
        (10, 10, 1.0, False),
        (5, 1000, 0.0, True),
        (0, 0, 0.0, False),
    ],
)
def test_how_many_are_too_many(gone: int, pictures: int, share: float, expected: bool) -> None:
    assert is_too_much(gone, pictures, share) is expected
