"""The pages of jobs in Chromium: a person submits a file, watches, looks at the rows; hostile texts; large jobs."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

import pytest
from PIL import Image
from sqlalchemy import Connection, text

from ragllava.client import ScheduleAction, ScheduleRequest
from ragllava.stores.archives import archive, blobs
from ragllava.stores.archives.blobs import NewBlob
from ragllava.stores.archives.descriptions import NewImage
from ragllava.stores.database import in_transaction
from ragllava.stores.jobs import result_pages
from tests.support.api_server import Front
from tests.support.browser import COLOURS, Theme, expect, visiting
from tests.support.console_client import reading
from tests.support.hostile_texts import HOSTILE, HOSTILE_NAME
from tests.support.many_rows import unhurried
from tests.support.plans import watching_rows
from tests.support.waiting import wait_for

if TYPE_CHECKING:
    from playwright.sync_api import Browser

LARGE = 100_000
THEMES: tuple[Theme, ...] = ("light", "dark")


@pytest.fixture(autouse=True)
def answering(front: Front) -> Iterator[None]:
    yield
    front.office.go_on()


@pytest.fixture(scope="module")
def hostile_job(front: Front) -> int:
    """A job whose name, questions, answers, pictures and errors are hostile."""
    rows = [{"custom_id": f"<b>{number}", "question": hostile} for number, hostile in enumerate(HOSTILE)]
    job = front.client.questions.submit(rows, "stamps", name=HOSTILE_NAME).job_id
    front.client.jobs.wait(job, timeout_s=60)
    digests = [front.office.objects.put_content(_picture(number), "image/png") for number in range(len(HOSTILE))]
    in_transaction(front.office.engine, _make_hostile, job, digests)
    return job


def _picture(number: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (80, 60), (20 * number, 120, 120)).save(buffer, "PNG")
    return buffer.getvalue()


def _make_hostile(connection: Connection, job_id: int, digests: list[str]) -> None:
    """Give each answer a hostile text and a picture as evidence, whose name and caption are hostile."""
    archive_id = archive.get_archive(connection, "stamps").archive_id
    blobs.announce_blobs(connection, [NewBlob(digest, 1, "image/png") for digest in digests])
    for number, (hostile, digest) in enumerate(zip(HOSTILE, digests, strict=True)):
        image = NewImage(
            digest, f"{hostile[:200]}{number}", f"file:///{number}", hostile, 8, 8, "image/png", embedded={}
        )
        [stored] = archive.store_images(connection, archive_id, [image])
        values = {"job": job_id, "number": number, "image": stored.image_id, "text": hostile}
        connection.execute(
            text("UPDATE answers SET text = :text, note = :text WHERE job_id = :job AND question_no = :number"),
            {name: values[name] for name in ("job", "number", "text")},
        )
        connection.execute(
            text(
                "INSERT INTO candidates (job_id, question_no, run_no, image_id, retrieval_rank, retrieval_score,"
                " relevance, evidence_no) VALUES (:job, :number, 1, :image, 0, 0.5, 0.25, 0)"
            ),
            {name: values[name] for name in ("job", "number", "image")},
        )


def test_a_person_submits_a_file_and_watches_the_job(front: Front, browser: Browser, tmp_path: Path) -> None:
    file = tmp_path / "questions.csv"
    file.write_text("custom_id,question\na,What is this?\nb,\na,Twice?\nc,<script>window.pwned = 1</script>\n")
    with visiting(browser, front.url) as visitor:
        visitor.expect_fault("status of 400")
        visitor.sign_in(front.key("ask"))
        page = visitor.go("/console/jobs/new")
        page.get_by_label("Archive").select_option("stamps")
        page.get_by_label("Drop a file here").set_input_files(file)
        checked = page.get_by_role("region", name="what is in the file")
        checked.get_by_text("the question is empty").wait_for()
        expect(checked.get_by_text("is taken by line 2")).to_be_visible()
        expect(checked.get_by_text("<script>window.pwned = 1</script>")).to_be_visible()
        visitor.check_access()
        front.office.hold_up()
        with page.expect_navigation():
            page.get_by_role("button", name="Submit", exact=True).click()
        page.get_by_text("is not submitted, unless you leave them out").wait_for()
        page.locator("#checked > *").evaluate("(part) => { part.dataset.old = ''; }")
        page.get_by_label("Drop a file here").set_input_files(file)
        expect(page.locator("#checked [data-old]")).to_have_count(0)  # what comes moves the button
        page.get_by_label("leave out invalid lines").check()
        page.get_by_role("button", name="Submit", exact=True).click()
        page.wait_for_url(re.compile(r"/console/jobs/\d+$"))
        expect(page.get_by_role("status").get_by_text("has 4 questions")).to_be_visible()
        page.get_by_role("button", name="Pause").click()
        page.get_by_role("button", name="Resume").click()
        page.get_by_role("button", name="Pause").wait_for()
        visitor.check_access()
        front.office.go_on()
        page.locator("#job .chip.completed_with_errors").wait_for()  # without a reload
        page.reload()
        page.get_by_role("link", name="failed 2").click()
        expect(page.locator(".result")).to_have_count(2)
        with page.expect_download() as download:
            page.get_by_role("link", name="JSONL").click()
        lines = [json.loads(line) for line in Path(download.value.path()).read_text().splitlines()]
        assert [line["status"] for line in lines] == ["answered", "failed", "failed", "answered"]


def test_a_job_is_cancelled_only_after_a_question(front: Front, browser: Browser) -> None:
    front.office.hold_up()
    job = front.client.questions.submit(["What?"] * 3, "stamps").job_id
    with visiting(browser, front.url) as visitor:
        visitor.sign_in(front.key("ask"))
        page = visitor.go(f"/console/jobs/{job}")
        page.once("dialog", lambda dialog: dialog.dismiss())
        page.get_by_role("button", name="Cancel").click()
        assert not front.client.jobs.get(job).is_final
        page.once("dialog", lambda dialog: dialog.accept())
        page.get_by_role("button", name="Cancel").click()
        page.get_by_text("is cancelled").wait_for()
    wait_for("the end", lambda: front.client.jobs.get(job).is_final)


def test_what_is_pressed_stays_until_it_is_released(front: Front, browser: Browser) -> None:
    front.office.hold_up()
    job = front.client.questions.submit(["What?"] * 3, "stamps").job_id
    renew = """() => new Promise((done) => {
        document.addEventListener("htmx:afterRequest", done, {once: true});
        htmx.trigger("#job", "news");
    }).then(() => true)"""
    with visiting(browser, front.url) as visitor:
        visitor.sign_in(front.key("ask"))
        page = visitor.go(f"/console/jobs/{job}")
        box = page.get_by_role("button", name="Pause").bounding_box()
        assert box is not None
        page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
        page.mouse.down()
        assert page.evaluate(renew)
        page.mouse.up()
        page.get_by_role("button", name="Resume").focus()
        page.keyboard.down("Space")
        assert page.evaluate(renew)
        page.keyboard.up("Space")
        expect(page.get_by_role("button", name="Pause")).to_be_visible()


def test_a_part_is_renewed_after_a_press_whose_end_is_not_told(front: Front, browser: Browser) -> None:
    front.office.hold_up()
    job = front.client.questions.submit(["What?"] * 3, "stamps").job_id
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


def ended_job(front: Front, questions: int, *, cancelled: bool) -> int:
    """A job of stamps that was cancelled before anything was answered, or that has answered everything."""
    if cancelled:
        front.office.hold_up()
    job = front.client.questions.submit([f"What is {n}?" for n in range(questions)], "stamps").job_id
    if cancelled:
        front.client.jobs.cancel(job)
    wait_for("the end", lambda: front.client.jobs.get(job).is_final)
    return job


def test_retry_asks_the_cancelled_questions_again(front: Front, browser: Browser) -> None:
    job = ended_job(front, 3, cancelled=True)
    with visiting(browser, front.url) as visitor:
        visitor.sign_in(front.key("ask", ["stamps"]))
        page = visitor.go(f"/console/jobs/{job}")
        expect(page.locator("#job .chip.cancelled").first).to_be_visible()
        page.get_by_role("button", name="Retry").click()
        expect(page.get_by_text(f"3 inputs of job {job} are tried again.")).to_be_visible()
        expect(page.get_by_role("button", name="Pause")).to_be_visible()
        expect(page.get_by_role("button", name="Retry")).to_have_count(0)
        front.office.go_on()
        expect(page.locator("#job .chip.completed")).to_be_visible()  # without a reload
        expect(page.get_by_role("button", name="Retry")).to_have_count(0)
        page.reload()
        expect(page.locator(".result .answer")).to_have_text(["yes"] * 3)


def test_refresh_makes_a_job_that_asks_again(front: Front, browser: Browser) -> None:
    job = ended_job(front, 3, cancelled=False)
    front.office.hold_up()
    with visiting(browser, front.url) as visitor:
        visitor.sign_in(front.key("ask", ["stamps"]))
        page = visitor.go(f"/console/jobs/{job}")
        page.get_by_role("button", name="Refresh").click()
        expect(page.get_by_role("status")).to_contain_text(f"refreshes job {job}.")
        refreshing = int(page.url.rpartition("/")[2])
        assert refreshing != job
        visitor.go(f"/console/jobs/{job}").get_by_role("button", name="Refresh").click()  # a second time
        expect(page.get_by_role("status")).to_contain_text(f"Job {refreshing} refreshes job {job} already.")
        front.office.go_on()
        expect(page.locator("#job .chip.completed")).to_be_visible()
        page.reload()
        expect(page.locator(".result .answer")).to_have_text(["yes"] * 3)
        page.get_by_role("link", name=f"job {job}", exact=True).click()
        page.wait_for_url(f"**/console/jobs/{job}")


@pytest.mark.parametrize("button", ["Retry", "Refresh"])
def test_what_is_asked_again_counts_for_the_quota(front: Front, browser: Browser, button: str) -> None:
    job = ended_job(front, 3, cancelled=button == "Retry")
    before = front.client.jobs.get(job).state
    jobs = len(front.client.jobs.list(archive="stamps", limit=1_000))
    with visiting(browser, front.url) as visitor:
        visitor.expect_fault("status of 429")
        visitor.sign_in(front.key("ask", ["stamps"], questions_per_day=2))
        page = visitor.go(f"/console/jobs/{job}")
        page.get_by_role("button", name=button).click()
        expect(page.get_by_text("may ask 2 questions a day")).to_be_visible()
    assert front.client.jobs.get(job).state == before
    assert len(front.client.jobs.list(archive="stamps", limit=1_000)) == jobs


def test_a_filter_is_moved_by_keys_and_applied_by_its_button(front: Front, browser: Browser) -> None:
    with visiting(browser, front.url) as visitor:
        visitor.sign_in(front.key("read"))
        page = visitor.go("/console/jobs")
        loads: list[str] = []
        page.on("framenavigated", lambda frame: loads.append(frame.url))
        state = page.get_by_label("State")
        for _ in range(3):  # each press chooses another value, and the page stays (WCAG 3.2.2)
            state.press("ArrowDown")
        chosen = state.input_value()
        page.get_by_label("only open").press("Space")
        assert chosen and not loads
        page.get_by_role("button", name="Show").click()
        page.wait_for_url(f"**state={chosen}&open=true")
        assert len(loads) == 1


def test_the_pages_can_be_read_without_scripts(front: Front, browser: Browser, hostile_job: int) -> None:
    with visiting(browser, front.url, scripts=False) as visitor:
        visitor.sign_in(front.key("admin"))
        page = visitor.go("/console/jobs")
        page.get_by_label("Archive").select_option("stamps")
        page.get_by_role("button", name="Show").click()
        page.wait_for_url("**archive=stamps**")
        page.get_by_role("link", name=str(hostile_job), exact=True).click()
        expect(page.locator(".result")).to_have_count(len(HOSTILE))
        page.get_by_role("link", name="low relevance").click()
        page.wait_for_url("**show=low**")
        expect(page.locator(".result")).to_have_count(len(HOSTILE))
        page.get_by_role("button", name="dark").click()
        page.locator('html[data-theme="dark"]').wait_for()


PATHS = ("", "/jobs", "/jobs/{job}", "/jobs/new", "/schedules", "/schedules/nightly", "/maintenance", "/keys", "/audit")


@pytest.fixture(scope="module")
def hostile_key(front: Front, hostile_job: int) -> str:
    """An administrator's, when schedules, keys and the audit have hostile texts as well."""
    key = front.key("admin")
    front.client.schedules.add(ScheduleRequest(ScheduleAction.GAPS, "0 3 * * *", "stamps", name="nightly"))
    front.client.schedules.run("nightly")
    with reading(front.url, key) as reader:
        reader.post("/console/schedules/" + quote(HOSTILE[1], safe="") + "/run")  # the audit shows it
        reader.post("/console/keys", {"name": HOSTILE_NAME})
    return key


