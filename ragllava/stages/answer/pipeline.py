"""Question in, answer with evidence out: retrieve, rerank, cut at the threshold, generate (docs/method.md 1 to 4)."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypeVar

from ragllava import tracing
from ragllava.errors import JobRefused, LeaseLost, RagllavaError, ShardInterrupted
from ragllava.records import Answer, AnswerStatus, Candidate, ModelStamp, Question, Retrieval, by_relevance, evidence_of
from ragllava.settings import Settings
from ragllava.stages.answer import waves
from ragllava.stages.answer.candidates import CandidateHit, find_candidates
from ragllava.stages.answer.cautions import unfinished_ingest
from ragllava.stages.answer.doubts import Evidence
from ragllava.stages.answer.reading import as_read, reading_notes
from ragllava.stages.answer.tools import CUT, AnswerTools, stamp_now
from ragllava.stores.archives import archive
from ragllava.stores.database import read_at_once

if TYPE_CHECKING:
    from PIL.Image import Image

    from ragllava.models.generator import GeneratedAnswer
    from ragllava.models.reranker import Relevance

log = logging.getLogger(__name__)

T = TypeVar("T")

_IMAGES_AT_ONCE = 64  # whose decoded pictures are in memory together, beside the cache
_QUESTIONS_PER_SEARCH = 64
_MOST_BATCHES = 4  # of pairs of one image in one call
_ENDPOINT_ROUNDS = 4  # requests in one call, for each that an endpoint takes at a time


def _no_pause() -> None:
    """For a caller that need not stop."""


Pictures = Mapping[str, "Image | str"]  # by sha256; a text says why the picture cannot be read
HitsByQuestion = dict[int, list[CandidateHit]]  # by question_no
RowAndImage = tuple[int, int]  # the place of a question in its batch, and the id of an image


@dataclass(frozen=True, slots=True)
class RerankedQuestion:
    """The candidates of one question, best first, and notes for the user about how they were reranked.

    `cut_to`: so many were reranked, although more would have been without the limit of the job; None: as many as
    needed. `text` is the question as the models read it (reading.py); None: as it was asked.
    """

    candidates: tuple[Candidate, ...]
    notes: tuple[str, ...]
    cut_to: int | None = None
    text: str | None = None

    @property
    def evidence(self) -> list[Candidate]:
        """The kept candidates in rank order."""
        return evidence_of(self.candidates)


def isolate_failures(questions: Sequence[Question], work: Callable[[Sequence[Question]], list[T]]) -> list[T | Answer]:
    """`work` on all questions together if possible; a question that makes that impossible fails alone
    (docs/reliability.md D5).

    One result for each question, in order: what `work` gives, or its answer `failed`. Errors that concern the job, the
    lease or a service are raised.
    """
    try:
        return [*work(questions)]
    except (JobRefused, LeaseLost, ShardInterrupted):
        raise
    except RagllavaError as error:
        if error.retryable:
            raise
        if len(questions) > 1:
            return [result for question in questions for result in isolate_failures([question], work)]
        number = questions[0].question_no
        log.warning(str(error), extra={"action": "question_failed", "question": number})
        return [Answer(number, AnswerStatus.FAILED, error_code=type(error).__name__, error=str(error))]


def answer_questions(questions: Sequence[Question], tools: AnswerTools) -> list[Answer]:
    """Answer a batch of questions; the result has one answer for each, in the same order.

    Questions without a candidate of relevance ≥ η end as `no_evidence`, with the candidates that were looked at.
    """
    return answer_from_evidence(questions, rerank(questions, retrieve(questions, tools), tools), tools)


@tracing.stage("retrieve")
def retrieve(
    questions: Sequence[Question],
    tools: AnswerTools,
    known_hits: HitsByQuestion | None = None,
    pause: Callable[[], None] = _no_pause,
) -> list[list[Candidate]]:
    """The candidates of each question in retrieval order, not reranked yet (docs/method.md 1, candidates.py).

    Questions in `known_hits` are not searched for again. `pause` is called between two searches; what it raises is
    passed on.
    """
    hits_of = dict(known_hits or {})
    missing = [question for question in questions if question.question_no not in hits_of]
    for start in range(0, len(missing), _QUESTIONS_PER_SEARCH):
        pause()
        batch = missing[start : start + _QUESTIONS_PER_SEARCH]
        hits_of.update(zip((question.question_no for question in batch), find_candidates(batch, tools), strict=True))
    rows = [hits_of[question.question_no] for question in questions]
    images = read_at_once(tools.engine, archive.load_images, sorted({hit.image_id for row in rows for hit in row}))
    return [
        [
            Candidate(
                images[hit.image_id],
                rank,
                hit.retrieval_score,
                relevance=None,
                origin=hit.origin,
                caption_rank=hit.caption_rank,
                caption_score=hit.caption_score,
                shares=hit.shares,
                spellings=hit.spellings,
            )
            for rank, hit in enumerate(row)
        ]
        for row in rows
    ]


@tracing.stage("rerank")
def rerank(
    questions: Sequence[Question],
    candidates: Sequence[Sequence[Candidate]],
    tools: AnswerTools,
    pause: Callable[[], None] = _no_pause,
    most: int | None = None,
) -> list[RerankedQuestion]:
    """P("Yes") of every (question, image + caption) pair, then the threshold (docs/method.md 2 and 3).

    `candidates` has those of each question; they are reranked in waves until those that were suffice (waves.py), and
    the others keep the relevance None. Of each question at most the `most` strongest are; where that takes a part of a
    wave that was needed, the result says so. A candidate whose picture cannot be read is left out, and a note says so;
    another note tells which words are read as a caption spells them (reading.py). `pause` is called between groups of
    pairs; what it raises is passed on.
    """
    read = list(map(as_read, questions, candidates))
    scores: dict[RowAndImage, Relevance] = {}
    unreadable: dict[RowAndImage, str] = {}
    planned = {row: waves.waves_of(of_question, tools.options.depth) for row, of_question in enumerate(candidates)}
    beyond: dict[int, list[Candidate]] = {}
    ends_early: set[int] = set()  # rows of which the limit takes a part of the last wave
    cut: set[int] = set()
    for row, all_waves in planned.items() if most is not None else ():
        planned[row], beyond[row], is_part = waves.cut(all_waves, most or 0)
        ends_early |= {row} if is_part else set()
    while planned := {row: left for row, left in planned.items() if left}:
        pairs = [(row, candidate) for row, left in planned.items() for candidate in left[0]]
        _score(read, pairs, scores, unreadable, tools, pause)
        open_rows = {
            row: left[1:]
            for row, left in planned.items()
            if (row in ends_early and not left[1:])
            or not _is_done(candidates[row], row, [*left[1:], beyond.get(row, [])], scores, tools)
        }
        cut |= {row for row, left in open_rows.items() if not left}
        planned = open_rows
    ranked = [_ranked(row, of_question, scores, unreadable, tools) for row, of_question in enumerate(candidates)]
    return [
        replace(
            result,
            text=read[row].text,
            notes=(*reading_notes(questions[row], candidates[row]), *result.notes),
            cut_to=most if row in cut else None,
        )
        for row, result in enumerate(ranked)
    ]


def _is_done(
    candidates: Sequence[Candidate],
    row: int,
    left: Sequence[Sequence[Candidate]],
    scores: Mapping[RowAndImage, Relevance],
    tools: AnswerTools,
) -> bool:
    reranked = [
        replace(candidate, relevance=scores[row, candidate.image.image_id].value)
        for candidate in candidates
        if (row, candidate.image.image_id) in scores
    ]
    return waves.is_done(reranked, [c for wave in left for c in wave], tools.threshold)


def _score(
    questions: Sequence[Question],
    wave: Sequence[tuple[int, Candidate]],
    scores: dict[RowAndImage, Relevance],
    unreadable: dict[RowAndImage, str],
    tools: AnswerTools,
    pause: Callable[[], None],
) -> None:
    """Add the relevance of these candidates to `scores`, or why their picture cannot be read to `unreadable`.

    Works image by image, so that each is fetched, decoded and read once for all questions that it is a candidate of
    (docs/method.md 2); the more questions, the more they share.
    """
    from ragllava.models.reranker import Pair  # loads torch, which only a process that answers needs

    by_image: dict[str, list[tuple[int, Candidate]]] = defaultdict(list)
    for row, candidate in wave:
        by_image[candidate.image.sha256].append((row, candidate))
    hashes = list(by_image)
    cache = tools.resources.pictures
    for start in range(0, len(hashes), _IMAGES_AT_ONCE):
        pause()
        end = start + _IMAGES_AT_ONCE
        pictures = cache.get_many(hashes[start:end])
        cache.fetch_ahead(hashes[end : end + _IMAGES_AT_ONCE])  # while these are scored
        groups: list[list[tuple[int, Candidate]]] = []
        for sha256, picture in pictures.items():
            if isinstance(picture, str):
                unreadable |= {(row, candidate.image.image_id): picture for row, candidate in by_image[sha256]}
            else:
                groups.append(by_image[sha256])
        for readable in _calls(groups, tools.settings):
            pause()
            pairs = [
                Pair(questions[row].text, candidate.image.caption, _picture(pictures, candidate), tools.by_caption)
                for row, candidate in readable
            ]
            relevances = tools.resources.models.reranker.relevance(pairs, batch_size=tools.settings.pairs_per_batch)
            keys = ((row, candidate.image.image_id) for row, candidate in readable)
            scores.update(zip(keys, relevances, strict=True))


def _calls(groups: Iterable[list[T]], settings: Settings) -> Iterator[list[T]]:
    """What is scored in one call of the reranker, which nothing can interrupt: about one batch; small groups whole.

    An endpoint makes its own batches, of the requests of several such calls.
    """
    enough = settings.pairs_per_batch if settings.vllm_url is None else _ENDPOINT_ROUNDS * settings.vllm_requests
    joined: list[T] = []
    for group in groups:
        for start in range(0, len(group), _MOST_BATCHES * settings.pairs_per_batch):
            joined += group[start : start + _MOST_BATCHES * settings.pairs_per_batch]
            if len(joined) >= enough:
                yield joined
                joined = []
    if joined:
        yield joined


def _ranked(
    row: int,
    candidates: Sequence[Candidate],
    scores: Mapping[RowAndImage, Relevance],
    unreadable: Mapping[RowAndImage, str],
    tools: AnswerTools,
) -> RerankedQuestion:
    """The pictures that could not be read for this question are left out. One that only other questions needed stays:
    a result does not depend on the questions beside it."""
    scored = {c.image.image_id: scores[row, c.image.image_id] for c in candidates if (row, c.image.image_id) in scores}
    readable = [candidate for candidate in candidates if (row, candidate.image.image_id) not in unreadable]
    ranked = select_evidence(
        [replace(c, relevance=scored[c.image.image_id].value) if c.image.image_id in scored else c for c in readable],
        tools.threshold,
        tools.options.top_n,
    )
    evidence = {candidate.image.image_id for candidate in ranked if candidate.evidence_no is not None}
    notes = [score.note for image_id, score in scored.items() if score.note and image_id in evidence]
    images = [candidate.image for candidate in candidates if (row, candidate.image.image_id) in unreadable]
    missing = [f"{image.source}: {unreadable[row, image.image_id]}" for image in images]
    return RerankedQuestion(tuple(ranked), tuple(dict.fromkeys(missing + notes)))


def select_evidence(candidates: Sequence[Candidate], threshold: float, top_n: int) -> list[Candidate]:
    """Rank by relevance (ties by retrieval rank) and number the first `top_n` that reach the threshold."""
    return [
        replace(c, evidence_no=rank if rank < top_n and c.relevance is not None and c.relevance >= threshold else None)
        for rank, c in enumerate(by_relevance(candidates))
    ]


def answer_from_evidence(
    questions: Sequence[Question], reranked: Sequence[RerankedQuestion], tools: AnswerTools
) -> list[Answer]:
    """Answers from what was kept for each question, in the same order."""
    texts = generate(questions, reranked, _load_pictures([c for row in reranked for c in row.evidence], tools), tools)
    stamp = stamp_now(tools)
    return [_as_answer(*row, stamp, tools) for row in zip(questions, reranked, texts, strict=True)]


@tracing.stage("generate")
def generate(
    questions: Sequence[Question], reranked: Sequence[RerankedQuestion], pictures: Pictures, tools: AnswerTools
) -> list[GeneratedAnswer | None]:
    """Answers from the kept images in rank order; None where nothing was kept (docs/method.md 4)."""
    from ragllava.models.generator import AnswerRequest

    answerable = [number for number, row in enumerate(reranked) if row.evidence]
    texts: list[GeneratedAnswer | None] = [None] * len(questions)
    if not answerable:
        return texts
    requests = [
        AnswerRequest(
            reranked[number].text or questions[number].text,
            tuple(candidate.image.caption for candidate in reranked[number].evidence),
            tuple(_picture(pictures, candidate) for candidate in reranked[number].evidence),
        )
        for number in answerable
    ]
    answers = tools.resources.models.generator.answer(
        requests,
        max_tokens=tools.settings.max_answer_tokens,
        with_captions=tools.options.captions_in_answer,
        batch_size=tools.settings.questions_per_step,
        with_instruction=not tools.question_only,
    )
    for number, answer in zip(answerable, answers, strict=True):
        texts[number] = answer
    return texts


def answer_again(questions: Sequence[Question], evidence: Evidence, tools: AnswerTools) -> dict[int, str]:
    """Answers from the evidence given, by `question_no`; a question whose pictures cannot be read now is left out."""
    pictures = _load_pictures([c for question in questions for c in evidence[question.question_no]], tools)
    readable = [
        question
        for question in questions
        if not any(isinstance(pictures[c.image.sha256], str) for c in evidence[question.question_no])
    ]
    reranked = [RerankedQuestion(tuple(evidence[question.question_no]), ()) for question in readable]
    texts = generate(readable, reranked, pictures, tools)
    return {question.question_no: text.text for question, text in zip(readable, texts, strict=True) if text}


def _as_answer(
    question: Question,
    reranked: RerankedQuestion,
    text: GeneratedAnswer | None,
    stamp: ModelStamp,
    tools: AnswerTools,
) -> Answer:
    notes = list(reranked.notes)
    if reranked.cut_to is not None:
        stamp = replace(stamp, depth=f"{stamp.depth}{CUT}{reranked.cut_to}")
        notes.append(f"a limit of the job left time for the {reranked.cut_to} strongest candidates")
    if text is None:
        is_filtered = tools.options.filter is not None or question.filter is not None
        notes.insert(0, _why_no_evidence(reranked, stamp, is_filtered))
    elif text.note:
        notes.append(text.note)
    if tools.ingests:
        notes.append(unfinished_ingest(tools.ingests))
    return Answer(
        question.question_no,
        AnswerStatus.ANSWERED if text else AnswerStatus.NO_EVIDENCE,
        text=text.text if text else None,
        confidence=text.confidence if text else None,
        candidates=reranked.candidates,
        models=stamp,
        note="; ".join(notes) or None,
        prompt_tokens=text.prompt_tokens if text else 0,
        completion_tokens=text.tokens if text else 0,
    )


def _why_no_evidence(reranked: RerankedQuestion, stamp: ModelStamp, is_filtered: bool) -> str:
    if not reranked.candidates:
        if reranked.notes:  # about pictures that cannot be read
            return "the archive has no readable picture"
        if stamp.retrieval.startswith(Retrieval.CAPTION):
            return f"no caption{' of a picture that the filter leaves' * is_filtered} has a word of the question"
        return "the filter leaves no picture" if is_filtered else "the archive has no readable picture"
    best = reranked.candidates[0]
    if best.relevance is None:
        return "none of the candidates that a limit of the job left time for can be read"
    return (
        f"no picture is relevant enough: the best, {best.image.source}, has a relevance of {best.relevance:.3f}, below "
        f"the threshold of {stamp.threshold:.3f}"
    )


def _load_pictures(candidates: Sequence[Candidate], tools: AnswerTools) -> Pictures:
    return tools.resources.pictures.get_many([c.image.sha256 for c in candidates])


def _picture(pictures: Pictures, candidate: Candidate) -> Image:
    picture = pictures[candidate.image.sha256]
    assert not isinstance(picture, str), "unreadable candidates were left out"  # noqa: S101 - for the type checker
    return picture
