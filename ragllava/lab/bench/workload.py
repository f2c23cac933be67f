"""What every group of rows measures with: models, sizes, the running system, drawn pictures."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from sqlalchemy import Engine

from ragllava.client import Client
from ragllava.models.bundle import ModelBundle
from ragllava.postcards.archive import Postcard, PostcardArchive, draw_archive
from ragllava.settings import Settings

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass(frozen=True)
class System:
    """Services that run for the time of the bench, in a home of their own; `client` reaches the workers, if any."""

    settings: Settings  # with the addresses of the services
    engine: Engine
    client: Client


@dataclass(frozen=True)
class Workload:
    """One run of the bench, and its sizes.

    `questions` are asked of each image in a bulk row, `images` are real pictures, `vectors` those of the largest
    archive, `job_questions` those of the largest job. `shape` adds reranking rows of a model of that shape with
    random weights; `clip_retrieval` is that program's command, where it is installed. `system` is None for groups
    that need no services.
    """

    models: ModelBundle
    questions: int
    images: int
    vectors: int
    job_questions: int
    seed: int = 5
    shape: str | None = None
    clip_retrieval: Path | None = None
    system: System | None = None
    progress: Callable[[str], None] = lambda line: None

    @cached_property
    def archive(self) -> PostcardArchive:
        """The postcards and the questions about them."""
        return draw_archive(self.seed, self.images, self.questions, two_image_share=0.0)

    def require_system(self) -> System:
        """The running services."""
        if self.system is None:
            raise ValueError("this group of rows needs running services")
        return self.system


def picture_of(postcard: Postcard) -> Image:
    """A postcard as a picture in memory."""
    from PIL import Image

    return Image.fromarray(postcard.draw().pixels)


def png_of(picture: Image) -> bytes:
    """A picture as the bytes of a PNG file."""
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()
