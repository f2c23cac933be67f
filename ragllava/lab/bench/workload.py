"""The models, the sizes and the running system that every group of rows measures with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from ragllava.models.bundle import ModelBundle
from ragllava.postcards.archive import PostcardArchive, draw_archive

if TYPE_CHECKING:
    from ragllava.client import Client


@dataclass(frozen=True)
class Workload:
    """One run of the benchmark, and its sizes.

    `questions` are asked about each image in a bulk row, `images` is the number of real pictures, `vectors` the size
    of the largest archive, `job_questions` the size of the largest job, `rows` that of the largest one without models.
    `shape` adds reranking rows for a model of that shape with random weights. `clip_retrieval` is the path of that
    program, if it is installed. `client` reaches the services and workers that run during the benchmark; None for
    groups that need no services.
    """

    models: ModelBundle
    questions: int
    images: int
    vectors: int
    job_questions: int
    rows: int = 1_000_000
    seed: int = 5
    shape: str | None = None
    clip_retrieval: Path | None = None
    client: Client | None = None
    progress: Callable[[str], None] = lambda line: None

    @cached_property
    def archive(self) -> PostcardArchive:
        """The postcards and the questions about them."""
        return draw_archive(self.seed, self.images, self.questions, two_image_share=0.0)

    def require_client(self) -> Client:
        """The client of the running services. Raises ValueError if there are none."""
        if self.client is None:
            raise ValueError("this group of rows needs running services")
        return self.client
