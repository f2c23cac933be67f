"""Review in Chromium: by keyboard, by mouse, in two tabs, with failures, without scripts."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import text

from tests.support.api_server import Front
from tests.support.browser import Theme, Visitor, visiting
from tests.support.review_desk import Desk, clear_reviews, make_desk
from tests.support.waiting import wait_for

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page


@pytest.fixture(scope="module")
def whole_desk(front: Front) -> Desk:
    return make_desk(front.office.engine, front.office.objects, "postcards")


@pytest.fixture
def desk(front: Front, whole_desk: Desk) -> Iterator[Desk]:
    """Sixty open cases."""
    yield whole_desk
    clear_reviews(front.office.engine, whole_desk)


def saved(front: Front) -> int:
    with front.office.engine.connect() as connection:
        return int(connection.scalar(text("SELECT count(*) FROM reviews")) or 0)


def verdicts(front: Front) -> list[tuple[int, str | None, int, int]]:
    """Number of the question, verdict, how many pictures are called relevant, how many not."""
    with front.office.engine.connect() as connection:
        rows = connection.execute(
            text(
                "SELECT question_no, verdict, cardinality(relevant) AS yes, cardinality(irrelevant) AS no "
                "FROM reviews ORDER BY question_no"
            )
        )
        return [(row.question_no, row.verdict, row.yes, row.no) for row in rows]


def open_page(visitor: Visitor, desk: Desk, more: str = "") -> Page:
    page = visitor.go(f"/console/review?archive={desk.archive}{more}")
    page.wait_for_selector("#review[data-at], form.case, .no-case")
    return page


def delay(visitor: Visitor, latency_ms: float, *, offline: bool = False) -> None:
    """What the page asks of the server takes so much longer."""
    session = visitor.context.new_cdp_session(visitor.page)
    session.send("Network.enable")
    speed = {"downloadThroughput": -1, "uploadThroughput": -1}
    session.send("Network.emulateNetworkConditions", {"offline": offline, "latency": latency_ms, **speed})


def test_forty_cases_in_a_minute_by_keyboard(front: Front, browser: Browser, desk: Desk) -> None:
    with visiting(browser, front.url) as visitor:
        visitor.sign_in(front.key("review"))
        page = open_page(visitor, desk)
        page.wait_for_function("Number(document.getElementById('review').dataset.ahead) >= 10")
        delay(visitor, 300)  # nothing may wait for the network
        began = time.monotonic()
        for number in range(45):
            page.keyboard.press("y")
            page.keyboard.press("n")
            page.keyboard.press("x" if number % 3 == 0 else "a")
            page.wait_for_timeout(600)  # a person looks
        took_s = time.monotonic() - began
        print(f"\n45 cases with two pictures each in {took_s:.1f} s")
        assert took_s < 60
        wait_for("all reviews", lambda: saved(front) == 45, 60)
