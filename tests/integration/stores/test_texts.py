"""The words of images, and the search for them, on a real database."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import pytest
from sqlalchemy import Connection, text, update

from ragllava.stores.archives import archive, blobs, indexes, texts, vectors
from ragllava.stores.archives.archive import NewImage
from ragllava.stores.archives.blobs import NewBlob
from ragllava.stores.archives.vectors import IndexView, Vectors
from ragllava.stores.schema import images
from ragllava.words import source_words, words_of
from tests.support import bm25

DIM = 8


@dataclass
class Shelf:
    """An archive with an index whose vectors are random."""

    connection: Connection
    index: IndexView
    random: np.random.Generator = field(default_factory=lambda: np.random.default_rng(7))

    @property
    def archive_id(self) -> int:
        return self.index.archive_id

    def add(self, *captions: str | None, source: str = "p{}.png", embed: bool = True) -> list[int]:
        """Pictures of their own with these captions; returns their ids."""
        first = self.connection.scalar(text("SELECT count(*) FROM images"))
        offered = []
        for number, caption in enumerate(captions, start=first):
            name = source.format(number)
            offered.append(NewImage(f"{self.archive_id}-{number}", name, f"file:///{name}", caption, 1, 1, "image/png"))
        blobs.announce_blobs(self.connection, [NewBlob(image.sha256, 9, "image/png") for image in offered])
        ids = [row.image_id for row in archive.store_images(self.connection, self.archive_id, offered)]
        if embed:
            vectors.insert_embeddings(self.connection, self.index.index_id, ids, self.draw(len(ids)))
        return ids

    def draw(self, number: int) -> Vectors:
        drawn = self.random.normal(size=(number, DIM)).astype(np.float32)
        return drawn / np.linalg.norm(drawn, axis=1, keepdims=True)

    def ids(self, question: str | Sequence[str], limit: int = 20) -> list[int]:
        [hits] = texts.search(self.connection, self.index, [question], limit)
        return [hit.image_id for hit in hits]


def make_shelf(connection: Connection, name: str) -> Shelf:
    archive_id = archive.ensure_archive(connection, name).archive_id
    index_id = indexes.create_index(connection, archive_id, "drawn", DIM)
    indexes.activate(connection, index_id)
    return Shelf(connection, vectors.get_index(connection, index_id))


@pytest.fixture
def shelf(connection: Connection) -> Shelf:
    return make_shelf(connection, "cards")


class TestSearch:
    def test_equals_bm25_computed_from_the_texts(self, shelf: Shelf) -> None:
        rng = random.Random(3)
        words = [f"{first}{last}" for first in ("kar", "mel", "un", "wex") for last in "abcdefghijkl"] + ["the", "of"]

        def line(longest: int) -> str:
            return " ".join(rng.choices(words, weights=[1.0] * 48 + [40.0, 20.0], k=rng.randint(0, longest)))

        ids = shelf.add(*(line(9) for _ in range(400)), source="shelf/{}.png")
        for image_id in ids[::3]:
            metadata = {"title": line(3), "tags": [line(2), line(1)], "iso": 100}
            shelf.connection.execute(update(images).where(images.c.id == image_id).values(metadata=metadata))
        texts.write_words(shelf.connection, shelf.archive_id, ids)
        fields = {}
        for row in shelf.connection.execute(text("SELECT id, caption, metadata, source FROM images")):
            said = [row.metadata["title"], *row.metadata["tags"]] if row.metadata else []
            of_metadata = [word for each in said for word in words_of(each)]
            fields[row.id] = {"A": words_of(row.caption or ""), "C": of_metadata, "D": source_words(row.source)}
        questions = [line(6) or "kara" for _ in range(100)] + ["the of", "the", "shelf", "nothing"]
        found = texts.search(shelf.connection, shelf.index, questions, 20)
        for question, hits in zip(questions, found, strict=True):
            expected = bm25.scores(fields, words_of(question))
            assert [hit.image_id for hit in hits] == bm25.best(expected, 20)
            scores = [expected[hit.image_id] for hit in hits]
            assert [hit.caption_score for hit in hits] == pytest.approx(scores, rel=1e-5)
