"""The pages use the decided words (docs/glossary.md): names that were replaced do not come back."""

from __future__ import annotations

import re

import pytest

from tests.support.pages import Page, all_pages

PAGES = [page for page in all_pages() if page.name != "docs/glossary.md"]  # which may say what a word replaces

REPLACED = {
    "a maintenance task": r"\bchores?\b|\bupkeep\b",
    "retrieval_score, retrieval_rank": r"\bclip_(?:score|rank)\b",
    "end-to-end": r"\bthe whole way\b",
    "again, or from scratch": r"\banew\b",
    "run `command`": r"\bsay `",
    "considered lost": r"\btaken for lost\b",
    "promote": r"\bcrown(?:s|ed)?\b",
    "the in-domain archive": r"\bat home\b",
    "the shifted archive": r"\bshifted world\b",
    "scores lower": r"\bholds? for less\b",
    "result": r"\bc[oa]me to\b",
}


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_replaced_words_do_not_come_back(page: Page) -> None:
    text = " ".join(page.text.split())
    used = {better: match[0] for better, wrong in REPLACED.items() if (match := re.search(wrong, text))}
    assert used == {}
