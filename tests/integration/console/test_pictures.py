"""The console beside a worker with the mini models: real answers with their pictures, and the pictures of the pages.

`RAGLLAVA_DRAW_CONSOLE=1 pytest tests/integration/console/test_pictures.py` writes those of docs/console.md.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from ragllava.client import ScheduleAction, ScheduleRequest
from tests.support.api_shop import Shop, open_shop
from tests.support.browser import visiting
from tests.support.workshop import Workshop

if TYPE_CHECKING:
    from playwright.sync_api import Browser


@pytest.fixture(scope="module")
def shop(whole_gallery: Workshop) -> Iterator[Shop]:
    with open_shop(whole_gallery) as shop:
        yield shop


def test_answers_are_shown_with_the_pictures_that_they_rest_on(
    shop: Shop, browser: Browser, ten_questions: list[str], tmp_path: Path
) -> None:
    job = shop.client.questions.submit(ten_questions, "postcards", name="Ten questions about postcards")
    shop.client.jobs.wait(job.job_id, timeout_s=120)
    schedules = shop.client.schedules
    schedules.add(ScheduleRequest(ScheduleAction.GAPS, "0 3 * * *", "postcards", name="nightly-gaps"))
    schedules.add(ScheduleRequest(ScheduleAction.GC, "30 4 * * 0", timezone="Europe/Berlin"))
    file = tmp_path / "questions.csv"
    rows = [f'q{number},"{question}"' for number, question in enumerate(ten_questions)]
    file.write_text("\n".join(["custom_id,question", *rows, "q3,What is this?", "q12,"]))
    with visiting(browser, shop.url, height=1000) as visitor:
        visitor.sign_in(shop.key())
        page = visitor.go("/console")
        visitor.draw("overview")
        visitor.go(f"/console/jobs/{job.job_id}")
        page.wait_for_load_state("networkidle")
        pictures = page.locator(".result .thumb")
        assert pictures.count() >= 8
        assert pictures.first.evaluate("picture => picture.naturalWidth") > 0
        visitor.draw("job")
        visitor.go("/console/jobs/new")
        page.get_by_label("Drop a file here").set_input_files(file)
        page.get_by_text("is taken by line").wait_for()
        visitor.draw("submit")
        visitor.go("/console/schedules")
        visitor.draw("schedules")
