"""What people said about answers, as questions to train on and to judge with. Loads no torch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from ragllava.records import Role, StoredImage
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
    found = (_question(row, images) for row in rows)
    return [question for question in found if question.relevant or question.irrelevant]


def usable_for(role: Role, questions: Iterable[LabelledQuestion]) -> list[LabelledQuestion]:
    """Those on which a version of this role can be judged: with a relevant image, and for the generator an answer."""
    return [question for question in questions if question.relevant and (role is Role.RERANKER or question.answer)]


def _question(row: LabelledRow, images: Mapping[int, StoredImage]) -> LabelledQuestion:
    label = row.label
    known = {**images, **{candidate.image.image_id: candidate.image for candidate in row.candidates}}
    return LabelledQuestion(
        text=row.text,
        answer=label.answer,
        relevant=_evidence(label.relevant, known),
        irrelevant=_evidence([image_id for image_id in label.irrelevant if image_id not in label.relevant], known),
        retrieved=tuple(
            Retrieved(candidate.image.sha256, candidate.image.caption, candidate.relevance)
            for candidate in sorted(row.candidates, key=lambda candidate: candidate.retrieval_rank)
        ),
    )


def _evidence(image_ids: Iterable[int], known: Mapping[int, StoredImage]) -> tuple[Evidence, ...]:
    found = (known[image_id] for image_id in dict.fromkeys(image_ids) if image_id in known)
    return tuple(Evidence(image.sha256, image.caption) for image in found)
