"""Score a model version on held-out questions: rank their images, or answer them, under several conditions.

The version is what the bundle's reranker or generator computes now. A question that cannot be scored (a picture is
missing, a score is not a number) counts 0 and stays: without it, two versions would be compared on different questions.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, TypeVar

from PIL import Image

from ragllava.answer_text import exact_match
from ragllava.errors import ImageRejected, ObjectCorrupt, ObjectMissing, ScoreRejected
from ragllava.evaluation.wrong_evidence import with_added_wrong
from ragllava.models.bundle import ModelBundle
from ragllava.models.generator import AnswerRequest
from ragllava.models.reranker import Pair
from ragllava.records import KnownAnswer
from ragllava.settings import Settings
from ragllava.training.data.datasets import DatasetOptions, LabelledQuestion, merge_questions, question_rng
from ragllava.training.data.examples import Evidence
from ragllava.training.gate import WITH_CAPTIONS
from ragllava.training.version_scores import (
    LABELLED_IMAGES,
    WITHOUT_CAPTIONS,
    WRONG_IMAGE,
    AnswerScore,
    GeneratorScores,
    RankedImage,
    RankScore,
    RerankerScores,
    Score,
    score_ranking,
)

if TYPE_CHECKING:
    from ragllava.evaluation.pools import Progress
    from ragllava.training.finetune.batches import PictureOpener

_IMAGES_AT_ONCE = 64  # whose decoded pictures are in memory together
_UNSCORABLE = (ScoreRejected, ImageRejected, ObjectMissing, ObjectCorrupt)
Item = TypeVar("Item")


@dataclass(frozen=True)
class EvaluationOptions:
    """How a version is evaluated. `threshold` is the η of this version, for a reranker.

    `settings` have the sizes of batches, the length of answers and how many images are kept. `seed` draws the wrong
    images; unlabelled candidates with a relevance of at least `certain` are none, as in training. `progress` hears
    (what, done, total) after each step, and may raise to stop.
    """

    settings: Settings
    threshold: float = 0.5
    seed: int = 0
    certain: float = DatasetOptions(seed=0).certain
    progress: Progress = lambda what, done, total: None


def evaluate_reranker(
    models: ModelBundle,
    questions: Sequence[LabelledQuestion],
    open_picture: PictureOpener,
    options: EvaluationOptions,
    conditions: Sequence[str] = (WITH_CAPTIONS, WITHOUT_CAPTIONS),
) -> RerankerScores:
    """Rank the candidates of each question and its labelled images, with captions and without (docs/method.md 2, 3).

    Fewer `conditions` suffice for calibration. Questions of the same text count once. `open_picture` raises
    ImageRejected, ObjectMissing or ObjectCorrupt for a picture that is missing.
    """
    merged = merge_questions(questions)

    def ranked(condition: str) -> tuple[RankScore, ...]:
        score = partial(_rank, models, open_picture, options, condition == WITH_CAPTIONS)
        return _in_steps(merged, score, partial(RankScore, 0.0, 0.0, ()), f"rerank {condition}", options)

    return RerankerScores(
        version=models.reranker.version,
        threshold=options.threshold,
        top_n=options.settings.top_n,
        certain=options.certain,
        questions=tuple(question.text for question in merged),
        relevant=_relevant(merged),
        conditions={condition: ranked(condition) for condition in conditions},
    )


def evaluate_generator(
    models: ModelBundle, questions: Sequence[LabelledQuestion], open_picture: PictureOpener, options: EvaluationOptions
) -> GeneratorScores:
    """Answer each question from its labelled images, with a wrong one beside them, and without captions
    (docs/method.md 7).

    The wrong image is one that a person called wrong or an unlabelled candidate; question and seed alone draw it and
    its place. Questions of the same text count once. `open_picture` as for the reranker.
    """
    merged = merge_questions(questions)
    shown: dict[str, list[tuple[Evidence, ...]]] = {
        LABELLED_IMAGES: [_labelled(question, options) for question in merged],
        WRONG_IMAGE: [_with_wrong(question, options) for question in merged],
    }
    shown[WITHOUT_CAPTIONS] = shown[LABELLED_IMAGES]

    def answered(condition: str) -> tuple[AnswerScore, ...]:
        score = partial(_answer, models, open_picture, options, condition != WITHOUT_CAPTIONS)
        asked = list(zip(merged, shown[condition], strict=True))
        return _in_steps(asked, score, partial(AnswerScore, 0.0, None), f"answer {condition}", options)

    return GeneratorScores(
        version=models.generator.version,
        questions=tuple(question.text for question in merged),
        relevant=_relevant(merged),
        conditions={condition: answered(condition) for condition in shown},
    )


def _relevant(questions: Sequence[LabelledQuestion]) -> tuple[tuple[str, ...], ...]:
    return tuple(tuple(item.image for item in question.relevant) for question in questions)


def _in_steps(
    items: Sequence[Item],
    score: Callable[[Sequence[Item]], list[Score]],
    unscored: Callable[[str], Score],
    step_name: str,
    options: EvaluationOptions,
) -> tuple[Score, ...]:
    """The score of each item; `unscored` makes that of an item which cannot be scored, from the reason."""
    scores: list[Score] = []
    size = options.settings.questions_per_step
    for start in range(0, len(items), size):
        scores += _isolate_unscorable(items[start : start + size], score, unscored)
        options.progress(step_name, len(scores), len(items))
    return tuple(scores)


def _isolate_unscorable(
    items: Sequence[Item], score: Callable[[Sequence[Item]], list[Score]], unscored: Callable[[str], Score]
) -> list[Score]:
    """All items together; if one of them cannot be scored, each alone."""
    try:
        return score(items)
    except _UNSCORABLE as error:
        if len(items) > 1:
            return [result for item in items for result in _isolate_unscorable([item], score, unscored)]
        return [unscored(str(error))]


def _rank(
    models: ModelBundle,
    open_picture: PictureOpener,
    options: EvaluationOptions,
    with_captions: bool,
    questions: Sequence[LabelledQuestion],
) -> list[RankScore]:
    candidates = [_candidates(question) for question in questions]
    pairs_of: dict[str, list[tuple[int, Evidence]]] = defaultdict(list)
    for number, listed in enumerate(candidates):
        for item in listed:
            pairs_of[item.image].append((number, item))
    relevance = {}
    remaining = iter(pairs_of)
    while images := list(islice(remaining, _IMAGES_AT_ONCE)):
        batch = [pair for image in images for pair in pairs_of[image]]
        pictures = _open([item for _, item in batch], open_picture)
        pairs = [
            Pair(questions[number].text, item.caption if with_captions else None, pictures[item.image])
            for number, item in batch
        ]
        scores = models.reranker.relevance(pairs, batch_size=options.settings.pairs_per_batch)
        for (number, item), score in zip(batch, scores, strict=True):
            relevance[number, item.image] = score.value
        del pictures, pairs  # before the next ones are opened
    return [
        _rank_score(question, [(item.image, relevance[number, item.image]) for item in listed], options)
        for number, (question, listed) in enumerate(zip(questions, candidates, strict=True))
    ]


def _candidates(question: LabelledQuestion) -> list[Evidence]:
    """What retrieval found, best first, then what else was labelled; each image once."""
    retrieved = [Evidence(item.image, item.caption) for item in question.retrieved]
    unique: dict[str, Evidence] = {}
    for item in (*retrieved, *question.relevant, *question.irrelevant):
        unique.setdefault(item.image, item)
    return list(unique.values())


def _rank_score(
    question: LabelledQuestion, scored: Sequence[tuple[str, float]], options: EvaluationOptions
) -> RankScore:
    relevant = {item.image for item in question.relevant}
    labelled = relevant | {item.image for item in question.irrelevant}
    ranked = sorted(scored, key=lambda pair: -pair[1])  # ties stay in CLIP's order, as when answering
    images = [
        RankedImage(image, relevance, correct=image in relevant, kept=False, labelled=image in labelled)
        for image, relevance in ranked
    ]
    return score_ranking(images, len(relevant), top_n=options.settings.top_n, threshold=options.threshold)


_ShownQuestion = tuple[LabelledQuestion, tuple[Evidence, ...]]


def _answer(
    models: ModelBundle,
    open_picture: PictureOpener,
    options: EvaluationOptions,
    with_captions: bool,
    asked: Sequence[_ShownQuestion],
) -> list[AnswerScore]:
    for question, evidence in asked:
        if not question.answer:
            raise ScoreRejected("no right answer is known")
        if not evidence:
            raise ScoreRejected("there is no image to show")
    pictures = _open([item for _, evidence in asked for item in evidence], open_picture)
    requests = [
        AnswerRequest(
            question.text,
            tuple(item.caption for item in evidence),
            tuple(pictures[item.image] for item in evidence),
        )
        for question, evidence in asked
    ]
    answers = models.generator.answer(
        requests,
        max_tokens=options.settings.max_answer_tokens,
        with_captions=with_captions,
        batch_size=options.settings.questions_per_step,
    )
    return [
        AnswerScore(float(exact_match(answer.text, question.answer or "")), answer.text)
        for (question, _), answer in zip(asked, answers, strict=True)
    ]


def _labelled(question: LabelledQuestion, options: EvaluationOptions) -> tuple[Evidence, ...]:
    """In an order that tells nothing: answering meets pictures in the order of their rank."""
    return tuple(question_rng(options.seed, question.text).sample(question.relevant, len(question.relevant)))


def _with_wrong(question: LabelledQuestion, options: EvaluationOptions) -> tuple[Evidence, ...]:
    """The labelled images and a wrong one among them; nothing where no image is known to be wrong."""
    by_image = {item.image: item for item in _candidates(question)}
    labelled = tuple(item.image for item in _labelled(question, options))
    likely = {item.image for item in question.retrieved if (item.relevance or 0.0) >= options.certain}
    likely -= {item.image for item in question.irrelevant}
    wrong = [image for image in by_image if image not in likely and image not in labelled]
    if not wrong or not labelled:
        return ()
    asked = KnownAnswer(question.text, question.answer or "", "", labelled)
    [shown] = with_added_wrong([asked], question_rng(options.seed, question.text), {question.text: wrong})
    return tuple(by_image[image] for image in shown.images)


def _open(evidence: Sequence[Evidence], open_picture: PictureOpener) -> dict[str, Image.Image]:
    return {image: open_picture(image) for image in dict.fromkeys(item.image for item in evidence)}
