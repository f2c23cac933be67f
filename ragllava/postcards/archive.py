"""Synthetic archives: postcards of invented landmarks, and questions with their right answers.

The seed determines the whole archive. It contains hard distractors: landmarks of the same kind with a confusable
caption, and namesakes of another kind in the same city. No two landmarks share kind, name and city, so every
question has exactly one right set of pictures.
"""

from __future__ import annotations

import csv
import io
import random
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from itertools import cycle, islice
from pathlib import Path
from typing import get_args

from PIL import Image

from ragllava.errors import UsageError
from ragllava.json_records import write_json_lines
from ragllava.postcards.drawing import Drawing, draw_postcard
from ragllava.postcards.names import (
    KINDS,
    SHIFTED_KINDS,
    Attributes,
    Landmark,
    Split,
    confusable_entity,
    namesake_entity,
    sample_attributes,
    sample_entity,
)
from ragllava.postcards.questions import TWO_IMAGE_TYPES, ask_about_one, ask_about_two
from ragllava.records import KnownAnswer

_CONFUSABLE_SHARE = 0.35  # of the original landmarks that get a distractor of the same kind
_NAMESAKE_SHARE = 0.25  # of those that get one of the same name and city


@dataclass(frozen=True, slots=True)
class Postcard:
    """A picture with its caption. Only the seed of the picture is stored; every call of `draw` draws it again."""

    file_name: str
    landmark: Landmark
    picture_seed: int

    @property
    def caption(self) -> str:
        """What is printed under the picture."""
        return self.landmark.caption

    @property
    def attributes(self) -> Attributes:
        """What the picture shows."""
        return self.landmark.attributes

    def draw(self) -> Drawing:
        """Draw the picture; every call gives the same. About 2 ms."""
        return draw_postcard(self.attributes, random.Random(self.picture_seed))  # noqa: S311 - repeatable on purpose

    def picture(self) -> Image.Image:
        """The drawing as a Pillow image."""
        return Image.fromarray(self.draw().pixels)

    def png(self) -> bytes:
        """The drawing as a PNG file."""
        buffer = io.BytesIO()
        self.picture().save(buffer, "PNG")
        return buffer.getvalue()


@dataclass(frozen=True, slots=True)
class KnownQuestion(KnownAnswer):
    """A question whose answer and pictures are known; `relevant` holds file names of the archive."""

    text: str


@dataclass(frozen=True, slots=True)
class PostcardArchive:
    """The postcards and questions of an archive; pictures are drawn on demand."""

    postcards: tuple[Postcard, ...]
    questions: tuple[KnownQuestion, ...]


@dataclass(frozen=True, slots=True)
class WrittenArchive:
    """The paths of the parts of an archive on disk."""

    pictures: Path
    captions: Path
    questions: Path
    answers: Path


def draw_archive(
    seed: int,
    images: int = 1000,
    questions: int = 200,
    two_image_share: float = 0.2,
    split: Split = "test",
    *,
    shifted: bool = False,
    side: Callable[[str], bool] | None = None,
) -> PostcardArchive:
    """Draw an archive and its questions; the same arguments give the same archive in any process, on any machine.

    Only the pixels may differ slightly between versions of Pillow and NumPy. A shifted archive has the same questions,
    but kinds of landmarks and drawing styles that the shipped models have never seen. Questions are about the original
    landmarks, not about their distractors; questions about one picture use every original once before the first is
    repeated. Question types are mixed. `side` maps a file name to one of two sides: then no question is about pictures
    of both sides, as long as one side has two that fit. Raises UsageError for a number out of range, an unknown split,
    or too few images for questions about two.
    """
    if images < 1:
        raise UsageError(f"an archive needs at least one image, not {images}")
    if questions < 0:
        raise UsageError(f"the number of questions cannot be {questions}")
    if not 0 <= two_image_share <= 1:
        raise UsageError(f"the share of questions about two images must be from 0 to 1, not {two_image_share:g}")
    if split not in get_args(Split):
        raise UsageError(f"there is no split {split!r}; use train or test")
    rng = random.Random(seed)  # noqa: S311 - repeatable on purpose
    landmarks, originals = _draw_landmarks(rng, images, split, SHIFTED_KINDS if shifted else KINDS)
    digits = max(4, len(str(images)))
    postcards = tuple(
        Postcard(f"postcard-{number:0{digits}d}.png", landmark, rng.getrandbits(32))
        for number, landmark in enumerate(landmarks, start=1)
    )
    asked_postcards = [postcards[index] for index in originals]
    return PostcardArchive(postcards, _draw_questions(rng, asked_postcards, questions, two_image_share, side))


