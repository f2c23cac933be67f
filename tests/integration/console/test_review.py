"""Review in Chromium: by keyboard, by mouse, in two tabs, with failures, without scripts."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING
from uuid import uuid4

import pytest
from sqlalchemy import text

from tests.support.api_server import Front
from tests.support.browser import COLOURS, Theme, Visitor, expect, is_true_soon, visiting
from tests.support.review_desk import Desk, clear_reviews, make_desk
from tests.support.waiting import wait_for

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Dialog, Page, Route


@pytest.fixture(scope="module")
def whole_desk(front: Front) -> Desk:
    return make_desk(front.office.engine, front.office.objects, "postcards")


@pytest.fixture
def small_desk(front: Front) -> Iterator[Desk]:
    """Two open cases."""
    made = make_desk(front.office.engine, front.office.objects, f"few-{uuid4().hex[:6]}", cases=2, pictures=3)
    yield made
    clear_reviews(front.office.engine, made)


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


def open_page(visitor: Visitor, desk: Desk, more: str = "", ahead: int = 10) -> Page:
    page = visitor.go(f"/console/review?archive={desk.archive}{more}")
    page.wait_for_selector("#review[data-at], form.case, .no-case")
    if not more:
        wait_for("cases ahead", lambda: cases_ahead(page) >= ahead, 60)
    return page


def settle(page: Page) -> None:
    """Wait until everything is sent."""
    page.wait_for_selector("#review[data-unsent='0']")


def cases_ahead(page: Page) -> int:
    """How many cases the page has."""
    page.wait_for_timeout(50)
    return int(page.get_attribute("#review", "data-ahead") or 0)


def test_forty_five_cases_are_reviewed_by_keyboard_while_the_server_answers_nothing(
    front: Front, browser: Browser, desk: Desk
) -> None:
    """No key waits for the network: the first review is not stored before the last one is given."""
    held: list[Route] = []
    answers = threading.Event()

    def hold(route: Route) -> None:
        if answers.is_set():
            route.continue_()
        else:
            held.append(route)

    with visiting(browser, front.url) as visitor:
        visitor.sign_in(front.key("review"))
        page = open_page(visitor, desk)
        page.route("**/console/review/save", hold)
        began = time.monotonic()
        for number in range(45):
            page.wait_for_selector("form.case")
            page.keyboard.press("y")
            page.keyboard.press("n")
            page.keyboard.press("x" if number % 7 == 5 else "a")  # what had no evidence is wrong, if one is relevant
        print(f"\n45 cases with two pictures each by keyboard in {time.monotonic() - began:.1f} s")
        assert (page.get_attribute("#review", "data-unsent"), saved(front)) == ("45", 0)
        wait_for("the first review to be sent", lambda: is_true_soon(page, lambda: bool(held)), 60)
        answers.set()
        for route in held:
            route.continue_()
        settle(page)
        assert saved(front) == 45
        expect(page.locator("#outbox")).to_have_text("", use_inner_text=True)


def test_what_keys_do(front: Front, browser: Browser, desk: Desk) -> None:
    with visiting(browser, front.url) as visitor:
        visitor.sign_in(front.key("review"))
        page = open_page(visitor, desk)
        first = page.inner_text("form.case h2")
        page.keyboard.press("j")
        expect(page.locator("form.case h2")).not_to_have_text(first, use_inner_text=True)
        second = page.inner_text("form.case h2")
        page.keyboard.press("ArrowLeft")
        expect(page.locator("form.case h2")).to_have_text(first, use_inner_text=True)
        page.keyboard.press("y")
        page.keyboard.press("ArrowDown")
        page.keyboard.press("n")  # of the third picture
        expect(page.locator(".candidate:has(.no input:checked)")).to_have_count(1)
        page.keyboard.press("e")
        page.keyboard.type("a yellow xylophone")  # letters that are keys elsewhere
        expect(page.locator("form.case h2")).to_have_text(first, use_inner_text=True)
        page.keyboard.press("Enter")
        settle(page)
        assert verdicts(front) == [(0, "wrong", 1, 1)]
        expect(page.locator("form.case h2")).to_have_text(second, use_inner_text=True)
        page.keyboard.press("u")
        expect(page.locator("form.case h2")).to_have_text(first, use_inner_text=True)
        settle(page)
        assert verdicts(front) == []
        page.keyboard.press("x")  # with what was marked before
        page.keyboard.press("d")
        settle(page)
        assert verdicts(front) == [(0, "wrong", 1, 1), (1, None, 0, 0)]
        page.keyboard.press("x")
        expect(page.locator("form.case .say")).to_contain_text("Press x again")
        page.keyboard.press("?")
        page.get_by_label("Use these keys").uncheck()
        page.get_by_role("button", name="Close").click()
        page.keyboard.press("x")
        page.keyboard.press("u")
        page.wait_for_timeout(100)
        assert len(verdicts(front)) == 2


@pytest.mark.parametrize("is_known_late", [False, True])
def test_the_progress_is_right_as_soon_as_the_last_case_is_reviewed(
    front: Front, browser: Browser, small_desk: Desk, is_known_late: bool
) -> None:
    """The page does nothing at intervals. It may learn that no case is left only after the last save."""
    held: list[Route] = []

    def hold(route: Route) -> None:
        held.append(route)

    with visiting(browser, front.url) as visitor:
        visitor.page.add_init_script("window.setInterval = () => 0")
        visitor.sign_in(front.key("review"))
        page = open_page(visitor, small_desk, ahead=2)
        if is_known_late:
            page.route("**/console/review/next", hold)
        page.keyboard.press("a")
        page.keyboard.press("a")
        settle(page)
        if is_known_late:
            wait_for("the question for further cases", lambda: is_true_soon(page, lambda: bool(held)))
            held[0].continue_()
        expect(page.locator("#review-progress").get_by_text("0 open")).to_be_visible()


def test_by_mouse(front: Front, browser: Browser, desk: Desk) -> None:
    with visiting(browser, front.url) as visitor:
        visitor.sign_in(front.key("review"))
        page = open_page(visitor, desk)
        page.locator(".candidate .yes").nth(0).click()
        page.locator(".candidate .no").nth(0).click()  # one excludes the other
        page.locator(".candidate .no").nth(1).click()
        page.get_by_role("button", name="Right").click()
        settle(page)
        assert verdicts(front) == [(0, "right", 0, 2)]
        page.get_by_role("button", name="Undo").click()
        settle(page)
        assert verdicts(front) == []


def test_reviewers_and_tabs_never_overwrite_each_other(front: Front, browser: Browser, desk: Desk) -> None:
    ann = front.key("review")
    with visiting(browser, front.url) as one, visiting(browser, front.url) as other:
        one.sign_in(ann)
        other.sign_in(front.key("review"))
        pages = open_page(one, desk), open_page(other, desk)
        texts = {page.get_attribute("form.case", "data-key") for page in pages}
        assert len(texts) == 2
        # The same case in two tabs of one person, and with another person: the first who saves wins.
        case = f"&case={desk.job_id}-0"
        first, third = open_page(one, desk, case), open_page(other, desk, case)
        expect(third.locator("form.case")).to_contain_text("has this case open", use_inner_text=True)
        second = one.context.new_page()
        second.goto(f"{front.url}/console/review?archive={desk.archive}{case}")
        second.wait_for_selector("#review[data-at]")
        for visitor in (one, other):
            visitor.expect_fault("409")
        second.keyboard.press("a")
        settle(second)
        for page, who in ((first, "you, in another tab or window"), (third, "key rgl_")):
            page.keyboard.press("y")
            page.keyboard.press("x")
            page.wait_for_selector("#outbox .notice")
            expect(page.locator("#outbox")).to_contain_text(f"nothing was saved: {who}", use_inner_text=True)
            assert page.get_by_role("link", name="Open this case").get_attribute("href")
        assert verdicts(front) == [(0, "right", 0, 0)]


def test_what_was_said_is_never_lost(front: Front, browser: Browser, desk: Desk) -> None:
    with visiting(browser, front.url) as visitor:
        visitor.expect_fault("Failed to load resource|ERR_INTERNET_DISCONNECTED|503")
        visitor.sign_in(front.key("review"))
        page = open_page(visitor, desk)
        visitor.context.set_offline(True)
        for _ in range(4):
            page.keyboard.press("a")
        page.wait_for_selector("#outbox .notice")
        expect(page.locator("#outbox")).to_contain_text("4 reviews wait and will be sent again", use_inner_text=True)
        asked: list[str] = []

        def stay(dialog: Dialog) -> None:
            asked.append(dialog.type)
            dialog.dismiss()

        page.on("dialog", stay)
        page.evaluate("location.href = '/console'")
        wait_for("the question", lambda: is_true_soon(page, lambda: bool(asked)), 60)
        assert asked == ["beforeunload"]
        assert saved(front) == 0
        # The browser dies; the next visit sends what it had kept.
        state = visitor.context.storage_state()
    context = browser.new_context(storage_state=state)
    context.set_default_timeout(60_000)
    page = context.new_page()
    page.goto(f"{front.url}/console/review?archive={desk.archive}")
    settle(page)
    assert saved(front) == 4
    page.reload()
    page.wait_for_selector("#review[data-at]")
    assert saved(front) == 4
    context.close()


def test_second_opinions_show_agreement(front: Front, browser: Browser, desk: Desk) -> None:
    with visiting(browser, front.url) as one, visiting(browser, front.url) as other:
        one.sign_in(front.key("review"))
        other.sign_in(front.key("review"))
        page = open_page(one, desk)
        for verdict in "aaa":
            page.keyboard.press(verdict)
        settle(page)
        page = open_page(other, desk)
        page.get_by_role("link", name="3 wait for a second opinion").click()
        page.wait_for_url("**second=**")
        wait_for("cases ahead", lambda: cases_ahead(page) >= 3, 60)
        for keys in ("a", "a", "nx"):
            for key in keys:
                page.keyboard.press(key)
        settle(page)
        page = open_page(other, desk)
        expect(page.locator("#review-progress")).to_contain_text("agreement 66.7 %", use_inner_text=True)
        expect(page.locator("#review-progress")).to_contain_text("of 3 answers", use_inner_text=True)
        expect(page.locator("#review-progress")).to_contain_text("1 disagreement", use_inner_text=True)
        expect(page.locator(".opinions")).to_have_count(0)  # of a case that nobody has labelled
        page.get_by_text("1 disagreement").click()
        page.locator("#review-progress details a").click()
        page.wait_for_url("**case=**")
        both = page.get_by_role("region", name="opinions").locator(".opinion")
        expect(both.locator("p > .chip")).to_have_text(["right", "wrong"], use_inner_text=True)
        expect(both.nth(1)).to_contain_text("not relevant", use_inner_text=True)
        expect(both.nth(0)).not_to_contain_text("not relevant", use_inner_text=True)
        other.check_access()
        page.set_viewport_size({"width": 390, "height": 900})
        other.check_fits()
        key = f"{desk.job_id}-{front.client.reviewing.next(desk.archive, 'x')[0].question.question_no}"
        page = open_page(one, desk, f"&case={key}")
        expect(page.locator(".opinions")).to_have_count(0)
        wait_for("cases ahead", lambda: cases_ahead(page) > 1)  # else it takes them when the next test has begun


def test_without_scripts_one_case_after_another(front: Front, browser: Browser, desk: Desk) -> None:
    with visiting(browser, front.url, scripts=False) as visitor:
        visitor.sign_in(front.key("review"))
        page = open_page(visitor, desk, ahead=0)
        first = page.inner_text("form.case h2")
        page.locator(".candidate .no").nth(1).click()
        page.get_by_label("The right answer").fill("an elephant")
        page.get_by_role("button", name="Wrong").click()
        expect(page.locator("#messages")).to_contain_text("Saved as wrong.", use_inner_text=True)
        assert page.inner_text("form.case h2") != first
        assert verdicts(front) == [(0, "wrong", 0, 1)]
        page.get_by_role("button", name="Undo").click()
        expect(page.locator("#messages")).to_contain_text("undone")
        assert page.inner_text("form.case h2") == first and verdicts(front) == []


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_everybody_can_use_it(front: Front, browser: Browser, desk: Desk, theme: Theme) -> None:
    rules = COLOURS if theme == "dark" else ()
    with visiting(browser, front.url, theme=theme) as visitor:
        visitor.sign_in(front.key("review"))
        page = open_page(visitor, desk)
        page.keyboard.press("y")
        page.keyboard.press("n")
        for width in (390, 1400):
            page.set_viewport_size({"width": width, "height": 900})
            visitor.check_fits()
        visitor.check_access(rules=rules)
        if theme == "light":
            visitor.draw("review")
        page.keyboard.press("?")
        visitor.check_access("keys", rules)
        page.get_by_role("button", name="Close").click()
        visitor.go(f"/console/review?archive={desk.archive}&reason=said_wrong")
        page.wait_for_selector(".no-case")
        visitor.check_access("no case", rules)


def test_hostile_texts_are_harmless(front: Front, browser: Browser) -> None:
    hostile = make_desk(front.office.engine, front.office.objects, "hostile", cases=3, pictures=3, hostile=True)
    with visiting(browser, front.url, width=390) as visitor:
        visitor.sign_in(front.key("review"))
        page = open_page(visitor, hostile, ahead=3)
        page.wait_for_timeout(300)
        for _ in range(3):
            assert page.title() == "Review · RagLLaVA"
            visitor.check_fits()
            assert "\u202e" not in page.inner_text("main")
            page.keyboard.press("j")
