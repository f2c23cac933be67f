"""Signing in, forms, headers, static files: what every page rests on."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.support.api_server import Front
from tests.support.browser import Theme, visiting

if TYPE_CHECKING:
    from playwright.sync_api import Browser


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_a_person_signs_in_with_a_key_and_out(front: Front, browser: Browser, theme: Theme) -> None:
    with visiting(browser, front.url, theme=theme) as visitor:
        visitor.check_fits()
        visitor.sign_in(front.key("admin"))
        visitor.check_access()
        visitor.page.get_by_role("button", name="Sign out").click()
        visitor.page.wait_for_url("**/console/sign-in")
        visitor.check_access()
        visitor.go("/console")
        assert "/console/sign-in" in visitor.page.url
