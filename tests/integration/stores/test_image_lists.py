"""Lists of images: pages by key, marks for jumps, states and filters, against a sorted list in memory."""

from __future__ import annotations

from collections.abc import Iterator
from hashlib import sha256

import pytest
from sqlalchemy import Connection, update

from ragllava.stores.archives import archive, blobs, image_lists
from ragllava.stores.archives.archive import ListedImage
from ragllava.stores.archives.blobs import NewBlob
from ragllava.stores.archives.descriptions import NewImage
from ragllava.stores.archives.image_lists import ImageOrder, ImageState, ListKey, ListOptions
from ragllava.stores.schema import images

NUMBER = 50


@pytest.fixture
def cards(connection: Connection) -> tuple[int, list[NewImage]]:
    """An archive whose names are in another order than its ids; every fifth has no caption, every tenth is retired."""
    offered = []
    for number in range(NUMBER):
        digest = sha256(str(number).encode()).hexdigest()
        name = "long" * 100 + digest if number % 9 == 0 else f"{digest[:2]}.png"
        caption = None if number % 5 == 0 else f"card {number}"
        metadata = {"year": 1950 + number}
        offered.append(NewImage(digest, name, f"file:///{number}", caption, 1, 1, "image/png", metadata))
    archive_id = archive.ensure_archive(connection, "cards").archive_id
    blobs.announce_blobs(connection, [NewBlob(image.sha256, 1, "image/png") for image in offered])
    archive.store_images(connection, archive_id, offered)
    connection.execute(update(images).where(images.c.id % 10 == 0).values(retired=True))
    return archive_id, offered


def pages(connection: Connection, archive_id: int, options: ListOptions, limit: int) -> Iterator[ListedImage]:
    after = None
    while page := image_lists.list_page(connection, archive_id, options, after, limit):
        yield from page
        last = page[-1]
        after = ListKey(last.image_id, last.source[:200] if options.order is ImageOrder.NAME else "")


@pytest.mark.parametrize("order", list(ImageOrder))
@pytest.mark.parametrize("state", list(ImageState))
def test_pages_follow_each_other_and_marks_lead_into_them(
    connection: Connection, cards: tuple[int, list[NewImage]], order: ImageOrder, state: ImageState
) -> None:
    archive_id, _ = cards
    options = ListOptions(state, {"year": {"from": 1953}}, order)
    listed = list(pages(connection, archive_id, options, 7))
    keys = [(image.source[:200].encode() if order is ImageOrder.NAME else b"", image.image_id) for image in listed]
    assert keys == sorted(set(keys)) and listed
    assert listed == image_lists.list_page(connection, archive_id, options, None, 1_000)
    marks = image_lists.list_marks(connection, archive_id, options, 4)
    assert marks.total == len(listed) and len(marks.keys) == len(listed) // 4
    for number, key in enumerate(marks.keys, start=1):
        assert image_lists.list_page(connection, archive_id, options, key, 4) == listed[4 * number :][:4]


def test_a_state_lists_its_images(connection: Connection, cards: tuple[int, list[NewImage]]) -> None:
    archive_id, offered = cards
    by_state = {state: list(pages(connection, archive_id, ListOptions(state), 1_000)) for state in ImageState}
    used, retired = by_state[ImageState.USED], by_state[ImageState.RETIRED]
    assert len(used) + len(retired) == len(offered) and all(image.image_id % 10 == 0 for image in retired)
    assert by_state[ImageState.WITHOUT_CAPTION] == [image for image in used if image.caption is None]
    assert by_state[ImageState.NOT_INDEXED] == used
    assert image_lists.list_marks(connection, archive_id + 1, ListOptions(), 5).total == 0
