"""What every evaluation data set becomes: images with captions, and questions whose answers and images are known."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from ragllava.errors import UsageError
from ragllava.postcards.archive import KnownQuestion
from ragllava.postcards.postcard import Postcard
from ragllava.postcards.questions import QuestionStyle


class PictureBytes(Protocol):
    """Where the bytes of a picture come from; nothing is held in memory before `read`."""

    def read(self) -> bytes:
        """The picture file as it stands, still encoded. Raises UsageError if it is not there any more."""


@dataclass(frozen=True, slots=True)
class FilePicture:
    """A picture in a file of its own."""

    path: Path

    def read(self) -> bytes:
        """The bytes of the file; UsageError if it cannot be read."""
        try:
            return self.path.read_bytes()
        except OSError as error:
            raise UsageError(f"cannot read the picture {self.path}: {error.strerror or error}") from error


@dataclass(frozen=True, slots=True)
class DrawnPicture:
    """A postcard, drawn again at each reading."""

    postcard: Postcard

    def read(self) -> bytes:
        """The drawing as PNG."""
        return self.postcard.png()


@dataclass(frozen=True, slots=True)
class EvaluationImage:
    """An image of the pool to retrieve from. `caption` is None where the set has none, or none that may be shown.

    Decode the bytes with `decode`.
    """

    image_id: str
    caption: str | None
    picture: PictureBytes


@dataclass(frozen=True, slots=True)
class EvaluationQuestion(KnownQuestion):
    """A question of a data set. `relevant` holds image ids; `type` is the data set's category of the question.

    `references` are all answers that the set accepts, `answer` the one to score against ("" in a set for retrieval
    only). `distractors` are images that the set itself names as wrong for this question.
    """

    references: tuple[str, ...] = ()
    distractors: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class EvaluationSet:
    """One split of a data set; images and questions in the order of its files.

    `top_n` is how many images a question keeps at most in the published figures. `by_caption`: each question is a
    caption, and its image is searched for (docs/method.md 2 has a prompt of its own for that). `left_out` counts what
    the files hold beside the questions, by reason: questions + left out = rows of the file. `style` is that of drawn
    questions, if all have one. `answers_from` says what the answers are compared with, if a set has several kinds.
    UsageError: two images or two questions with the same id, no question, or a labelled image that is not in the pool.
    """

    name: str
    split: str
    images: tuple[EvaluationImage, ...]
    questions: tuple[EvaluationQuestion, ...]
    top_n: int = 1
    left_out: Mapping[str, int] = field(default_factory=dict)
    by_caption: bool = False
    style: QuestionStyle | None = None
    answers_from: str | None = None

    def __post_init__(self) -> None:
        if not self.questions:
            raise UsageError(f"{self.name}, split {self.split}: no question to evaluate with")
        pool = Counter(image.image_id for image in self.images)
        for kind, ids in (("image", pool), ("question", Counter(question.custom_id for question in self.questions))):
            twin = next((name for name, count in ids.items() if count > 1), None)
            if twin is not None:
                raise UsageError(f"{self.name}, split {self.split}: {kind} {twin} occurs {ids[twin]} times")
        for question in self.questions:
            absent = next((image_id for image_id in question.relevant if image_id not in pool), None)
            if absent is not None:
                raise UsageError(
                    f"{self.name}, split {self.split}: image {absent} of question {question.custom_id} "
                    "is not among the images to retrieve from; do the files belong together?"
                )

    @property
    def has_captions(self) -> bool:
        """Whether an image of the pool has a caption, by which it can be found."""
        return any(image.caption is not None for image in self.images)

    @property
    def retrieval_only(self) -> bool:
        """Whether there are no answers to score, only images to find (Flickr30K, COCO)."""
        return not any(question.answer for question in self.questions)
