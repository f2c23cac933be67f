"""What every page rests on, in Chromium: signing in and out, the theme, the keyboard, what a refused change shows."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.support.api_server import Front
from tests.support.browser import Theme, expect, visiting

if TYPE_CHECKING:
    from playwright.sync_api import Browser

PAGE_COLOUR = {"light": "rgb(246, 245, 241)", "dark": "rgb(17, 22, 26)"}


def test_a_person_signs_in_with_a_key_and_out(front: Front, browser: Browser) -> None:
    with visiting(browser, front.url) as visitor:
        visitor.expect_fault("status of 401")
        page = visitor.go("/console/jobs?open=true")
        page.get_by_label("Key").fill("rgl_00000000_wrong")
        page.keyboard.press("Enter")
        page.get_by_text("is unknown, expired or revoked").wait_for()
        page.get_by_label("Key").fill(front.key("read"))
        page.keyboard.press("Enter")
        page.wait_for_url("**/console/jobs?open=true")
        page.get_by_role("button", name="Sign out").click()
        page.wait_for_url("**/console/sign-in")
        visitor.go("/console")
        assert "/console/sign-in" in page.url


@pytest.mark.parametrize(("system", "other"), [("light", "dark"), ("dark", "light")])
def test_the_theme_is_that_of_the_system_unless_another_is_chosen(
    front: Front, browser: Browser, system: Theme, other: Theme
) -> None:
    with visiting(browser, front.url, theme=system) as visitor:
        page = visitor.go("/console/sign-in")
        body = page.locator("body")
        expect(body).to_have_css("background-color", PAGE_COLOUR[system])
        page.get_by_role("button", name=other).click()
        page.locator(f'html[data-theme="{other}"]').wait_for()
        expect(body).to_have_css("background-color", PAGE_COLOUR[other])
        visitor.sign_in(front.key("read"))
        expect(body).to_have_css("background-color", PAGE_COLOUR[other])
        page.get_by_role("button", name="system").click()
        page.locator("html:not([data-theme])").wait_for()
        expect(body).to_have_css("background-color", PAGE_COLOUR[system])


def test_the_content_and_the_pages_are_reached_by_keyboard(front: Front, browser: Browser) -> None:
    with visiting(browser, front.url) as visitor:
        visitor.sign_in(front.key("read"))
        page = visitor.go("/console")
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.textContent") == "Skip to the content"
        assert page.get_by_text("Skip to the content").bounding_box()["y"] >= 0  # type: ignore[index]
        page.keyboard.press("Enter")
        expect(page.locator("#main")).to_be_focused()
        visitor.go("/console")
        page.get_by_role("link", name="Jobs", exact=True).focus()
        outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
        page.keyboard.press("Enter")
        page.wait_for_url("**/console/jobs")
        assert outline == "solid"
        expect(page.get_by_role("link", name="Jobs", exact=True)).to_have_attribute("aria-current", "page")


def test_the_navigation_is_folded_on_a_phone(front: Front, browser: Browser) -> None:
    with visiting(browser, front.url, width=390, height=800) as visitor:
        visitor.sign_in(front.key("read"))
        page = visitor.page
        expect(page.get_by_role("link", name="Jobs", exact=True)).not_to_be_visible()
        page.get_by_text("Menu", exact=True).click()
        page.get_by_role("link", name="Jobs", exact=True).click()
        page.wait_for_url("**/console/jobs")
        visitor.check_fits()


def test_a_sign_in_that_has_ended_leads_to_the_form_also_from_a_part(front: Front, browser: Browser) -> None:
    key = front.key("read")
    with visiting(browser, front.url) as visitor:
        visitor.expect_fault("status of 401|Response Status Error Code 401")
        visitor.sign_in(key)
        front.client.access.revoke_key("_".join(key.split("_")[:2]))
        visitor.page.wait_for_url("**/console/sign-in**")  # the overview renews itself