@pytest.mark.parametrize(("theme", "width"), [("light", 390), ("dark", 2560)])
def test_hostile_texts_are_harmless(
    front: Front, browser: Browser, hostile_job: int, hostile_key: str, theme: Theme, width: int
) -> None:
    with visiting(browser, front.url, theme=theme, width=width) as visitor:
        visitor.page.on("dialog", lambda dialog: visitor.faults.append(f"dialog: {dialog.message}"))
        visitor.sign_in(hostile_key)
        for path in PATHS:
            page = visitor.go(f"/console{path.format(job=hostile_job)}")
            visitor.check_fits()
            assert page.evaluate("window.pwned === undefined && !document.querySelector('script:not([src])')")
        shown = visitor.go(f"/console/jobs/{hostile_job}").locator(".question").all_inner_texts()
        assert shown[0] == HOSTILE[0]
        assert not any("\u202e" in question for question in shown)


@pytest.mark.parametrize("theme", THEMES)
def test_axe_finds_nothing(front: Front, browser: Browser, hostile_job: int, hostile_key: str, theme: Theme) -> None:
    with visiting(browser, front.url, theme=theme) as visitor:
        rules = COLOURS if theme == "dark" else ()
        visitor.go("/console/sign-in")
        visitor.check_access(rules=rules)
        visitor.sign_in(hostile_key)
        for path in (*PATHS, "/help"):
            visitor.go(f"/console{path.format(job=hostile_job)}")
            visitor.check_access(rules=rules)


