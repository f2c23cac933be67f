"""Pages that renew themselves by events: without polling, with events cut, after the sign-in, when the server stops."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import ExitStack
from typing import TYPE_CHECKING

import httpx
import pytest

from ragllava.api import app
from ragllava.api.app import POOL
from ragllava.api.following import Followers
from ragllava.client import Client
from tests.support.api_server import Front, serving
from tests.support.browser import expect, is_true_soon, visiting
from tests.support.console_client import reading
from tests.support.waiting import wait_for

if TYPE_CHECKING:
    from playwright.sync_api import APIResponse, Browser, Page, Route


@pytest.fixture(autouse=True)
def answering(front: Front) -> Iterator[None]:
    yield
    front.office.go_on()


def held_up_job(front: Front) -> int:
    front.office.hold_up()
    return front.client.questions.submit(["What?"] * 2, "stamps", name="watched").job_id


def fulfill_without_polling(route: Route, answer: APIResponse) -> None:
    """The answer as it came, except that it polls once an hour."""
    route.fulfill(response=answer, body=re.sub(r"every \d+s", "every 3600s", answer.text()))


def without_polling(page: Page) -> None:
    """The page and its parts come as they are, but that they poll once an hour."""

    def rewrite(route: Route) -> None:
        fulfill_without_polling(route, route.fetch())

    page.route(re.compile(r"/console(/jobs|/overview/state)?(/\d+|/list)?(/state)?(\?.*)?$"), rewrite)


NOTE_EVENTS = """
    window.told = [];
    window.EventSource = class extends EventSource {
        constructor(address) {
            super(address);
            for (const kind of ["progress", "end"]) this.addEventListener(kind, () => window.told.push(kind));
        }
    };
