"""An archive with captions and random vectors, without any picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from sqlalchemy import Connection, text

from ragllava.stores.archives import archive, blobs, indexes, texts, vectors
from ragllava.stores.archives.blobs import NewBlob
from ragllava.stores.archives.descriptions import NewImage
from ragllava.stores.archives.texts import AskedWords, WordHit
from ragllava.stores.archives.vectors import IndexView, Vectors

DIM = 8


def offer(number: int, caption: str | None, *, content: str | None = None, source: str = "p{}.png") -> NewImage:
    """A picture whose file is numbered; its bytes have the same number unless `content` names them."""
    name = source.format(number)
    return NewImage(content or f"picture-{number}", name, f"file:///{name}", caption, 1, 1, "image/png")


@dataclass
class Shelf:
    """An archive and its active index."""

    connection: Connection
    index: IndexView
    random: np.random.Generator = field(default_factory=lambda: np.random.default_rng(7))

    @property
    def archive_id(self) -> int:
        return self.index.archive_id

    def store(self, *offered: NewImage) -> list[int]:
        """Store the images and their vectors; returns their ids."""
        blobs.announce_blobs(self.connection, [NewBlob(image.sha256, 9, "image/png") for image in offered])
        ids = [row.image_id for row in archive.store_images(self.connection, self.archive_id, offered)]
        self.embed(ids)
        return ids

    def add(self, *captions: str | None, source: str = "p{}.png") -> list[int]:
        """Store new pictures with these captions; returns their ids."""
        first = self.connection.scalar(text("SELECT count(*) FROM images")) or 0
        numbered = enumerate(captions, start=first)
        return self.store(*(offer(number, caption, source=source) for number, caption in numbered))

    def embed(self, image_ids: Sequence[int]) -> None:
        vectors.insert_embeddings(self.connection, self.index.index_id, image_ids, self.draw(len(image_ids)))

    def draw(self, number: int) -> Vectors:
        """Vectors of length 1."""
        drawn = self.random.normal(size=(number, DIM)).astype(np.float32)
        drawn /= np.linalg.norm(drawn, axis=1, keepdims=True)
        return drawn

    def hits(self, question: str | AskedWords, limit: int = 20) -> list[WordHit]:
        """The answer of the search to one question."""
        [hits] = texts.search(
            self.connection,
            self.index,
            [question if isinstance(question, AskedWords) else AskedWords.of(question)],
            limit,
        )
        return hits

    def ids(self, question: str | AskedWords, limit: int = 20) -> list[int]:
        """The images that the search finds."""
        return [hit.image_id for hit in self.hits(question, limit)]


def make_shelf(connection: Connection, name: str = "cards") -> Shelf:
    """A new archive."""
    archive_id = archive.ensure_archive(connection, name).archive_id
    index_id = indexes.create_index(connection, archive_id, "drawn", DIM)
    indexes.activate(connection, index_id)
    return Shelf(connection, vectors.get_index(connection, index_id))