def write_archive(
    folder: Path, archive: PostcardArchive, progress: Callable[[int, int], None] | None = None
) -> WrittenArchive:
    """Write the archive into a folder, which is created if necessary.

    pictures/*.png; captions.csv (file, caption); questions.jsonl (custom_id, question) to submit; answers.jsonl
    (custom_id, answer, type, relevant) to compare with, written last. `progress` is called with (written, total) after
    each picture. Writing the same archive again is harmless. Raises UsageError if the pictures' folder has other files.
    """
    written = WrittenArchive(
        pictures=folder / "pictures",
        captions=folder / "captions.csv",
        questions=folder / "questions.jsonl",
        answers=folder / "answers.jsonl",
    )
    written.pictures.mkdir(parents=True, exist_ok=True)
    file_names = {postcard.file_name for postcard in archive.postcards}
    for path in sorted(written.pictures.iterdir()):
        if path.name not in file_names:  # it would be ingested too, and all figures would be wrong
            raise UsageError(
                f"{written.pictures} contains {path.name}, which is not part of this archive; use an empty folder"
            )
    for number, postcard in enumerate(archive.postcards, start=1):
        postcard.picture().save(written.pictures / postcard.file_name)
        if progress is not None:
            progress(number, len(archive.postcards))
    with written.captions.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("file", "caption"))
        writer.writerows((postcard.file_name, postcard.caption) for postcard in archive.postcards)
    rows = [asdict(question) for question in archive.questions]
    questions = [{"custom_id": row["custom_id"], "question": row.pop("text")} for row in rows]
    write_json_lines(questions, written.questions)
    write_json_lines(rows, written.answers)
    return written


def _draw_landmarks(
    rng: random.Random, images: int, split: Split, kinds: Sequence[str]
) -> tuple[list[Landmark], list[int]]:
    """Landmarks with different identities, and the indices of the originals among them.

    An original may be followed by its distractors; a landmark whose identity is taken is left out.
    """
    landmarks: list[Landmark] = []
    originals: list[int] = []
    taken: set[tuple[str, str, str]] = set()
    while len(landmarks) < images:
        family = _draw_family(rng, split, kinds)
        if family[0].identity not in taken:
            originals.append(len(landmarks))
            for landmark in family[: images - len(landmarks)]:
                if landmark.identity not in taken:
                    taken.add(landmark.identity)
                    landmarks.append(landmark)
    return landmarks, originals


def _draw_family(rng: random.Random, split: Split, kinds: Sequence[str]) -> list[Landmark]:
    """A landmark with its distractors, if any: one of the same kind, one of the same name and city."""
    original = Landmark(sample_attributes(rng, kinds=kinds), sample_entity(rng, split))
    family = [original]
    kind, entity = original.attributes.kind, original.entity
    if rng.random() < _CONFUSABLE_SHARE:
        family.append(Landmark(sample_attributes(rng, kind), confusable_entity(entity, rng, split)))
    if rng.random() < _NAMESAKE_SHARE:
        namesake_kind = rng.choice([candidate for candidate in kinds if candidate != kind])
        family.append(Landmark(sample_attributes(rng, namesake_kind), namesake_entity(entity, rng)))
    return family


def _draw_questions(
    rng: random.Random,
    originals: Sequence[Postcard],
    questions: int,
    two_image_share: float,
    side: Callable[[str], bool] | None,
) -> tuple[KnownQuestion, ...]:
    about_two = round(questions * two_image_share)
    if about_two and len(originals) < 2:
        raise UsageError("questions about two images need two landmarks to ask about; draw more images")
    order = rng.sample(originals, len(originals))
    drawn = [
        (ask_about_one(postcard.landmark, rng), [postcard]) for postcard in islice(cycle(order), questions - about_two)
    ]
    for number in range(about_two):
        question_type = TWO_IMAGE_TYPES[number % len(TWO_IMAGE_TYPES)]
        first, second = _draw_pair(originals, question_type, rng, side)
        # "Which has more, A or A?" has no answer, even if the two are in different cities.
        question_type = "samecolor" if first.landmark.title == second.landmark.title else question_type
        drawn.append((ask_about_two(first.landmark, second.landmark, rng, question_type), [first, second]))
    rng.shuffle(drawn)
    digits = max(4, len(str(len(drawn))))
    return tuple(
        KnownQuestion(
            custom_id=f"q-{number:0{digits}d}",
            answer=question.answer,
            type=question.type,
            relevant=tuple(postcard.file_name for postcard in postcards),
            text=question.text,
        )
        for number, (question, postcards) in enumerate(drawn, start=1)
    )


def _draw_pair(
    originals: Sequence[Postcard], question_type: str, rng: random.Random, side: Callable[[str], bool] | None
) -> tuple[Postcard, Postcard]:
    """Two postcards that fit the question type, if there are any; half of the pairs for "samecolor" have one color.

    So neither answer to a question about two pictures is more frequent than the other.
    """
    first, second = rng.sample(originals, 2)
    looks = first.attributes
    candidates = originals
    if side is not None:
        candidates = [c for c in originals if side(c.file_name) == side(first.file_name)]
        second = rng.choice([c for c in candidates if c is not first] or [second])
    if question_type == "more":
        fitting = [c for c in candidates if c.attributes.counted == looks.counted and c.attributes.count != looks.count]
    else:
        same_color = rng.random() < 0.5
        fitting = [c for c in candidates if c is not first and (c.attributes.color == looks.color) == same_color]
    return first, rng.choice(fitting) if fitting else second
