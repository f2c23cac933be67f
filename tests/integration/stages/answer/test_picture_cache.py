"""Pictures of an archive, fetched ahead while others are scored."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from PIL import Image

from ragllava.errors import ServiceUnavailable
from ragllava.imaging.sandbox import DecoderPool
from ragllava.settings import Settings
from ragllava.stages.resources import PictureCache
from ragllava.stores.objects import ObjectStore
from tests.support.picture_files import encoded


@pytest.fixture
def objects(settings: Settings) -> ObjectStore:
    return ObjectStore(settings)


@pytest.fixture
def thread() -> Iterator[ThreadPoolExecutor]:
    """One, so that what is submitted later has everything earlier behind it."""
    with ThreadPoolExecutor(1) as executor:
        yield executor


@pytest.fixture(scope="module")
def decoder() -> Iterator[DecoderPool]:
    with DecoderPool(1) as pool:
        yield pool


def stored(objects: ObjectStore, color: str) -> str:
    data = encoded(Image.new("RGB", (40, 30), color), "PNG")
    objects.put_content(data, "image/png")
    return hashlib.sha256(data).hexdigest()


def wait(thread: ThreadPoolExecutor) -> None:
    thread.submit(int).result()


def test_what_was_fetched_ahead_is_not_fetched_again(
    objects: ObjectStore, decoder: DecoderPool, thread: ThreadPoolExecutor
) -> None:
    cache = PictureCache(objects, decoder, thread, 2**20)
    red = stored(objects, "red")
    cache.fetch_ahead([red])
    wait(thread)
    objects.delete_content(red)
    picture = cache.get_many([red, red])[red]
    assert isinstance(picture, Image.Image)
    assert picture.getpixel((0, 0)) == (255, 0, 0)


def test_a_picture_that_is_not_requested_is_dropped(
    objects: ObjectStore, decoder: DecoderPool, thread: ThreadPoolExecutor
) -> None:
    cache = PictureCache(objects, decoder, thread, 2**20)
    red, green = stored(objects, "red"), stored(objects, "green")
    cache.fetch_ahead([red])
    cache.fetch_ahead([green])
    wait(thread)
    objects.delete_content(red)
    pictures = cache.get_many([red, green])
    assert isinstance(pictures[red], str), "it was fetched again"
    assert isinstance(pictures[green], Image.Image)


def test_a_store_that_was_away_is_asked_again(
    objects: ObjectStore, decoder: DecoderPool, thread: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = PictureCache(objects, decoder, thread, 2**20)
    red, green = stored(objects, "red"), stored(objects, "green")

    def be_away(_sha256: str) -> bytes:
        raise ServiceUnavailable("the object store does not answer")

    with monkeypatch.context() as away:
        away.setattr(objects, "get_content", be_away)
        cache.fetch_ahead([red, green])
        with pytest.raises(ServiceUnavailable):
            cache.get_many([red, green])
    assert all(isinstance(picture, Image.Image) for picture in cache.get_many([red, green]).values())