"""


@pytest.mark.parametrize(
    ("path", "before", "after"),
    [
        ("/console/jobs/{job}", "#job .chip.running", "#job .chip.completed"),
        (
            "/console/jobs?archive=stamps",
            "#jobs tr:has(#to-job-{job}) .running",
            "#jobs tr:has(#to-job-{job}) .completed",
        ),
        ("/console", "#to-job-{job}", "#state:not(:has(#to-job-{job}))"),
    ],
)
def test_a_page_follows_its_jobs_by_events_alone(
    front: Front, browser: Browser, path: str, before: str, after: str
) -> None:
    job = held_up_job(front)
    with visiting(browser, front.url) as visitor:
        visitor.sign_in(front.key("admin"))
        without_polling(visitor.page)
        page = visitor.go(path.format(job=job))
        page.locator(before.format(job=job)).wait_for()
        front.office.go_on()
        page.locator(after.format(job=job)).wait_for(state="attached")


def test_news_that_comes_while_a_part_is_fetched_is_shown(front: Front, browser: Browser) -> None:
    job = held_up_job(front)
    fetched: list[tuple[Route, APIResponse]] = []  # as it was before the end of the job, and on its way until after it
    with visiting(browser, front.url) as visitor:
        visitor.sign_in(front.key("read"))
        page = visitor.page
        without_polling(page)
        page.add_init_script(NOTE_EVENTS)
        page.route(re.compile(rf"/{job}/state$"), lambda route: fetched.append((route, route.fetch())), times=1)
        visitor.go(f"/console/jobs/{job}")
        wait_for("the part to be fetched", lambda: is_true_soon(page, lambda: bool(fetched)))
        front.office.go_on()
        wait_for("the end of the events", lambda: page.evaluate("window.told.includes('end')"))
        expect(page.locator("#job .chip.running")).to_be_visible()
        fulfill_without_polling(*fetched[0])
        expect(page.locator("#job .chip.completed")).to_be_visible()


def test_what_a_person_has_done_in_a_part_stays_when_it_is_renewed(front: Front, browser: Browser) -> None:
    """Whoever works by keyboard would begin at the top of the page again, every two seconds."""
    job = held_up_job(front)
    with visiting(browser, front.url) as visitor:
        visitor.sign_in(front.key("ask"))
        page = visitor.page

        def with_details(route: Route) -> None:  # as jobs of other kinds have
            answer = route.fetch()
            details = "<details><summary>Details</summary><p>of the job</p></details></section>"
            route.fulfill(response=answer, body=answer.text().replace("</section>", details, 1))

        page.route(re.compile(rf"/{job}/state$"), with_details)
        visitor.go(f"/console/jobs/{job}")
        page.locator("#job summary").click()
        for kept in (page.get_by_role("button", name="Cancel"), page.locator("#job summary")):
            kept.focus()
            page.evaluate("document.getElementById('job').dataset.old = 'yes'")
            page.evaluate("htmx.trigger('#job', 'news')")
            expect(page.locator("#job[data-old]")).to_have_count(0)
            expect(kept).to_be_focused()
            expect(page.locator("#job details")).to_have_attribute("open", "")


def test_what_is_pressed_stays_until_it_is_released(front: Front, browser: Browser) -> None:
    job = held_up_job(front)
    renew = """() => new Promise((done) => {
        document.addEventListener("htmx:afterRequest", done, {once: true});
        htmx.trigger("#job", "news");
    }).then(() => true)"""
    with visiting(browser, front.url) as visitor:
        visitor.sign_in(front.key("ask"))
        page = visitor.go(f"/console/jobs/{job}")
        page.get_by_role("button", name="Pause").hover()
        page.mouse.down()
        assert page.evaluate(renew)
        with page.expect_navigation():  # the page before may show Resume as well
            page.mouse.up()
        page.get_by_role("button", name="Resume").focus()
        page.keyboard.down("Space")
        assert page.evaluate(renew)
        page.keyboard.up("Space")
        expect(page.get_by_role("button", name="Pause")).to_be_visible()


def test_a_part_is_renewed_after_a_press_whose_end_is_not_told(front: Front, browser: Browser) -> None:
    job = held_up_job(front)
    with visiting(browser, front.url) as visitor:
        visitor.sign_in(front.key("read"))
        page = visitor.go(f"/console/jobs/{job}")
        page.locator("#job h1").hover()
        page.mouse.down()
        page.evaluate("""() => {
            document.getElementById("job").dataset.old = "";
            window.addEventListener("pointerup", (event) => event.stopImmediatePropagation(), {capture: true});
        }""")
        page.mouse.up()
        page.locator("header").first.hover()
        page.evaluate("htmx.trigger('#job', 'news')")
        expect(page.locator("#job[data-old]")).to_have_count(0)


def test_a_page_polls_where_events_are_cut_and_can_be_read_without_scripts(front: Front, browser: Browser) -> None:
    job = held_up_job(front)
    with visiting(browser, front.url) as visitor, visiting(browser, front.url, scripts=False) as plain:
        visitor.expect_fault("ERR_CONNECTION_RESET")
        visitor.page.route("**/events*", lambda route: route.abort("connectionreset"))
        for each in (visitor, plain):
            each.sign_in(front.key("ask"))
            each.go(f"/console/jobs/{job}").locator("#job .chip.running").wait_for()
        front.office.go_on()
        visitor.page.locator("#job .chip.completed").wait_for()
        plain.page.reload()
        plain.page.locator("#job .chip.completed").wait_for()


def test_events_end_with_the_sign_in(front: Front) -> None:
    key = front.key("read")
    with (
        reading(front.url, key) as reader,
        reader.http.stream("GET", "/console/overview/events", headers={"accept": "text/event-stream"}) as events,
    ):
        lines = events.iter_lines()
        assert next(lines).startswith("id: ")
        front.client.access.revoke_key("_".join(key.split("_")[:2]))
        assert not [line for line in lines if line.startswith("id: ")]
        assert reader.get("/console/overview/events", accept="text/event-stream").status_code == 401


def test_events_of_the_api_end_with_the_key(front: Front) -> None:
    job, key = held_up_job(front), front.key("read")
    address, headers = f"{front.url}/v1/jobs/{job}/events", {"authorization": f"Bearer {key}"}
    with httpx.stream("GET", address, headers=headers, timeout=60) as events:
        lines = events.iter_lines()
        assert next(lines).startswith("id: ")
        front.client.access.revoke_key("_".join(key.split("_")[:2]))
        assert "event: end" not in list(lines)
    assert httpx.get(address, headers=headers, timeout=60).status_code == 401


def test_followers_leave_room_for_others(front: Front, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(app, "Followers", lambda: Followers(of_caller=2, of_all=3))
    job, (keen, calm) = held_up_job(front), (front.key("read"), front.key("read"))
    with (
        Client(front.settings, name="second", pool_size=POOL, for_tenants=True) as client,
        serving(client) as url,
        httpx.Client(timeout=60) as http,
        ExitStack() as streams,
    ):

        def follow(key: str) -> httpx.Response:
            stream = http.stream("GET", f"{url}/v1/jobs/{job}/events", headers={"authorization": f"Bearer {key}"})
            return streams.enter_context(stream)

        first = follow(keen)
        assert [first.status_code, follow(keen).status_code] == [200, 200]
        refused = follow(keen)
        assert refused.status_code == 429 and int(refused.headers["retry-after"]) > 0, "too many of a caller"
        assert [follow(calm).status_code, follow(calm).status_code] == [200, 429], "too many of all"
        with reading(url, calm) as reader:
            assert reader.get("/console/overview/events", accept="text/event-stream").status_code == 429
        first.close()

        def has_room() -> bool:
            answer = follow(calm)
            if answer.status_code != 200:
                answer.close()  # the client has 100 connections
            return answer.status_code == 200

        wait_for("the follower to have left", has_room, 60)


def test_a_server_that_stops_lets_followers_go(front: Front) -> None:
    job = held_up_job(front)
    key = front.key("read")
    with (
        Client(front.settings, name="second", pool_size=POOL, for_tenants=True) as client,
        httpx.Client(timeout=60) as http,
    ):
        with serving(client) as url:
            following = http.stream("GET", f"{url}/v1/jobs/{job}/events", headers={"authorization": f"Bearer {key}"})
            events = following.__enter__()
            lines = events.iter_lines()
            assert next(lines).startswith("id: ")
        assert "event: end" not in list(lines)
        following.__exit__(None, None, None)
