"""Pictures to ingest, shards that stop in the middle, and a look at what was stored; for the tests of the stage."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image
from sqlalchemy import text

from ragllava.jobs.runner import ShardContext
from ragllava.records import JobKind
from ragllava.source_files import SourceFile
from ragllava.stages.ingest.submit import submit_files
from ragllava.stages.ingest.uris import file_uri
from ragllava.stages.resources import Resources
from ragllava.stores.archives import archive, vector_search, vectors
from ragllava.stores.database import in_transaction
from tests.support.workshop import ARCHIVE, Workshop

FloatArray = npt.NDArray[np.float32]


def captioned(folder: Path, captions: dict[str, str]) -> list[SourceFile]:
    """The files of a folder, each listed once, with the captions given by name."""
    names = sorted(path.name for path in folder.iterdir())
    return [SourceFile(name, file_uri(folder / name), captions.get(name)) for name in names]


def draw(path: Path, seed: int, size: tuple[int, int] = (96, 96)) -> Path:
    """A picture of coarse coloured noise: no two seeds look alike."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (6, 6, 3), np.uint8))
    coarse.resize(size, Image.Resampling.BICUBIC).save(path)
    return path


def stored_vectors(workshop: Workshop) -> dict[int, FloatArray]:
    """What the database holds, by image id."""
    with workshop.engine.begin() as connection:
        rows = connection.execute(text("SELECT image_id, vector::text AS vector FROM embeddings")).all()
    return {row.image_id: np.array(json.loads(row.vector), np.float32) for row in rows}


def nearest(workshop: Workshop, picture: Path) -> tuple[str, float]:
    """The archive's image that looks most like a picture, and their cosine to two decimals."""
    [query] = workshop.resources.models.retriever.embed_images([Image.open(picture).convert("RGB")], batch_size=1)
    with workshop.engine.begin() as connection:
        index = vectors.active_index(connection, workshop.archive_id())
        assert index is not None
        [[hit]] = vector_search.search(connection, index, query[None], k=1)
        return archive.load_images(connection, [hit.image_id])[hit.image_id].source, round(hit.retrieval_score, 2)


class CountingRetriever:
    """The real retriever, which remembers how many pictures it was shown."""

    def __init__(self, retriever: Any) -> None:
        self._retriever = retriever
        self.seen = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._retriever, name)

    def embed_pixels(self, pixels: Sequence[Any], batch_size: int) -> FloatArray:
        self.seen += len(pixels)
        result: FloatArray = self._retriever.embed_pixels(pixels, batch_size=batch_size)
        return result


def counting(workshop: Workshop) -> tuple[Workshop, CountingRetriever]:
    retriever = CountingRetriever(workshop.resources.models.retriever)
    return workshop.with_models(retriever=retriever), retriever


def stopping_after(checks: int, error: Exception) -> Callable[[], Exception | None]:
    """What a heartbeat would say: nothing, `checks` times; then the error."""
    answers = iter([None] * checks)
    return lambda: next(answers, error)


def changed(
    context: ShardContext[Resources], kind: type[ShardContext[Resources]], **values: Any
) -> ShardContext[Resources]:
    same = {field.name: getattr(context, field.name) for field in fields(context)}
    return kind(**(same | values))


def run_broken(workshop: Workshop, stage: Callable[[ShardContext[Resources]], None]) -> None:
    """Run the first shard with another ingest stage."""
    broken = Workshop(workshop.engine, workshop.settings, workshop.resources, {JobKind.INGEST: stage})
    broken.run_once()


def queue_pictures(workshop: Workshop, folder: Path, number: int) -> int:
    for seed in range(number):
        draw(folder / f"{seed:02}.png", seed)
    listed = captioned(folder, {})
    return in_transaction(workshop.engine, submit_files, workshop.settings, archive_name=ARCHIVE, files=listed)
