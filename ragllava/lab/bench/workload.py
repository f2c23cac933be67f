"""What every group of rows measures with: models, sizes, the running system, drawn pictures."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from sqlalchemy import Engine

from ragllava.jobs.control import JobView
from ragllava.models.bundle import ModelBundle
from ragllava.postcards.archive import Postcard, PostcardArchive, draw_archive
from ragllava.settings import Settings
from ragllava.stages.answer.submit import Submission, Submitted
from ragllava.stages.results.results import ResultRow

if TYPE_CHECKING:
    from PIL.Image import Image


class Ingested(Protocol):
    """What an ingest answers: the job, to wait for."""

    @property
    def job_id(self) -> int:
        """The queued job."""


class JobClient(Protocol):
    """What the rows need of the Python client (client.py): jobs that go through the queue to the workers."""

    def ingest(self, paths: Sequence[Path], archive_name: str, captions: Path | None = ...) -> Ingested:
        """Queue pictures for an archive."""

    def submit(self, path: Path, how: Submission) -> Submitted:
        """Queue a question file."""

    def ask(self, question: str, how: Submission, timeout_s: float = ...) -> ResultRow:
        """Ask one question now."""

    def wait(self, job_id: int, *, timeout_s: float | None = ..., poll_s: float = ...) -> JobView:
        """Wait until a job has ended."""

    def results(self, job_id: int) -> Iterator[ResultRow]:
        """One row for each question, in order."""


@dataclass(frozen=True)
class System:
    """Services that run for the time of the bench, in a home of their own; `client` reaches the workers, if any."""

    settings: Settings  # with the addresses of the services
    engine: Engine
    client: JobClient


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
