"""Learning in Chromium: the threshold, a curve that grows, the gate's table and examples, promote and roll back."""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import quote

import pytest
from sqlalchemy import text

from ragllava.records import Role
from tests.support.api_server import Front
from tests.support.browser import COLOURS, Theme, expect, visiting
from tests.support.console_client import reading
from tests.support.hostile_texts import HOSTILE, HOSTILE_NAME
from tests.support.learning_desk import ADAPTER, Learning, add_losses, make_learning
from tests.support.review_desk import RERANKER, Desk, make_desk
from tests.support.waiting import wait_for

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Dialog, Page


@pytest.fixture(scope="module")
def desk(front: Front) -> Desk:
    return make_desk(front.office.engine, front.office.objects, "postcards", cases=24)


@pytest.fixture(scope="module")
def learning(front: Front, desk: Desk) -> Learning:
    return make_learning(front.client, front.settings, desk)


def figures(page: Page) -> list[str]:
    """η, precision, recall, no evidence, as shown."""
    return [page.inner_text("#eta-value"), *page.locator("[data-figure]").all_inner_texts()]


def test_the_threshold_is_dragged_and_moved_by_keys(
    front: Front, browser: Browser, desk: Desk, learning: Learning
) -> None:
    points = front.client.models.threshold_curve(desk.archive).points
    with visiting(browser, front.url) as visitor:
        visitor.sign_in(front.key("read"))
        page = visitor.go("/console/learning")
        slider = page.get_by_role("slider", name="threshold η")
        assert figures(page)[0] == "0.500" and slider.get_attribute("aria-valuenow") == "0.500"
        for key, eta in (("ArrowRight", 0.505), ("ArrowDown", 0.5), ("PageUp", 0.55), ("End", 1.0), ("Home", 0.0)):
            slider.press(key)
            [point] = [point for point in points if abs(point.threshold - eta) < 1e-6]
            shares = (point.precision, point.recall, point.no_evidence)
            told = ["–" if share is None else f"{100 * share:.{0 if share in (0, 1) else 1}f} %" for share in shares]
            assert figures(page) == [f"{eta:.3f}", *told]
            assert f"{eta:.3f}: precision {told[0]}" in (slider.get_attribute("aria-valuetext") or "")
        box = page.locator(".plot").bounding_box()
        assert box is not None
        page.mouse.move(box["x"] + 1, box["y"] + 40)
        page.mouse.down()
        page.mouse.move(box["x"] + 0.4 * box["width"], box["y"] + 40, steps=4)
        page.mouse.up()
        assert figures(page)[0] == "0.400"
        page.mouse.move(box["x"] + 0.9 * box["width"], box["y"] + 40)  # nothing is held any more
        assert figures(page)[0] == "0.400"
        page.get_by_role("button", name="back to 0.500").click()
        assert figures(page)[0] == "0.500"


def test_the_threshold_is_dragged_by_finger(front: Front, browser: Browser, learning: Learning) -> None:
    context = browser.new_context(has_touch=True, viewport={"width": 390, "height": 844})
    context.set_default_timeout(60_000)
    page = context.new_page()
    page.goto(f"{front.url}/console/sign-in")
    page.get_by_label("Key").fill(front.key("read"))
    page.get_by_role("button", name="Sign in").click()
    page.wait_for_url("**/console")
    page.goto(f"{front.url}/console/learning")
    page.locator(".plot").scroll_into_view_if_needed()
    box = page.locator(".plot").bounding_box()
    assert box is not None
    touch = context.new_cdp_session(page)
    y = box["y"] + box["height"] / 2
    for kind, share in (("touchStart", 0.5), ("touchMove", 0.6), ("touchMove", 0.8), ("touchEnd", None)):
        touched = [] if share is None else [{"x": box["x"] + share * box["width"], "y": y}]
        touch.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": touched})
    wait_for("the threshold under the finger", lambda: abs(float(page.inner_text("#eta-value")) - 0.8) < 0.011)
    context.close()


def test_a_curve_grows_while_its_training_runs(front: Front, browser: Browser, learning: Learning) -> None:
    with visiting(browser, front.url) as visitor:
        visitor.sign_in(front.key("read"))
        page = visitor.go(f"/console/learning/trainings/{learning.running}")
        expect(page.locator("#curve")).to_contain_text("step 96 of 240", use_inner_text=True)
        before = page.locator("#curve polyline.series-0").first.get_attribute("points") or ""
        with front.office.engine.begin() as connection:
            add_losses(connection, learning.running, 97, 150, 240)
        page.get_by_text("step 150 of 240").wait_for(timeout=60_000)
        after = page.locator("#curve polyline.series-0").first.get_attribute("points") or ""
        assert (len(before.split()), len(after.split())) == (96, 150)
        with front.office.engine.begin() as connection:
            change = text("UPDATE jobs SET state = 'failed', finished_at = now() WHERE id = :id")
            connection.execute(change, {"id": learning.running})
        page.wait_for_selector("#curve:not([hx-get])", timeout=60_000)