def test_answers_that_have_changed_since_another_job_are_shown(front: Front, browser: Browser) -> None:
    questions = [{"custom_id": f"since-{number}", "question": f"What is {number}?"} for number in range(6)]
    changed = [*questions[:5], {"custom_id": "since-5", "question": "Something else?"}]
    before, other, after = (
        front.client.questions.submit(rows, "stamps", name=name).job_id
        for rows, name in ((questions, "first ask"), (["What?"], None), (changed[::-1], "second ask"))
    )
    for job in (before, other, after):
        front.client.jobs.wait(job, timeout_s=60)
    with front.office.engine.begin() as connection:  # in the later job, in which they stand in another order
        connection.execute(
            text("UPDATE answers SET text = 'no' WHERE job_id = :job AND question_no IN (0, 3)"), {"job": after}
        )
    with visiting(browser, front.url) as visitor:
        visitor.sign_in(front.key("read", ["stamps"]))
        page = visitor.go(f"/console/jobs/{after}")
        choice = page.get_by_label("answered otherwise in")
        assert choice.locator("option").all_inner_texts() == [f"job {before} · first ask"]
        page.get_by_role("button", name="Changed since").click()
        page.wait_for_url(f"**against={before}**")
        row = page.locator(".result")  # the first row is another question under the same custom_id
        expect(row).to_have_count(1)
        expect(row).to_contain_text("since-2", use_inner_text=True)
        expect(row).to_contain_text(f"before, in job {before}: yes", use_inner_text=True)
        expect(row.locator(".answer")).to_have_text("no", use_inner_text=True)
        visitor.check_access()
        visitor.expect_fault("400")
        foreign = front.client.questions.submit(["What?"], "coins").job_id
        for wrong in (after, foreign, 10**9):
            assert "is no other answer job" in visitor.go(
                f"/console/jobs/{after}?show=changed&against={wrong}"
            ).inner_text("main")


