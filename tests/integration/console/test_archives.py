"""Archives, pictures and questions in a browser, on a running system with a worker."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from PIL import Image

from ragllava.settings import Settings
from tests.conftest import own_settings
from tests.integration.conftest import Postcards
from tests.support.api_shop import Shop, open_shop
from tests.support.browser import COLOURS, Visitor, expect, visiting
from tests.support.large_archive import insert_pictures
from tests.support.postcard_gallery import CARDS, cards
from tests.support.waiting import wait_for
from tests.support.workshop import open_workshop

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page, Route

    from ragllava.models.bundle import ModelBundle

MANY = 5_000
HOSTILE = "<script>document.title = 'x'</script> \u202egnp.exe " + "long " * 380
THUMBNAIL = io.BytesIO()
Image.new("RGB", (16, 12), "teal").save(THUMBNAIL, "JPEG")


@pytest.fixture(scope="module")
def shop(services: Settings, template_database: str, models: ModelBundle, postcards: Postcards) -> Iterator[Shop]:
    """`postcards` has 20 of them, and `scans` rows of pictures without bytes."""
    with own_settings(services, template_database) as own:
        known = own.model_copy(update={"leave_one_out": False})
        with open_workshop(known, models) as workshop:
            workshop.ingest_files(cards(postcards, 0, CARDS), "postcards")
            with open_shop(workshop) as shop:
                insert_pictures(workshop.engine, "scans", MANY)
                yield shop


@contextmanager
def signed_in(browser: Browser, shop: Shop, role: str = "admin", **options: object) -> Iterator[Visitor]:
    with visiting(browser, shop.url, **options) as visitor:  # type: ignore[arg-type]
        visitor.sign_in(shop.key(role))
        yield visitor


def without_bytes(page: Page) -> None:
    """The pictures of `scans` have rows only: the browser is given the same small picture for each."""

    def fulfill(route: Route) -> None:
        route.fulfill(body=THUMBNAIL.getvalue(), content_type="image/jpeg")

    page.route("**/archives/scans/pictures/*/thumbnail", fulfill)


def is_at(page: Page, number: int) -> None:
    """The tile of this number has the focus, soon."""
    where = "document.activeElement.closest('li')?.ariaPosInSet"
    wait_for(f"picture {number}", lambda: page.evaluate(where) == str(number), 60)


@pytest.fixture(scope="module")
def asked(shop: Shop, postcards: Postcards) -> int:
    """The job of a question that is answered."""
    shop.client.questions.ask(postcards.archive.questions[0].text, "postcards", timeout_s=120)
    return max(job.job_id for job in shop.client.jobs.list(kind="answer", limit=50))


def test_all_pages_are_accessible_in_both_themes_and_fit_small_windows(
    shop: Shop, browser: Browser, asked: int
) -> None:
    with signed_in(browser, shop, width=390) as visitor:
        page = visitor.page
        without_bytes(page)
        for path in (
            "archives",
            "archives/postcards",
            "archives/postcards?q=lighthouse",
            "archives/postcards/pictures/1",
            "archives/postcards/pictures/1/remove",
            "archives/postcards/files",
            "archives/postcards/indexes",
            "archives/postcards/manage",
            f"ask/{asked}",
        ):
            page.emulate_media(color_scheme="light", reduced_motion="reduce")
            visitor.go(f"/console/{path}")
            page.wait_for_load_state("networkidle")
            visitor.check_fits()
            visitor.check_access(path)
            page.emulate_media(color_scheme="dark")
            visitor.check_access(f"{path}, dark", rules=COLOURS)


def test_a_folder_is_dropped_and_becomes_an_archive_that_is_renamed_and_removed(
    shop: Shop, browser: Browser, postcards: Postcards, tmp_path: Path
) -> None:
    folder = tmp_path / "holiday"
    (folder / "1968").mkdir(parents=True)
    for card in postcards.archive.postcards[:3]:
        (folder / "1968" / card.file_name).write_bytes((postcards.written.pictures / card.file_name).read_bytes())
    (folder / "broken.png").write_bytes(b"\x89PNG no picture")
    (folder / "empty.png").write_bytes(b"")
    first = postcards.archive.postcards[0].file_name
    (folder / "captions.csv").write_text(f"file,caption\n1968/{first},a caption from the folder\n")
    with signed_in(browser, shop) as visitor:
        without_bytes(visitor.page)
        page = visitor.go("/console/archives")
        page.get_by_label("Name").fill("holiday")
        page.get_by_role("button", name="Create").click()
        page.wait_for_url("**/archives/holiday/files")
        page.locator("#folder").set_input_files(folder)
        page.get_by_text("Everything is sent").wait_for()
        page.get_by_role("link", name="Look at the pictures").wait_for(timeout=60_000)
        shown = page.locator("#progress").inner_text()
        assert "All 4 files have an outcome: " in shown and "3 stored" in shown and "1 rejected" in shown
        assert "broken.png: it is not a picture" in shown
        expect(page.locator("#not-sent")).to_contain_text("empty.png: it is empty", use_inner_text=True)
        visitor.check_access("after an upload")
        page.get_by_role("link", name="Look at the pictures").click()
        expect(page.locator("#grid .tile")).to_have_count(3)
        page.get_by_text("a caption from the folder").click()
        page.wait_for_url("**/pictures/*")
        page.goto(f"{shop.url}/console/archives/holiday/manage")
        page.get_by_label("New name").fill("summer")
        page.get_by_role("button", name="Rename").click()
        page.wait_for_url("**/archives/summer")
        page.get_by_role("link", name="Manage").click()
        expect(page.locator(".facts")).to_contain_text("images", use_inner_text=True)
        page.get_by_label("Type summer to remove it").fill("other")
        page.get_by_role("button", name="Remove the archive").click()
        page.get_by_text("Nothing was removed").wait_for()
        page.get_by_label("Type summer to remove it").fill("summer")
        page.get_by_role("button", name="Remove the archive").click()
        page.wait_for_url("**/console/archives")
        page.get_by_text("is being removed").wait_for()


def test_files_are_dropped_with_the_mouse(shop: Shop, browser: Browser) -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (60, 40), "orchid").save(buffer, "PNG")
    shop.client.archives.create("dropped")
    with signed_in(browser, shop) as visitor:
        page = visitor.go("/console/archives/dropped/files")
        drop = """(zone, bytes) => {
            const transfer = new DataTransfer();
            transfer.items.add(new File([new Uint8Array(bytes)], "orchid.png", {type: "image/png"}));
            zone.dispatchEvent(new DragEvent("drop", {bubbles: true, cancelable: true, dataTransfer: transfer}));
        }"""
        page.locator("#upload").evaluate(drop, list(buffer.getvalue()))
        page.get_by_role("link", name="Look at the pictures").wait_for(timeout=60_000)
        assert page.locator("#sent progress").evaluate("(bar) => bar.value === bar.max")
    assert [image.source for image in shop.client.pictures.list("dropped")] == ["orchid.png"]


def test_a_caption_is_edited_and_a_second_tab_overwrites_nothing(shop: Shop, browser: Browser) -> None:
    where = "/console/archives/postcards/pictures/2"
    with signed_in(browser, shop) as visitor:
        page = visitor.go(where)
        second = visitor.context.new_page()
        second.goto(shop.url + where)
        page.get_by_role("textbox", name="Caption").fill(HOSTILE)
        page.get_by_role("button", name="Save the caption").click()
        page.get_by_text("The caption is changed.").wait_for()
        expect(page.get_by_role("textbox", name="Caption")).to_have_value(" ".join(HOSTILE.split()))
        assert page.title() != "x"
        visitor.check_access("a hostile caption")
        visitor.check_fits()
        visitor.expect_fault("409")
        second.get_by_role("textbox", name="Caption").fill("lost")
        second.get_by_role("button", name="Save the caption").click()
        second.get_by_text("was changed meanwhile").wait_for()
        page.goto(f"{shop.url}/console/archives/postcards")
        expect(page.locator("#grid script")).to_have_count(0)
        assert page.title() != "x"
        visitor.check_fits()
    assert shop.client.pictures.get("postcards", 2).caption == " ".join(HOSTILE.split())


def test_a_question_is_answered_with_its_evidence_and_marked(
    shop: Shop, browser: Browser, postcards: Postcards
) -> None:
    question = postcards.archive.questions[0]
    with signed_in(browser, shop) as visitor:
        page = visitor.go("/console/ask?archive=postcards")
        page.get_by_label("Question").fill(question.text)
        shop.hold_up()
        page.get_by_role("button", name="Ask", exact=True).click()
        page.get_by_text("Waiting for a worker").wait_for()
        shop.go_on()
        page.get_by_role("button", name="✓ Right").wait_for()
        row = next(shop.client.questions.results(int(page.url.rpartition("/")[2])))
        expect(page.locator("#answer .big")).to_have_text(
            row.answer or "No picture of postcards answers this.", use_inner_text=True
        )
        expect(page.locator("#answer .evidence-card")).to_have_count(len(row.evidence))
        page.get_by_text("with the right answer").click()
        page.get_by_label("Right answer").fill("a pyramid")
        page.get_by_role("button", name="✗ Wrong").click()
        page.get_by_text("The answer is marked as wrong.").wait_for()
        page.get_by_text("right answer: a pyramid").wait_for()


def test_a_question_is_asked_with_a_picture(shop: Shop, browser: Browser, postcards: Postcards) -> None:
    card = postcards.archive.postcards[6]
    with signed_in(browser, shop) as visitor:
        page = visitor.go("/console/ask?archive=postcards")
        page.get_by_label("Like this picture").set_input_files(postcards.written.pictures / card.file_name)
        page.get_by_role("button", name="Ask", exact=True).click()
        page.get_by_role("button", name="✓ Right").wait_for()
        asked = page.get_by_alt_text("the picture of the question")
        wait_for("the picture", lambda: asked.evaluate("(image) => image.naturalWidth") > 0, 60)
        expect(page.locator("#answer")).to_contain_text(card.file_name, use_inner_text=True)
        visitor.check_access("a question with a picture")
        visitor.expect_fault("400")
        page.get_by_label("Question").fill("")
        page.get_by_role("button", name="Ask", exact=True).click()
        page.get_by_text("a question has 1 to").wait_for()


def test_a_hostile_question_and_a_wrong_filter_are_harmless(shop: Shop, browser: Browser) -> None:
    with signed_in(browser, shop) as visitor:
        page = visitor.go("/console/ask?archive=postcards")
        page.get_by_label("Question").fill("<script>document.title='x'</script> \u202e who?")
        page.get_by_label("Only pictures where").fill('caption~"><script>1</script>')
        page.get_by_role("button", name="Ask", exact=True).click()
        page.get_by_role("button", name="✓ Right").wait_for()
        expect(page.locator("#answer")).to_contain_text("No picture of postcards answers this.", use_inner_text=True)
        expect(page.locator("main script")).to_have_count(0)
        assert page.title() != "x"
        expect(page.get_by_label("Only pictures where")).to_have_value(
            '{"caption": {"contains": "\\"><script>1</script>"}}'
        )
        visitor.expect_fault("400")
        page.get_by_label("Only pictures where").fill("planet=Mars")
        page.get_by_role("button", name="Ask", exact=True).click()
        page.get_by_text('has the metadata "planet"').wait_for()
        expect(page.get_by_label("Question")).to_have_value(re.compile(r"who\?"))
        sent = page.evaluate(
            """async () => {
                const form = new FormData(document.querySelector("form.ask"));
                form.set("question", "who\\u0000 is it?");
                form.set("where", "");
                return (await fetch("/console/ask", {method: "POST", body: form})).status;
            }"""
        )
        assert sent == 200


def test_the_grid_scrolls_over_all_pictures_and_keeps_few(shop: Shop, browser: Browser) -> None:
    with signed_in(browser, shop) as visitor:
        page = visitor.page
        without_bytes(page)
        visitor.go("/console/archives/scans")
        grid = page.locator("#grid[data-ready]")
        grid.wait_for()
        expect(page.locator("#count")).to_have_text(f"{MANY:,} pictures", use_inner_text=True)
        assert page.title() != "1"
        page.evaluate("scrollTo(0, document.body.scrollHeight)")
        page.get_by_text(f"scan-{MANY:06}.jpg").wait_for()
        assert grid.locator("li").count() < 150
        visitor.check_access("the end of the grid")
        page.evaluate("scrollTo(0, document.body.scrollHeight / 2)")
        wait_for("the middle", lambda: page.locator("#grid li:not(.waits)").count() > 20, 60)
        page.evaluate("scrollTo(0, 0)")
        page.locator('#grid li[aria-posinset="1"] a').focus()
        page.keyboard.press("ArrowRight")
        page.keyboard.press("ArrowDown")
        columns = page.evaluate("Number(document.activeElement.closest('li').ariaPosInSet) - 2")
        assert columns >= 4
        page.keyboard.press("End")
        is_at(page, MANY)
        page.keyboard.press("Home")
        is_at(page, 1)
        page.keyboard.press("ArrowRight")
        is_at(page, 2)
        page.route("**/archives/scans/pictures/*/content", lambda route: route.fulfill(body=THUMBNAIL.getvalue()))
        page.keyboard.press("Enter")
        page.wait_for_url("**/archives/scans/pictures/*")


def test_lists_are_filtered_and_ordered_on_the_server(shop: Shop, browser: Browser) -> None:
    with signed_in(browser, shop, "read") as visitor:
        page = visitor.page
        without_bytes(page)
        visitor.go("/console/archives/scans?where=year%3D1907&order=name")
        page.locator("#count").get_by_text(f"{MANY // 100} pictures").or_(
            page.get_by_text(f"{MANY // 100} pictures")
        ).wait_for()
        expect(page.locator("#grid")).to_contain_text("scan-000007.jpg", use_inner_text=True)
        visitor.go("/console/archives/postcards?q=lighthouse")
        expect(page.locator(".grid .tile").first).to_be_visible()
        expect(page.locator(".grid")).to_contain_text("by picture", use_inner_text=True)
        visitor.go("/console/archives/postcards?where=nonsense")
        page.get_by_role("alert").wait_for()
        visitor.expect_fault("403")
        visitor.go("/console/archives/postcards/manage")
        page.get_by_text("Not allowed").first.wait_for()


def test_everything_can_be_read_without_scripts(shop: Shop, browser: Browser, asked: int) -> None:
    with signed_in(browser, shop, scripts=False) as visitor:
        page = visitor.page
        without_bytes(page)
        visitor.go("/console/archives/scans")
        expect(page.locator("#grid .tile")).to_have_count(60)
        page.get_by_role("link", name="Next page").click()
        page.get_by_text("scan-000061.jpg").wait_for()
        visitor.go("/console/archives/postcards/pictures/3")
        page.get_by_role("link", name="Look for duplicates").click()
        page.get_by_role("heading", name="Duplicates of").wait_for()
        visitor.go(f"/console/ask/{asked}")
        expect(page.locator("#answer .big")).to_have_count(1)
        visitor.go("/console/archives/postcards/files")
        page.get_by_text("every picture is in the active index").wait_for()


def test_a_picture_is_removed_when_what_goes_with_it_was_listed(shop: Shop, browser: Browser) -> None:
    with signed_in(browser, shop) as visitor:
        page = visitor.go("/console/archives/postcards/pictures/4")
        page.get_by_role("link", name="Remove this picture…").click()
        expect(page.locator(".facts")).to_contain_text("vectors", use_inner_text=True)
        page.get_by_role("button", name="Remove the picture").click()
        page.get_by_text("is being removed").wait_for()