def test_the_gate_and_the_examples_are_shown(front: Front, browser: Browser, learning: Learning) -> None:
    with visiting(browser, front.url) as visitor:
        visitor.sign_in(front.key("read"))
        page = visitor.go(f"/console/learning/versions/{ADAPTER}?role=reranker")
        expect(page.locator("main")).to_contain_text(
            "not better, with captions: 0.812 → 0.845 on 48 questions", use_inner_text=True
        )
        worse = page.get_by_role("row").filter(has_text="without captions")
        expect(worse).to_contain_text("-0.0491", use_inner_text=True)
        expect(worse).to_contain_text("worse", use_inner_text=True)
        gained = page.get_by_role("region", name="Examples gained")
        expect(gained.get_by_role("listitem")).to_have_count(6)
        expect(gained).to_contain_text("0.00 → 1.00", use_inner_text=True)
        gained.scroll_into_view_if_needed()
        picture = gained.locator("img").first
        picture.scroll_into_view_if_needed()
        picture.evaluate("image => image.decode()")
        assert picture.evaluate("image => image.naturalWidth") > 0
        lost = page.get_by_role("region", name="Examples lost")
        expect(lost.get_by_role("listitem")).to_have_count(2)
        expect(page.locator("main")).to_contain_text("Erased since: 1", use_inner_text=True)
        expect(page.get_by_role("button", name="Promote")).to_have_count(0)  # of who may only read


def test_a_version_is_promoted_and_rolled_back(front: Front, browser: Browser, learning: Learning) -> None:
    def champion() -> str:
        return next(view.version.name for view in front.client.models.list(Role.RERANKER) if view.state == "champion")

    with visiting(browser, front.url) as visitor:
        visitor.sign_in(front.key("admin"))
        page = visitor.go(f"/console/learning/versions/{ADAPTER}?role=reranker")
        asked: list[str] = []

        def agree(dialog: Dialog) -> None:
            asked.append(dialog.message)
            dialog.accept()

        page.on("dialog", agree)
        page.get_by_role("button", name="Promote").click()
        page.wait_for_url("**/console/learning")
        expect(page.locator("#messages")).to_contain_text("is the champion reranker", use_inner_text=True)
        assert champion() == ADAPTER
        threshold = page.get_by_role("region", name="Threshold")  # it has answered nothing yet: its fit is shown
        fit = "It was fitted on 61 correct and 402 wrong candidates: precision 87.1 %, recall 90.4 %."
        expect(threshold).to_contain_text(fit, use_inner_text=True)
        expect(threshold.locator("svg.chart polyline")).to_have_count(3)
        visitor.check_access()
        page.get_by_role("button", name="Roll back").click()
        page.wait_for_selector("#messages :text('again')")
        assert champion() == RERANKER
        assert asked == ["Its gate refused it. Make it the champion all the same?",
                         f"Make {RERANKER} the champion reranker again?"]  # fmt: skip
        expect(page.locator("main")).to_contain_text(f"rollback of {ADAPTER}", use_inner_text=True)
        page.get_by_role("region", name="Reranker").get_by_role("link", name=RERANKER).click()
        expect(page.get_by_role("heading", name=RERANKER)).to_be_visible()
        page.go_back()
        page.get_by_role("button", name="What would it learn from?").click()
        page.wait_for_selector("#train .notice")
        expect(page.locator("#train .notice")).to_contain_text("20 labelled questions", use_inner_text=True)


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_everybody_can_use_it(front: Front, browser: Browser, learning: Learning, theme: Theme) -> None:
    with visiting(browser, front.url, theme=theme) as visitor:
        visitor.sign_in(front.key("admin"))
        pages = {
            "learning": "/console/learning",
            "training": f"/console/learning/trainings/{learning.ended}",
            "version": f"/console/learning/versions/{ADAPTER}",
        }
        for name, path in pages.items():
            page = visitor.go(path)
            for width in (390, 1400):
                page.set_viewport_size({"width": width, "height": 900})
                visitor.check_fits()
            visitor.check_access(name, rules=COLOURS if theme == "dark" else ())
            if theme == "light" and name != "training":
                visitor.draw(name)


