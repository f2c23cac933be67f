"""The whole comparison: archives of each seed, size and quality of captions, with questions of each style."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import Engine

import migrations
from ragllava.json_records import rounded
from ragllava.lab.retrieval_table.archives import (
    CaptionQuality,
    DrawnResources,
    Progress,
    embed,
    hashes_of,
    store_archive,
)
from ragllava.lab.retrieval_table.measure import HYBRID, NEED, PICTURE, Measured, QuestionOutcome, measure
from ragllava.local.services import running_services
from ragllava.postcards.archive import draw_archive
from ragllava.postcards.questions import QuestionStyle
from ragllava.settings import Settings
from ragllava.stores.database import make_engine

_TWO_IMAGE_SHARE = 0.2
_ORDER = list(CaptionQuality)
_WORSE = 0.005  # of all answers or candidates: a class that loses more is marked


@dataclass(frozen=True, slots=True)
class TableOptions:
    """What is compared. Archives of more than `answers_up_to` images are only searched."""

    seeds: tuple[int, ...]
    sizes: tuple[int, ...]
    styles: tuple[QuestionStyle, ...] = tuple(QuestionStyle)
    captions: tuple[CaptionQuality, ...] = tuple(CaptionQuality)
    questions: int = 150
    answers_up_to: int = 10_000


@dataclass(frozen=True, slots=True)
class TableRow:
    """One class of questions on archives of one size and quality of captions, over all seeds."""

    images: int
    captions: CaptionQuality
    style: QuestionStyle
    about_two: bool
    outcomes: tuple[QuestionOutcome, ...]
    picture_ms: float
    hybrid_ms: float

    @property
    def name(self) -> str:
        """For people."""
        return f"{self.style.value}, two pictures" if self.about_two else self.style.value

    def found(self, way: str) -> float:
        """The share of the questions of which all pictures are candidates."""
        return _mean([outcome.found[way] for outcome in self.outcomes])

    def right(self, way: str) -> float | None:
        """The share of right answers; None where nothing was answered."""
        return _mean([outcome.right[way] for outcome in self.outcomes]) if self.has_answers else None

    @property
    def has_answers(self) -> bool:
        """Whether its questions were answered."""
        return all(outcome.right for outcome in self.outcomes)

    @property
    def is_worse(self) -> bool:
        """Whether the hybrid way loses more than half a percent of what the picture way has."""
        losses = [self.found("picture") - self.found("hybrid")]
        if (before := self.right(PICTURE)) is not None:
            losses += [before - (self.right(way) or 0.0) for way in (HYBRID, NEED)]
        return max(losses) > _WORSE

    def as_json(self) -> dict[str, Any]:
        """All figures; shares with four decimals."""
        values: dict[str, Any] = rounded(
            {
                "images": self.images,
                "captions": self.captions.value,
                "style": self.style.value,
                "pictures_of_a_question": 2 if self.about_two else 1,
                "questions": len(self.outcomes),
                "found": {way: self.found(way) for way in ("picture", "caption", "hybrid")},
                "right": {way: self.right(way) for way in (PICTURE, HYBRID, NEED)} if self.has_answers else None,
                "candidates": _mean([outcome.candidates for outcome in self.outcomes]),
                "pairs_by_need": _mean([outcome.pairs for outcome in self.outcomes]) if self.has_answers else None,
                "stopped_wrong": _mean([outcome.stopped_wrong for outcome in self.outcomes]),
                "picture_ms": self.picture_ms,
                "hybrid_ms": self.hybrid_ms,
                "is_worse": self.is_worse,
            }
        )
        return values


def compare_on_own_services(
    settings_of: Callable[..., Settings], options: TableOptions, progress: Progress
) -> list[TableRow]:
    """All rows, on services in a temporary home. `settings_of(home=…)` gives the settings."""
    with (
        tempfile.TemporaryDirectory(prefix="ragllava-retrieval-") as home,
        running_services(settings_of(home=Path(home))) as running,
        closing(DrawnResources(running)) as resources,
    ):
        migrations.upgrade(running.require_database_owner(), application_url=running.require_database())
        engine = make_engine(running.require_database(), name="ragllava compare-retrieval")
        try:
            return list(compare_retrieval(engine, running, resources, options, progress))
        finally:
            engine.dispose()


def compare_retrieval(
    engine: Engine, settings: Settings, resources: DrawnResources, options: TableOptions, progress: Progress
) -> Iterator[TableRow]:
    """The rows of one size after the other, those of good captions first."""
    for images in options.sizes:
        gathered: dict[tuple[CaptionQuality, QuestionStyle], list[Measured]] = {}
        for seed in options.seeds:
            for key, measured in _of_one_archive(engine, settings, resources, options, images, seed, progress):
                gathered.setdefault(key, []).append(measured)
        for (captions, style), runs in sorted(gathered.items(), key=lambda item: _ORDER.index(item[0][0])):
            for about_two in (False, True):
                outcomes = [o for run in runs for o in run.outcomes if o.about_two == about_two]
                times = _mean([run.picture_ms for run in runs]), _mean([run.hybrid_ms for run in runs])
                if outcomes:
                    yield TableRow(images, captions, style, about_two, tuple(outcomes), *times)


def _of_one_archive(
    engine: Engine,
    settings: Settings,
    resources: DrawnResources,
    options: TableOptions,
    images: int,
    seed: int,
    progress: Progress,
) -> Iterator[tuple[tuple[CaptionQuality, QuestionStyle], Measured]]:
    questions = {
        style: draw_archive(seed, images, options.questions, _TWO_IMAGE_SHARE, style=style).questions
        for style in options.styles
    }
    postcards = draw_archive(seed, images, 0).postcards
    hashes = hashes_of(seed, postcards)
    resources.know(dict(zip(hashes, postcards, strict=True)))
    retriever = resources.models.retriever
    embedded = embed(retriever, postcards, progress)
    for captions in options.captions:
        rows = list(zip(hashes, postcards, captions.captions(postcards, seed), strict=True))
        name = f"table-{seed}-{images}-{captions.value}"
        archive_id = store_archive(engine, name, retriever.version, rows, embedded, progress)
        for style, known in questions.items():
            answers = images <= options.answers_up_to
            progress(f"{name} {style.value}", 0, len(known))
            yield (
                (captions, style),
                measure(engine, settings, resources, archive_id, known, progress, answers=answers),
            )


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0