@pytest.mark.parametrize("name", ["<img src=x onerror=alert(1)>.csv", "../../etc/passwd.csv", "a\x00b.csv", "W" * 300])
def test_a_file_with_a_hostile_name_is_checked_or_refused(front: Front, name: str) -> None:
    with reading(front.url, front.key("ask")) as reader:
        files = {"file": (name, b"question\nWhat?\n")}
        answer = reader.post("/console/jobs/new/check", {"archive": "stamps"}, files=files)
        assert answer.status_code in (200, 400)
        assert "<img src=x" not in answer.text and "\x00" not in answer.text


def test_a_nul_in_a_form_is_refused_in_a_sentence(front: Front) -> None:
    with reading(front.url, front.key("admin")) as reader:
        for path, form in (("/console/keys", {"name": "a\x00b"}), ("/console/schedules/x", {"cron": "\x00"})):
            answer = reader.post(path, form)
            assert (answer.status_code, "NUL" in answer.text) == (400, True)


@pytest.fixture(scope="module")
def large_job(front: Front) -> int:
    """A job of 100,000 answered questions, of which the first ones rest on pictures, and the last ones failed or had no
    evidence. The statistics of the database know nothing of it."""
    job = front.client.questions.submit(["What?"], "coins", name="large").job_id
    front.client.jobs.wait(job, timeout_s=60)
    with unhurried(front.office.engine) as connection:
        values = {"job": job, "total": LARGE}
        for statement in _LARGE.split(";\n"):
            connection.execute(text(statement), {k: v for k, v in values.items() if f":{k}" in statement})
    return job


