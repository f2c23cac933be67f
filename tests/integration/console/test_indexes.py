"""The comparison of two indexes in Chromium, where a retriever that knows nothing makes questions end otherwise."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ragllava.models.profiles import RetrieverSource
from ragllava.records import Selection
from tests.support.api_shop import open_shop
from tests.support.browser import expect, visiting
from tests.support.postcard_gallery import listed, reindexed
from tests.support.retriever_folders import write_retriever
from tests.support.workshop import ARCHIVE, Workshop

if TYPE_CHECKING:
    from pathlib import Path

    from playwright.sync_api import Browser


def test_questions_that_would_end_otherwise_are_shown_side_by_side(
    gallery: Workshop, browser: Browser, asked: list[str], tmp_path: Path
) -> None:
    blind: RetrieverSource = write_retriever(tmp_path / "blind", noise=3.0, only=("token_", "transformer"))
    gallery.ask(asked, top_k=3)
    reindexed(gallery, Selection.ALL, blind)
    new = listed(gallery)[1]
    assert new.gate is not None and not new.gate["passed"]
    differences = new.gate["answers"]["differences"]
    assert len(differences) > 1, "nothing ends otherwise: the test shows nothing"
    with open_shop(gallery) as shop, visiting(browser, shop.url) as visitor:
        visitor.sign_in(shop.key("read", ARCHIVE))
        page = visitor.go(f"/console/archives/{ARCHIVE}/indexes")
        for width in (390, 1400):
            page.set_viewport_size({"width": width, "height": 1343})
            visitor.check_fits()
        visitor.check_access()
        visitor.draw("indexes")
        expect(page.locator(".chip.bad", has_text="failed")).to_be_visible()
        shown = page.get_by_role("region", name=f"Questions that end otherwise with index {new.index.index_id}")
        items = shown.locator("ol.differences > li")
        expect(items).to_have_count(len(differences))
        changes = [float(chip) for chip in items.locator(".chip").all_inner_texts()]
        assert changes == sorted(changes) and changes[0] < 0, "the worse ones come first"
        worst = min(differences, key=lambda row: row["new"]["relevance"] - row["old"]["relevance"])
        first = items.first
        expect(first).to_contain_text(worst["question"], use_inner_text=True)
        for title, side in (("before", worst["old"]), (f"with index {new.index.index_id}", worst["new"])):
            told = first.locator(".side-answer").filter(has=page.get_by_role("heading", name=title)).inner_text()
            assert f"relevance {side['relevance']:.3f}" in told
            assert (side["answer"] if side["answer"] is not None else "no evidence") in told
            assert all(source in told for source in side["evidence"])
