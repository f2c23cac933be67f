"""The labelled postcards of one training, and fresh ones of the same kind for measuring its result."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from PIL import Image

from ragllava.imaging.likeness import Likeness, thumbnail
from ragllava.lab.candidates import nearest_pictures
from ragllava.models.retriever import Retriever
from ragllava.postcards.archive import draw_archive
from ragllava.records import Role
from ragllava.settings import Settings
from ragllava.training.data.datasets import DatasetOptions, LabelledQuestion, Retrieved, question_key
from ragllava.training.data.examples import Evidence
from ragllava.training.data.snapshot import Snapshot, SnapshotRules, snapshot_of
from ragllava.training.gate import WITH_CAPTIONS
from ragllava.training.version_scores import RankedImage, RerankerScores

_FRESH_SEED = 7_000  # of archives that nothing is learned from; the seed of the repetition is added
_SEEDS_APART = 100


@dataclass(frozen=True, slots=True)
class SituationSize:
    """So many questions about so many postcards, in each archive. About a third of the questions is held out."""

    images: int = 150
    questions: int = 172
    two_image_share: float = 0.1


@dataclass(frozen=True, slots=True)
class AskedArchive:
    """Questions with their relevant pictures and their candidates; the pictures by `<archive>/<file>`."""

    name: str
    questions: tuple[LabelledQuestion, ...]
    pictures: Mapping[str, Image.Image]


def ask_archive(
    name: str, seed: int, size: SituationSize, retriever: Retriever, top_k: int, *, shifted: bool = True
) -> AskedArchive:
    """Draw an archive and find the candidates of its questions, by pictures alone."""
    drawn = draw_archive(seed, size.images, size.questions, size.two_image_share, shifted=shifted)
    pictures = {f"{name}/{card.file_name}": card.picture() for card in drawn.postcards}
    captions = {f"{name}/{card.file_name}": card.caption for card in drawn.postcards}
    names = list(pictures)
    nearest = nearest_pictures(retriever, list(pictures.values()), drawn.questions, top_k)
    questions = (
        LabelledQuestion(
            question.text,
            question.answer,
            tuple(Evidence(f"{name}/{file}", captions[f"{name}/{file}"]) for file in question.relevant),
            tuple(Retrieved(names[index], captions[names[index]]) for index in row),
        )
        for question, row in zip(drawn.questions, nearest, strict=True)
    )
    return AskedArchive(name, tuple(questions), pictures)


def fresh_archives(
    seed: int, count: int, size: SituationSize, retriever: Retriever, top_k: int, *, shifted: bool = True
) -> list[AskedArchive]:
    """Archives whose postcards and questions no training of this seed saw."""
    first = _FRESH_SEED + _SEEDS_APART * seed
    kind = "fresh" if shifted else "in-domain"
    return [
        ask_archive(f"{kind}-{first + number}", first + number, size, retriever, top_k, shifted=shifted)
        for number in range(count)
    ]


def with_feedback(
    questions: Sequence[LabelledQuestion], champion: RerankerScores, above: float
) -> list[LabelledQuestion]:
    """The questions as they are after complete feedback on the champion's answers.

    Each candidate has the champion's relevance. Irrelevant are those of the others that were kept or have a relevance
    of at least `above`: a person saw them.
    """
    scores = zip(champion.questions, champion.conditions[WITH_CAPTIONS], strict=True)
    ranked = {question_key(text): {image.image: image for image in score.ranking} for text, score in scores}
    return [_labelled(question, ranked[question_key(question.text)], above) for question in questions]


def make_snapshot(archive: AskedArchive, questions: Sequence[LabelledQuestion], settings: Settings) -> Snapshot:
    """What a training with the usual settings learns from and is judged by."""
    likeness = Likeness({name: thumbnail(picture) for name, picture in archive.pictures.items()})
    options = DatasetOptions(seed=0, top_k=settings.top_k, certain=settings.set_aside_above)
    rules = SnapshotRules(settings.held_out_share, settings.calibration_share, options)
    return snapshot_of(Role.RERANKER, archive.name, questions, likeness, rules)


def _labelled(question: LabelledQuestion, ranked: Mapping[str, RankedImage], above: float) -> LabelledQuestion:
    relevant = {item.image for item in question.relevant}
    seen = (item for item in question.retrieved if item.image not in relevant)
    wrong = (item for item in seen if ranked[item.image].kept or ranked[item.image].relevance >= above)
    return replace(
        question,
        irrelevant=tuple(Evidence(item.image, item.caption) for item in wrong),
        retrieved=tuple(replace(item, relevance=ranked[item.image].relevance) for item in question.retrieved),
    )