_LARGE = """
    INSERT INTO questions (job_id, question_no, place, line, custom_id, text)
        SELECT :job, n, n, n + 1, 'q' || n, 'How many windows has house ' || n || '?'
        FROM generate_series(1, :total - 1) n;
    INSERT INTO answers (job_id, question_no, run_no, status, text, error_code, error)
        SELECT :job, n, 1,
               CASE WHEN n > :total - 10 THEN 'failed' WHEN n > :total - 20 THEN 'no_evidence' ELSE 'answered' END,
               CASE WHEN n <= :total - 20 THEN 'yes' END,
               CASE WHEN n > :total - 10 THEN 'unreadable' END, CASE WHEN n > :total - 10 THEN 'it broke' END
        FROM generate_series(1, :total - 1) n;
    INSERT INTO blobs (sha256, state, size_bytes, media_type)
        SELECT 'coin-' || n, 'live', 1, 'image/png' FROM generate_series(1, 5000) n;
    INSERT INTO images (archive_id, sha256, source, uri, width, height, media_type)
        SELECT archives.id, 'coin-' || n, n || '.png', 'file:///' || n, 1, 1, 'image/png'
        FROM generate_series(1, 5000) n, archives WHERE archives.name = 'coins';
    INSERT INTO candidates (job_id, question_no, run_no, image_id, retrieval_rank, retrieval_score, relevance,
                            evidence_no)
        SELECT :job, row_number() OVER (ORDER BY id), 1, id, 0, 0.5, 0.9, 0 FROM images WHERE sha256 LIKE 'coin-%';
    UPDATE jobs SET total = :total, state = 'completed_with_errors',
        counts = jsonb_build_object('answered', :total - 20, 'no_evidence', 10, 'failed', 10) WHERE id = :job
"""


@pytest.mark.parametrize(
    ("query", "most"),
    [
        ("", 3_000),
        ("?after=90000", 3_000),
        ("?show=failed&code=unreadable", 3_000),
        ("?show=no_evidence", 12_000),
        ("?show=low", 32_000),
    ],
)
def test_a_page_of_a_large_job_visits_few_of_its_rows(
    front: Front, large_job: int, query: str, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A filter without an index reads 10,000 answers at a time until its time is over, here at once."""
    monkeypatch.setattr(result_pages, "_SEARCHING_S", 0.0)
    with reading(front.url, front.key("read")) as reader, watching_rows(but=front.office.engine) as visited:
        assert reader.get(f"/console/jobs/{large_job}{query}").status_code == 200
    rows = sum(each.rows for each in visited)
    print(f"{query or 'all'}: {rows:,} rows visited by {len(visited)} statements")
    assert any("FROM answers" in each.statement for each in visited)
    assert rows <= most, max(visited, key=lambda each: each.rows)


def test_rare_rows_at_the_end_of_a_large_job_are_reached(front: Front, large_job: int) -> None:
    with reading(front.url, front.key("read")) as reader:
        path, pages = f"/console/jobs/{large_job}?show=failed", 0
        while "it broke" not in (shown := reader.get(path).text):
            assert "Look further" in shown
            path = shown.rsplit('rel="next" href="', 1)[1].split('"')[0].replace("&amp;", "&").split("#")[0]
            pages += 1
            assert pages < 30


def test_a_large_job_needs_no_more_memory_than_a_small_one(front: Front, browser: Browser, large_job: int) -> None:
    with visiting(browser, front.url) as visitor:
        visitor.expect_fault("404")  # the pictures have no bytes
        visitor.sign_in(front.key("read"))
        page = visitor.go(f"/console/jobs/{large_job}")
        assert page.evaluate("document.querySelectorAll('*').length") < 3_000
        for _ in range(3):
            with page.expect_navigation():
                page.get_by_role("link", name="Next").click()
        assert page.evaluate("performance.memory.usedJSHeapSize") < 30 * 2**20
        expect(page.get_by_text("line 151 ")).to_be_visible()
