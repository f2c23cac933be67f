"""Evaluation data sets by their names: `load_dataset` reads any of them into an EvaluationSet."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import cast, get_args

from ragllava.errors import UsageError
from ragllava.evaluation.datasets.multimodalqa import load_multimodalqa
from ragllava.evaluation.datasets.pairs import load_coco, load_flickr30k
from ragllava.evaluation.datasets.records import (
    DrawnPicture,
    EvaluationImage,
    EvaluationQuestion,
    EvaluationSet,
)
from ragllava.evaluation.datasets.webqa import load_webqa
from ragllava.postcards.archive import KnownQuestion, PostcardArchive, draw_archive
from ragllava.postcards.names import Split
from ragllava.postcards.questions import QuestionStyle

POSTCARDS = "postcards"
POSTCARD_IMAGES = 1000
POSTCARD_QUESTIONS = 300  # 240 about one image, 60 about two

_LOADERS: dict[str, Callable[[Path, str], EvaluationSet]] = {
    "webqa": load_webqa,
    "multimodalqa": load_multimodalqa,
    "flickr30k": load_flickr30k,
    "coco": load_coco,
}
DATASETS = (*_LOADERS, POSTCARDS)


def load_dataset(
    name: str,
    folder: Path | None,
    split: str,
    *,
    seed: int = 0,
    images: int | None = None,
    style: QuestionStyle = QuestionStyle.CUES,
) -> EvaluationSet:
    """One split of the data set `name`, one of DATASETS, from the files in `folder`.

    The postcards need no folder: they are drawn from `seed`, 300 questions in one style to 1,000 images or as many as
    `images` says.
    UsageError: an unknown data set or split, a folder too many, or a file that is missing; InvalidInput: a file with
    wrong rows.
    """
    if name == POSTCARDS:
        if split not in get_args(Split):
            raise UsageError(f"the postcards have no split {split!r}; use {' or '.join(get_args(Split))}")
        if folder is not None:
            raise UsageError("the postcards are drawn, not read from files; omit --data")
        drawn_split = cast("Split", split)
        archive = draw_archive(seed, images or POSTCARD_IMAGES, POSTCARD_QUESTIONS, split=drawn_split, style=style)
        return postcard_set(archive, split)
    if name not in _LOADERS:
        raise UsageError(f"no data set is called {name!r}; there are {', '.join(DATASETS)}")
    if images is not None:
        raise UsageError(f"{name} is not drawn but read from files; omit --images; --limit asks fewer questions")
    if folder is None:
        raise UsageError(f"{name} is not drawn but read from files; name its folder with --data")
    if not folder.is_dir():
        raise UsageError(f"{folder} is not a folder; name the one with the files of {name}")
    return _LOADERS[name](folder, split)


def postcard_set(archive: PostcardArchive, split: str) -> EvaluationSet:
    """A drawn archive in the common form; image ids are its file names."""
    return EvaluationSet(
        name=POSTCARDS,
        split=split,
        images=tuple(EvaluationImage(card.file_name, card.caption, DrawnPicture(card)) for card in archive.postcards),
        questions=tuple(
            EvaluationQuestion(**asdict(question), references=(question.answer,)) for question in archive.questions
        ),
        top_n=2,
        style=only_style(archive.questions),
    )


def in_turn(sets: Sequence[EvaluationSet]) -> EvaluationSet:
    """One set that takes its questions from each of these in turn: the first from the first, and so on.

    All of them have the same images, and as many questions under the same ids.
    """
    questions = tuple(
        row[number % len(sets)] for number, row in enumerate(zip(*(s.questions for s in sets), strict=True))
    )
    return replace(sets[0], questions=questions, style=only_style(questions))


def only_style(questions: Sequence[KnownQuestion]) -> QuestionStyle | None:
    """The style of all questions, None if there are several or none."""
    styles = {question.style for question in questions}
    return styles.pop() if len(styles) == 1 else None
