"""The first stage for people: search an archive without reranker and generator.

A person may search for a common word, which makes sure of no image (candidates.py). So the images whose words fit best
are listed too: after those that captions make sure of, the two rankings take turns.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import zip_longest

from sqlalchemy import Engine

from ragllava.filters import check_filter
from ragllava.json_records import to_json
from ragllava.records import AnswerOptions, Candidate, FoundImage, Origin, Question, Retrieval
from ragllava.settings import Settings
from ragllava.stages.answer.pipeline import retrieve
from ragllava.stages.answer.tools import prepare
from ragllava.stages.resources import Resources
from ragllava.stores.archives import archive, filtering
from ragllava.stores.database import in_transaction


def search_archive(
    engine: Engine,
    settings: Settings,
    resources: Resources,
    archive_name: str,
    text: str,
    options: AnswerOptions,
    picture: str | None = None,
) -> list[FoundImage]:
    """The images that fit `text` best, at most `top_k` of the options. Loads the retriever, and no other model.

    With the sha256 of a stored `picture`, those that are most like it take turns with those that fit the text, if there
    is any and the retrieval is `hybrid`.

    Raises UsageError for an unknown archive, for a wrong filter and for one with a key that none of its images has,
    JobRefused when this machine's profile is not the archive's, ImageRejected for a picture that cannot be read.
    """
    retrieval, options = options.retrieval, replace(options, filter=check_filter(options.filter))
    archive_id = in_transaction(engine, archive.get_archive, archive_name).archive_id
    in_transaction(engine, filtering.check_keys, archive_id, archive_name, options.filter)

    def ranked(by: Retrieval, like: str | None = None) -> list[Candidate]:
        question = Question(0, 1, "search", text, picture=like)
        chosen = to_json(replace(options, retrieval=by))
        tools = prepare(engine, settings, resources, archive_id, chosen, only_retrieve=True)
        [candidates] = retrieve([question], tools)
        return candidates

    if picture is not None:
        by_text = ranked(retrieval) if text and retrieval is not Retrieval.PICTURE else []
        found = _in_turns(ranked(Retrieval.PICTURE, picture), by_text)[: options.top_k]
    else:
        pictures = ranked(retrieval) if retrieval is not Retrieval.CAPTION else []
        captions = ranked(Retrieval.CAPTION) if retrieval is not Retrieval.PICTURE else []
        found = _merged(pictures, captions)[: options.top_k]
    metadata = in_transaction(engine, archive.load_metadata, [row.image.image_id for row in found])
    return [replace(row, metadata=metadata.get(row.image.image_id)) for row in found]


def _merged(pictures: Sequence[Candidate], captions: Sequence[Candidate]) -> list[FoundImage]:
    """First the images that captions make sure of, best first; then those of both rankings in turns."""
    by_picture = {c.image.image_id: c for c in pictures if c.origin is not Origin.CAPTION}
    by_words = {c.image.image_id: c for c in captions}
    sure = sorted((c for c in (*pictures, *captions) if c.shares), key=lambda c: (-max(c.shares), c.retrieval_rank))
    turns: list[Candidate] = []
    rankings = list(by_words.values()), list(by_picture.values())
    for place in range(max(map(len, rankings), default=0)):
        turns += [ranking[place] for ranking in rankings if place < len(ranking)]
    found: dict[int, FoundImage] = {}
    for candidate in (*sure, *turns):
        image_id = candidate.image.image_id
        words = by_words.get(image_id, candidate)
        picture = by_picture.get(image_id)
        found.setdefault(
            image_id,
            FoundImage(
                candidate.image,
                picture_rank=picture.retrieval_rank if picture else None,
                retrieval_score=candidate.retrieval_score,
                caption_rank=words.caption_rank,
                caption_score=words.caption_score,
            ),
        )
    return list(found.values())


def _in_turns(alike: Sequence[Candidate], by_text: Sequence[Candidate]) -> list[FoundImage]:
    """What is like a picture and what fits a text, in turns; the rank by picture is that of the likeness."""
    likeness = {candidate.image.image_id: candidate for candidate in alike}
    of_text = {candidate.image.image_id: candidate for candidate in by_text}
    turns = [candidate for pair in zip_longest(alike, by_text) for candidate in pair if candidate is not None]
    found: dict[int, FoundImage] = {}
    for candidate in turns:
        image_id = candidate.image.image_id
        like, words = likeness.get(image_id), of_text.get(image_id)
        found.setdefault(
            image_id,
            FoundImage(
                candidate.image,
                picture_rank=like.retrieval_rank if like else None,
                retrieval_score=candidate.retrieval_score,
                caption_rank=words.caption_rank if words else None,
                caption_score=words.caption_score if words else None,
            ),
        )
    return list(found.values())
