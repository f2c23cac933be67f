"""Synthetic archives: postcards of invented landmarks, and questions with their right answers.

The seed determines the whole archive. It contains hard distractors: landmarks of the same kind with a confusable
caption, and namesakes of another kind in the same city. No two landmarks share kind, name and city, so every
question has exactly one right set of pictures.
"""

from __future__ import annotations

import csv
import random
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import get_args

from ragllava.errors import UsageError
from ragllava.json_records import write_json_lines
from ragllava.postcards.asking import draw_questions, in_style
from ragllava.postcards.names import (
    KINDS,
    SHIFTED_KINDS,
    Landmark,
    Split,
    confusable_entity,
    namesake_entity,
    sample_attributes,
    sample_entity,
)
from ragllava.postcards.postcard import Postcard
from ragllava.postcards.questions import QuestionStyle
from ragllava.records import KnownAnswer

_CONFUSABLE_SHARE = 0.35  # of the original landmarks that get a distractor of the same kind
_NAMESAKE_SHARE = 0.25  # of those that get one of the same name and city


@dataclass(frozen=True, slots=True)
class KnownQuestion(KnownAnswer):
    """A question whose answer and pictures are known; `relevant` holds file names of the archive.

    `style` is None for a question that was not drawn.
    """

    text: str
    style: QuestionStyle | None = None


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


def draw_archive(  # noqa: PLR0913 - these are the properties of an archive
    seed: int,
    images: int = 1000,
    questions: int = 200,
    two_image_share: float = 0.2,
    split: Split = "test",
    *,
    style: QuestionStyle = QuestionStyle.CUES,
    shifted: bool = False,
    side: Callable[[str], bool] | None = None,
) -> PostcardArchive:
    """Draw an archive and its questions; the same arguments give the same archive in any process, on any machine.

    Only the pixels may differ slightly between versions of Pillow and NumPy. A shifted archive has the same questions,
    but kinds of landmarks and drawing styles that the shipped models have never seen. Questions are about the original
    landmarks, not about their distractors; questions about one picture use every original once before the first is
    repeated. Question types are mixed. The postcards are the same in every `style` of the questions. `side` maps a file
    name to one of two sides: then no question is about pictures of both sides, as long as one side has two that fit.
    Raises UsageError for a number out of range, an unknown split, too few images for questions about two, or so many
    that visible facts alone tell no postcard from all others.
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
    asked_about = [postcards[index] for index in originals]
    drawn = draw_questions(rng, asked_about, questions, two_image_share, side)
    style_rng = random.Random(f"{seed} {style}")  # noqa: S311 - as above; no style changes what another one draws
    asked_in_style = in_style(drawn, style, postcards, asked_about, side, split, style_rng)
    digits = max(4, len(str(len(asked_in_style))))
    known = (
        KnownQuestion(
            custom_id=f"q-{number:0{digits}d}",
            answer=question.answer,
            type=question.type,
            relevant=tuple(postcard.file_name for postcard in asked),
            text=question.text,
            style=style,
        )
        for number, (question, asked) in enumerate(asked_in_style, start=1)
    )
    return PostcardArchive(postcards, tuple(known))


def write_archive(
    folder: Path, archive: PostcardArchive, progress: Callable[[int, int], None] | None = None
) -> WrittenArchive:
    """Write the archive into a folder, which is created if necessary.

    pictures/*.png; captions.csv (file, caption); questions.jsonl (custom_id, question) to submit; answers.jsonl
    (custom_id, answer, type, style, relevant) to compare with, written last. `progress` is called with (written, total)
    after each picture. Writing the same archive again is harmless. Raises UsageError if the pictures' folder has other
    files.
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
