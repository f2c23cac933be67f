"""Labels of answers as questions for training and evaluation. Loads no torch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from ragllava.records import Candidate, Origin, Role, StoredImage
from ragllava.stores.learning.labels import LabelledRow
from ragllava.training.data.datasets import LabelledQuestion, Retrieved
from ragllava.training.data.examples import Evidence


def labelled_questions(rows: Sequence[LabelledRow], images: Mapping[int, StoredImage]) -> list[LabelledQuestion]:
    """One question for each row whose label says something about images, in the order of the rows.

    `images` are those that labels name, by id; the candidates of a row are known without them, and images that are
    neither are passed over. Evidence and candidates are named by their sha256. Only the label says what is relevant,
    whatever became of an image as a candidate: that "right" alone means the kept images was written into the label when
    it was given. The other labels train nothing ("wrong" and no more, or no more than an answer): len(rows) less the
    length of the result is how many there are.
    """
    questions = (_question(row, images) for row in rows)
    return [question for question in questions if question.relevant or question.irrelevant]


def usable_for(role: Role, questions: Iterable[LabelledQuestion]) -> list[LabelledQuestion]:
    """Those that can evaluate a version of this role: with a relevant image, and for the generator an answer."""
    return [question for question in questions if question.relevant and (role is Role.RERANKER or question.answer)]


def _question(row: LabelledRow, images: Mapping[int, StoredImage]) -> LabelledQuestion:
    label = row.label
    by_id = {**images, **{candidate.image.image_id: candidate.image for candidate in row.candidates}}
    return LabelledQuestion(
        text=row.text,
        answer=label.answer,
        relevant=_evidence(label.relevant, by_id),
        irrelevant=_evidence([image_id for image_id in label.irrelevant if image_id not in label.relevant], by_id),
        retrieved=tuple(
            Retrieved(candidate.image.sha256, candidate.image.caption, candidate.relevance)
            for candidate in sorted(row.candidates, key=_by_strength)
        ),
    )


def _by_strength(candidate: Candidate) -> tuple[bool, int]:
    """Images found by their captions come before the nearest pictures, which would leave no room for them in the top K:
    a caption that resembles the right one makes the hardest negative."""
    return candidate.origin is not Origin.CAPTION, candidate.retrieval_rank


def _evidence(image_ids: Iterable[int], by_id: Mapping[int, StoredImage]) -> tuple[Evidence, ...]:
    images = (by_id[image_id] for image_id in dict.fromkeys(image_ids) if image_id in by_id)
    return tuple(Evidence(image.sha256, image.caption) for image in images)
