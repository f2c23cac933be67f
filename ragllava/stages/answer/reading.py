"""A question as the models read it: a surely misspelt name as the caption spells it that was found by it.

The caption search corrects a word that the archive does not have, and finds the right caption in spite of it. Reranker
and generator would still see another name than that of the caption, and call the image irrelevant. So a correction is
passed on where it is sure (candidates.py). The result keeps the question as it was asked, with a note.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

from ragllava.records import Candidate, Question, by_retrieval
from ragllava.words import words_of

_TOKEN = re.compile(r"\w+")


def as_read(question: Question, candidates: Iterable[Candidate]) -> Question:
    """The question in the spellings of its candidates, in any order of these; itself if none of them corrects it."""
    replacements = _replacements(question.text, candidates)
    if not replacements:
        return question
    text = _TOKEN.sub(lambda token: replacements.get(token[0], token[0]), _composed(question.text))
    return replace(question, text=text)


def reading_notes(question: Question, candidates: Sequence[Candidate]) -> list[str]:
    """A sentence for the user about each word that the models read in another spelling."""
    return [
        f'"{asked}", which the archive does not have, was read as "{meant}"'
        for asked, meant in _replacements(question.text, candidates).items()
    ]


def _replacements(text: str, candidates: Iterable[Candidate]) -> dict[str, str]:
    """Tokens of the text, in its order, with the tokens of captions that stand for them.

    None that begins with a small letter: "ships" need not be a name that was meant to be "Shops".
    """
    spelt: dict[str, str] = {}  # the token of a caption by the word that was asked for
    for candidate in by_retrieval(candidate for candidate in candidates if candidate.spellings):
        tokens = {word: token for token, word in _tokens(candidate.image.caption or "")}
        for spelling in candidate.spellings:
            if spelling.meant in tokens:
                spelt.setdefault(spelling.asked, tokens[spelling.meant])
    if not spelt:
        return {}
    return {token: spelt[word] for token, word in _tokens(text) if word in spelt and not token[0].islower()}


def _tokens(text: str) -> Iterator[tuple[str, str]]:
    """The tokens that are one word each, with this word."""
    for token in _TOKEN.findall(_composed(text)):
        if len(words := words_of(token)) == 1:
            yield token, words[0]


def _composed(text: str) -> str:
    """With each letter and its accent as one character, so that no token ends between them."""
    return unicodedata.normalize("NFC", text)
