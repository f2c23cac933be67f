"""The scores of a generator on questions about postcards, under several conditions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean

from ragllava.answer_text import exact_match
from ragllava.evaluation.metrics import means_by
from ragllava.evaluation.wrong_evidence import ShownEvidence
from ragllava.lab.ablation.data import PicturedArchive
from ragllava.lab.ablation.table import ArmScores
from ragllava.models.generator import AnswerRequest, Generator
from ragllava.settings import Settings

_BATCH = 20


def score_generator(
    generator: Generator, asked: PicturedArchive, shown: Mapping[str, Sequence[ShownEvidence]], settings: Settings
) -> ArmScores:
    """The shares of right answers in each condition: of all questions, by number of pictures asked about, by type.

    `shown` has the pictures shown for each question of `asked`, by condition.
    """
    right = {condition: _right_answers(generator, asked, evidence, settings) for condition, evidence in shown.items()}
    pictures = [len(question.relevant) for question in asked.questions]
    types = [question.type for question in asked.questions]
    return ArmScores(
        accuracy={condition: fmean(marks) for condition, marks in right.items()},
        about_one={condition: means_by(pictures, marks).get(1, 0.0) for condition, marks in right.items()},
        about_two={condition: means_by(pictures, marks).get(2, 0.0) for condition, marks in right.items()},
        by_type={condition: means_by(types, marks) for condition, marks in right.items()},
    )


def _right_answers(
    generator: Generator, asked: PicturedArchive, shown: Sequence[ShownEvidence], settings: Settings
) -> list[bool]:
    requests = [
        AnswerRequest(
            question.text,
            tuple(asked.captions[name] for name in evidence.images),
            tuple(asked.pictures[name] for name in evidence.images),
        )
        for question, evidence in zip(asked.questions, shown, strict=True)
    ]
    answers = generator.answer(requests, max_tokens=settings.max_answer_tokens, with_captions=True, batch_size=_BATCH)
    return [exact_match(answer.text, q.answer) for answer, q in zip(answers, asked.questions, strict=True)]