def test_it_can_be_read_without_scripts(front: Front, browser: Browser, desk: Desk, learning: Learning) -> None:
    with visiting(browser, front.url, scripts=False) as visitor:
        visitor.sign_in(front.key("read"))
        page = visitor.go(f"/console/learning?archive={desk.archive}")
        expect(page.locator("#eta-figures")).to_contain_text("74.1 %", use_inner_text=True)
        expect(page.locator("svg.chart polyline")).to_have_count(3)
        page = visitor.go(f"/console/learning/trainings/{learning.ended}")
        expect(page.locator("svg.chart polyline")).to_have_count(3)


def test_bound_callers_do_not_see_it(front: Front, browser: Browser, learning: Learning) -> None:
    with visiting(browser, front.url) as visitor:
        visitor.sign_in(front.key("review", ["postcards"]))
        expect(visitor.page.get_by_role("link", name="Learning")).to_have_count(0)
        visitor.expect_fault("403")
        page = visitor.go("/console/learning")
        expect(page.locator("main")).to_contain_text("concerns all archives", use_inner_text=True)


HOSTILE_ADAPTER = f"{HOSTILE_NAME}@77c1d2e1"


def test_hostile_texts_are_harmless(front: Front, browser: Browser) -> None:
    """The name of a version, what its gate said, what a person promoted it for, and what its training was called."""
    desk = make_desk(front.office.engine, front.office.objects, "hostile", cases=8, hostile=True)
    learned = make_learning(front.client, front.settings, desk, HOSTILE_ADAPTER, says=" ".join(HOSTILE))
    with front.office.engine.begin() as connection:
        told = {"job": learned.running, "text": HOSTILE[0] + "W" * 2_000}
        connection.execute(text("UPDATE jobs SET name = :text WHERE id = :job"), told)
        ended = "UPDATE trainings SET phase = 'ended', status = 'failed', reason = :text WHERE job_id = :job"
        connection.execute(text(ended), told)
    front.client.models.promote(HOSTILE_ADAPTER, Role.RERANKER, HOSTILE[8] + HOSTILE[6])
    pages = ("", "?archive=hostile", f"/trainings/{learned.ended}", f"/trainings/{learned.running}",
             f"/versions/{quote(HOSTILE_ADAPTER, safe='')}?role=reranker")  # fmt: skip
    with visiting(browser, front.url, width=390) as visitor, reading(front.url, front.key("admin")) as reader:
        visitor.page.on("dialog", lambda dialog: visitor.faults.append(f"dialog: {dialog.message}"))
        visitor.sign_in(front.key("admin"))
        for path in pages:
            page = visitor.go(f"/console/learning{path}")
            visitor.check_fits()
            assert page.evaluate("window.pwned === undefined && !document.querySelector('script:not([src])')")
            assert "\u202e" not in page.inner_text("main")
        expect(page.locator("main")).to_contain_text(HOSTILE[0], use_inner_text=True)
        page.set_viewport_size({"width": 1400, "height": 900})
        visitor.check_access("hostile texts")
        path = f"/console/learning/versions/{quote(HOSTILE_ADAPTER, safe='')}/promote"
        for form in ({"role": "reranker", "reason": "a\x00b"}, {"role": "\x00"}):
            answer = reader.post(path, form)
            assert answer.status_code == 400 and "\x00" not in answer.text
        answer = reader.post("/console/learning/train", {"role": "reranker", "archives": HOSTILE[0]})
        assert answer.status_code in (400, 404) and HOSTILE[0] not in answer.text
    front.client.models.rollback(Role.RERANKER)


def test_a_preset_and_the_length_of_a_training_are_chosen(front: Front, browser: Browser, learning: Learning) -> None:
    with visiting(browser, front.url) as visitor:
        visitor.sign_in(front.key("admin"))
        page = visitor.go("/console/learning")
        expect(page.get_by_label("Preset")).to_have_value("mini")
        page.get_by_label("Preset").select_option("internvl2-2b")
        page.get_by_label("Epochs").fill("2.5")
        page.get_by_label("Steps at most").fill("7")
        page.get_by_role("button", name="What would it learn from?").click()
        page.wait_for_selector("#train .notice")
        for label, kept in (("Preset", "internvl2-2b"), ("Epochs", "2.5"), ("Steps at most", "7")):
            expect(page.get_by_label(label)).to_have_value(kept)
        visitor.expect_fault("400")
        page.get_by_label("Epochs").evaluate("input => input.form.noValidate = true")
        page.get_by_label("Epochs").fill("-1")
        page.get_by_role("button", name="What would it learn from?").click()
        page.get_by_text("greater than 0").wait_for()
