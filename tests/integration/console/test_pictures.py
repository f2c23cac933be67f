"""The console beside a worker with the mini models: real answers with their pictures, and the pictures of the pages.

`DRAW_CONSOLE=1 pytest tests/integration/console/test_pictures.py` writes those of docs/console.md.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from ragllava.client import ScheduleAction, ScheduleRequest
from ragllava.stores.database import in_transaction
from ragllava.stores.maintenance import ticks
from tests.support.api_shop import Shop, open_shop
from tests.support.browser import DRAWING, expect, visiting
from tests.support.waiting import wait_for
from tests.support.workshop import Workshop

if TYPE_CHECKING:
    from playwright.sync_api import Browser


@pytest.fixture(scope="module")
def shop(whole_gallery: Workshop) -> Iterator[Shop]:
    with open_shop(whole_gallery) as shop:
        yield shop


def submit(shop: Shop, folder: Path, questions: list[str], name: str) -> int:
    """A job of somebody with a key."""
    file = folder / f"{len(questions)}-questions.csv"
    file.write_text("\n".join(["question", *(f'"{question}"' for question in questions)]))
    with shop.http("ask") as http, file.open("rb") as stream:
        data = {"archive": "postcards", "name": name}
        submitted = http.post("/v1/jobs/file", data=data, files={"file": (file.name, stream)}).raise_for_status()
    return int(submitted.json()["job"])


def test_answers_are_shown_with_the_pictures_that_they_rest_on(
    shop: Shop, browser: Browser, ten_questions: list[str], tmp_path: Path
) -> None:
    job = submit(shop, tmp_path, ten_questions, "Ten questions about postcards")
    shop.client.jobs.wait(job, timeout_s=120)
    in_transaction(shop.workshop.engine, ticks.note_tick)
    shop.workshop.live_worker("train@test", ("train",))
    schedules = shop.client.schedules
    schedules.add(ScheduleRequest(ScheduleAction.GAPS, "0 3 * * *", "postcards", name="nightly-gaps"))
    schedules.add(ScheduleRequest(ScheduleAction.GC, "30 4 * * 0", timezone="Europe/Berlin"))
    file = tmp_path / "questions.csv"
    rows = [f'q{number},"{question}"' for number, question in enumerate(ten_questions)]
    file.write_text("\n".join(["custom_id,question", *rows, "q3,What is this?", "q12,"]))
    with visiting(browser, shop.url, height=1000) as visitor:
        visitor.sign_in(shop.key())
        page = visitor.go("/console")
        page.get_by_text("Everything is well").wait_for()
        if DRAWING:
            running = submit(shop, tmp_path, ten_questions * 20, "Flags and windows")
            page.locator("#state td.progress rect").first.wait_for(state="attached", timeout=90_000)  # no reload
            visitor.draw("overview")
            shop.client.jobs.cancel(running)
        visitor.go(f"/console/jobs/{job}")
        page.wait_for_load_state("networkidle")
        pictures = page.locator(".result .thumb")
        expect(pictures.nth(7)).to_be_visible()
        wait_for("its bytes", lambda: pictures.first.evaluate("picture => picture.naturalWidth") > 0)
        visitor.draw("job")
        page.get_by_role("link", name="Report").click()
        page.get_by_role("heading", name=ten_questions[0]).wait_for()
        visitor.go("/console/jobs/new")
        page.get_by_label("Drop a file here").set_input_files(file)
        page.get_by_text("is taken by line").wait_for()
        visitor.draw("submit")
        visitor.go("/console/schedules")
        visitor.draw("schedules")
        visitor.go("/console/archives/postcards")
        page.wait_for_load_state("networkidle")
        visitor.draw("archive")
        visitor.go("/console/ask?archive=postcards")
        page.get_by_label("Question").fill(ten_questions[0])
        page.get_by_role("button", name="Ask", exact=True).click()
        page.get_by_role("button", name="✓ Right").wait_for(timeout=60_000)
        page.wait_for_load_state("networkidle")
        visitor.draw("ask")
