"""What people look at before they promote a version: curves of a training, its examples, what a threshold would do."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection

from ragllava.evaluation.threshold import NATURAL_THRESHOLD
from ragllava.evaluation.threshold_curve import ThresholdPoint, nearest_point, threshold_points
from ragllava.feedback import Label
from ragllava.records import Role, StoredImage
from ragllava.stores.archives import archive
from ragllava.stores.jobs.answered import AnsweredQuestion, QuestionKey, load_questions
from ragllava.stores.learning import labels, registry
from ragllava.stores.learning.judged import judged_candidates
from ragllava.stores.learning.registry import VersionView

_MOST_QUESTIONS = 2_000  # labelled ones, the newest, that a threshold curve is made of


@dataclass(frozen=True, slots=True)
class ChangedExample:
    """A held-out question whose score differs between champion and challenger, with the pictures that each keeps.

    `relevant` are those that are labelled so, and `right_answer` is what is labelled as the right one.
    """

    question: AnsweredQuestion
    champion: float
    challenger: float
    champion_images: tuple[StoredImage, ...]
    challenger_images: tuple[StoredImage, ...]
    relevant: tuple[StoredImage, ...]
    right_answer: str | None


@dataclass(frozen=True, slots=True)
class ChangedExamples:
    """The examples that a version has gained and lost; `erased` of them are not there any more.

    `is_known` is False for a version that was trained before examples were stored.
    """

    gained: tuple[ChangedExample, ...]
    lost: tuple[ChangedExample, ...]
    erased: int
    is_known: bool


@dataclass(frozen=True, slots=True)
class ThresholdCurve:
    """What each η would do to the labelled questions of an archive that a reranker version has answered.

    `threshold` is the version's own. `correct` and `wrong` count labelled candidates of `questions`. `version` None:
    there is no reranker yet.
    """

    archive: str
    version: str | None
    threshold: float | None
    questions: int
    correct: int
    wrong: int
    points: tuple[ThresholdPoint, ...]

    @property
    def own_point(self) -> ThresholdPoint | None:
        """The point at the version's own η; None without any."""
        eta = NATURAL_THRESHOLD if self.threshold is None else self.threshold
        return nearest_point(self.points, eta) if self.points else None


def changed_examples(connection: Connection, view: VersionView) -> ChangedExamples:
    """The stored examples of a version, with what is there of their questions and pictures."""
    stored: dict[str, list[dict[str, Any]]] = (view.version.training or {}).get("examples") or {}
    items = [item for side in ("gained", "lost") for item in stored.get(side, ())]
    questions = load_questions(connection, [_key(item) for item in items])
    newest = labels.newest_labels(connection, list(questions))
    labelled = archive.load_images(connection, {image for label in newest.values() for image in label.relevant})
    images = _images(connection, items)

    def examples(side: str) -> tuple[ChangedExample, ...]:
        return tuple(
            ChangedExample(
                question=questions[_key(item)],
                champion=item["champion"],
                challenger=item["challenger"],
                champion_images=_those(images, item, "champion_images"),
                challenger_images=_those(images, item, "challenger_images"),
                relevant=tuple(labelled[image] for image in _relevant(newest, item) if image in labelled),
                right_answer=newest[_key(item)].answer if _key(item) in newest else None,
            )
            for item in stored.get(side, ())
            if _key(item) in questions
        )

    erased = len(items) - sum(_key(item) in questions for item in items)
    return ChangedExamples(examples("gained"), examples("lost"), erased, bool(stored))


def threshold_curve(connection: Connection, profile: str, name: str, version: str | None) -> ThresholdCurve:
    """The curve of an archive. Without a version, of the champion. Raises UsageError for an unknown one."""
    archive_id = archive.get_archive(connection, name).archive_id
    if version is None:
        chosen = registry.champion(connection, Role.RERANKER, profile)
        if chosen is None:
            return ThresholdCurve(name, None, None, 0, 0, 0, ())
    else:
        chosen = registry.find_version(connection, profile, version, Role.RERANKER).version
    candidates = judged_candidates(connection, archive_id, chosen.name, _MOST_QUESTIONS)
    best: dict[QuestionKey, float] = defaultdict(float)
    for candidate in candidates:
        best[candidate.question] = max(best[candidate.question], candidate.relevance)
    judged = [candidate for candidate in candidates if candidate.is_relevant is not None]
    correct = [bool(candidate.is_relevant) for candidate in judged]
    points = threshold_points([candidate.relevance for candidate in judged], correct, list(best.values()))
    right = sum(correct)
    return ThresholdCurve(
        name, chosen.name, chosen.threshold, len(best), right, len(correct) - right, tuple(points if judged else ())
    )


def _key(item: dict[str, Any]) -> QuestionKey:
    return item["job_id"], item["question_no"]


def _relevant(newest: Mapping[QuestionKey, Label], item: dict[str, Any]) -> tuple[int, ...]:
    label = newest.get(_key(item))
    return label.relevant if label else ()


def _images(connection: Connection, items: Sequence[dict[str, Any]]) -> dict[tuple[int, str], StoredImage]:
    """The pictures of these examples that are there, by archive and hash."""
    wanted: dict[int, set[str]] = defaultdict(set)
    for item in items:
        wanted[item["archive_id"]].update((*item["champion_images"], *item["challenger_images"]))
    return {
        (archive_id, sha256): StoredImage(image.image_id, sha256, image.source, image.caption)
        for archive_id, hashes in wanted.items()
        for sha256, image in archive.existing_images(connection, archive_id, hashes).items()
    }


def _those(images: dict[tuple[int, str], StoredImage], item: dict[str, Any], names: str) -> tuple[StoredImage, ...]:
    keys = [(item["archive_id"], sha256) for sha256 in item[names]]
    return tuple(images[key] for key in keys if key in images)
