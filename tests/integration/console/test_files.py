"""The page of an archive's files in Chromium, when all of its lists have rows."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import Connection

from ragllava.errors import Rejection, RejectionClass
from ragllava.jobs import control
from ragllava.jobs.control import NewJob
from ragllava.records import JobKind
from ragllava.source_files import FileOutcome, FileStatus, SourceFile
from ragllava.stores.archives import archive, ingest_files
from ragllava.stores.buckets import bindings, bound_objects
from ragllava.stores.buckets.bindings import BindingRole
from ragllava.stores.buckets.bound_objects import ObjectKind, ObjectState
from ragllava.stores.database import in_transaction
from tests.support.api_server import Front
from tests.support.browser import Theme, Visitor, expect, visiting
from tests.support.hostile_texts import HOSTILE
from tests.support.large_archive import insert_pictures

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Dialog

SHOWN = 200  # rows of a list
PICTURES = 250  # none is in an index
LONG = "a-scanned-box-of-letters-and-photographs" * 4
HOSTILE_PREFIX = "\u202e<img src=x onerror=window.pwned=1>'\"/"
INBOX = f"s3://letters-of-the-museum/{LONG}/"


@pytest.fixture(scope="module")
def scans(front: Front) -> str:
    """An archive with pictures that no question finds, rejected and noted files, and three bindings."""
    insert_pictures(front.office.engine, "scans", PICTURES)
    in_transaction(front.office.engine, _fill)
    return "scans"


def _damaged(reason: str) -> Rejection:
    return Rejection(RejectionClass.DAMAGED, reason)


def _fill(connection: Connection) -> None:
    archive_id = archive.get_archive(connection, "scans").archive_id
    broken = [
        SourceFile(f"{number}/{text}", f"file:///{number}", rejected=_damaged(text))
        for number, text in enumerate(HOSTILE)
    ]
    broken += [
        SourceFile(f"{LONG}/{n:03}.png", f"file:///empty/{n}", rejected=_damaged("the file is empty"))
        for n in range(200)
    ]
    cut = SourceFile("cut.png", "file:///cut")
    job_id, _ = control.create(
        connection, NewJob(JobKind.INGEST, archive_id, {}, total=len(broken) + 1, per_shard=1_000)
    )
    ingest_files.insert_files(connection, job_id, [*broken, cut])
    note = FileOutcome(len(broken), FileStatus.STORED, reason="the end of the file is missing")
    ingest_files.finish_files(connection, job_id, [note])
    control.pause(connection, job_id)
    for prefix, role, options in (
        ("photos/", BindingRole.PICTURES, {}),
        (HOSTILE_PREFIX, BindingRole.PICTURES, {}),
        (f"{LONG}/", BindingRole.INBOX, {"outbox": f"s3://answers/{LONG}/"}),
    ):
        bound = bindings.bind(connection, archive_id, role, "letters-of-the-museum", prefix, options)
        states = [
            ObjectState(f"{prefix}{number}.png", ObjectKind.PICTURE, "etag", 1, reason="damaged" if number else None)
            for number in range(3)
        ]
        bound_objects.save_objects(connection, bound, states)
        bindings.record_scan(connection, bound.binding_id)


@pytest.mark.parametrize(("width", "theme"), [(390, "light"), (1440, "dark")])
def test_the_files_of_an_archive_are_listed_accessibly(
    front: Front, browser: Browser, scans: str, width: int, theme: Theme
) -> None:
    with visiting(browser, front.url, width=width, theme=theme) as visitor:
        visitor.sign_in(front.key("admin"))
        page = visitor.go(f"/console/archives/{scans}/files")
        for title, count in (("Rejected files", SHOWN + len(HOSTILE)), ("Pictures that no question finds", PICTURES)):
            part = page.locator("section", has=page.get_by_role("heading", name=title))
            expect(part.locator("tbody tr")).to_have_count(SHOWN)
            expect(part.get_by_text(f"The first {SHOWN} of {count}")).to_be_visible()
        gap = page.get_by_role("link", name="scan-000002.jpg").locator("xpath=ancestor::tr")
        expect(gap).to_contain_text("the archive has no index yet")
        expect(page.get_by_text("the end of the file is missing")).to_be_visible()
        inbox = page.locator("tr", has_text="inbox")
        expect(inbox).to_contain_text(f"results go to s3://answers/{LONG}/")
        expect(inbox.locator('[data-label="refused"]')).to_have_text("2")
        page.get_by_text("Bind a part of a bucket").click()
        expect(page.get_by_label("Address")).to_be_visible()
        visitor.check_fits()
        visitor.check_access()
        check_nothing_is_cut(visitor)
        assert page.evaluate("window.pwned") is None


def check_nothing_is_cut(visitor: Visitor) -> None:
    """Every text and button of the page is within the window, also what a part of the page would hide."""
    cut = visitor.page.evaluate(
        """() => [...document.querySelectorAll("main td, main th, main button, main input, main h2, main p")]
            .filter((part) => part.checkVisibility() && !part.closest(".unseen, thead"))
            .filter((part) => {
                const box = part.getBoundingClientRect();
                return box.width && (box.right > innerWidth || box.left < 0);
            })
            .map((part) => part.outerHTML.slice(0, 200))"""
    )
    assert not cut, cut[:5]


def test_a_bucket_is_unbound_only_after_a_question_that_shows_its_address(
    front: Front, browser: Browser, scans: str
) -> None:
    asked: list[str] = []

    def refuse(dialog: Dialog) -> None:
        asked.append(dialog.message)
        dialog.dismiss()

    with visiting(browser, front.url, width=390) as visitor:
        visitor.sign_in(front.key("admin"))
        page = visitor.go(f"/console/archives/{scans}/files")
        bound = page.get_by_role("button", name=re.compile("^Unbind s3:"))
        expect(bound).to_have_count(3)
        hostile = page.get_by_role("button", name=re.compile("onerror"))
        page.once("dialog", refuse)
        hostile.click()
        assert "onerror" in asked[0] and "\u202e" not in asked[0]
        expect(bound).to_have_count(3)
        page.once("dialog", lambda dialog: dialog.accept())
        hostile.click()
        expect(page.get_by_role("status")).to_contain_text("does not feed scans any more")
        expect(bound).to_have_count(2)
    assert INBOX in {view.binding.address for view in front.client.archives.bindings("scans")}


def test_a_reader_sees_the_files_and_can_change_none(front: Front, browser: Browser, scans: str) -> None:
    with visiting(browser, front.url) as visitor:
        visitor.sign_in(front.key("read", [scans]))
        page = visitor.go(f"/console/archives/{scans}/files")
        expect(page.locator("tr", has_text="inbox")).to_be_visible()
        for name in (re.compile("^Unbind"), "Scan now", "Upload", "Bind"):
            expect(page.get_by_role("button", name=name)).to_have_count(0)
        visitor.check_access()
