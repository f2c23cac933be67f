"""The whole way of a person in the console: from a folder of pictures to a promoted model, on a running system.

`ragllava serve` and all workers are processes of their own, the browser is Chromium. The pictures are sheets of two
colors in folders, a question may use those of its folder, and people say that the red sheet is the right one. A model
of a few thousand parameters learns that in 40 steps; the preset in the train worker is the only thing that is not as it
would be (tests/support/quick_training.py). All labels are given in the browser. Where the test by keyboard runs alone,
what the test by mouse does is done for it beforehand, without a browser.
"""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from ragllava.client import Client, NoisyView, Opinion, Verdict
from ragllava.records import Role, TrainingStatus
from ragllava.settings import Settings
from ragllava.training.request import TrainingRequest
from tests.acceptance.conftest import Cluster
from tests.conftest import environment_of, own_settings
from tests.support.api_server import make_key
from tests.support.browser import Visitor, expect, visiting
from tests.support.console_client import reading
from tests.support.processes import ROOT
from tests.support.prometheus_server import kept_port
from tests.support.toy_questions import COLORS, draw_sheet, tiny_profile
from tests.support.waiting import wait_for

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Locator, Page

pytestmark = [pytest.mark.acceptance, pytest.mark.timeout(600)]

FOLDERS = 32  # each with a sheet of each color
QUESTIONS = 64  # two about each folder
QUICK: dict[str, Any] = {
    "low_confidence": 1.0,  # every answer is to be reviewed
    "held_out_share": 0.5,  # 20 questions of 52 decide
    "calibration_share": 0.1,
    "torch_threads": 1,
    "tick_s": 0.5,
    "questions_per_shard": 26,
}


@dataclass(frozen=True)
class System:
    """A running system: its workers and the address of its site."""

    cluster: Cluster
    url: str

    def call(self, *words: str) -> str:
        """What `ragllava` prints on the machine of the system."""
        command = [sys.executable, "-m", "ragllava", *words]
        environment = os.environ | environment_of(self.cluster.settings)
        return subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, check=True).stdout

    def champion(self) -> str:
        """The reranker in use."""
        [name] = [
            view.version.name
            for view in self.cluster.client.models.list()
            if view.version.role is Role.RERANKER and view.state == "champion"
        ]
        return name


@pytest.fixture(scope="module")
def system(services: Settings, template_database: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    folder = tmp_path_factory.mktemp("system")
    with own_settings(services, template_database) as own:
        settings = own.model_copy(update={"home": folder / "home", "profile": tiny_profile(folder), **QUICK})
        with Client(settings) as client:
            cluster = Cluster(settings, folder, client)
            try:
                cluster.start("maint", "maint", ticks=True)
                cluster.start("work", "ingest,query")
                cluster.start("train", "train", "workers.tasks,tests.support.quick_training")
                with site(settings, folder) as url:
                    cluster.wait_ready("work", "train")
                    yield System(cluster, url)
            finally:
                cluster.stop()


@contextmanager
def site(settings: Settings, logs: Path) -> Iterator[str]:
    """`ragllava serve`; its address."""
    with kept_port() as port:
        command = [sys.executable, "-m", "ragllava", "serve", "--port", str(port)]
        with (logs / "serve.log").open("ab") as log:
            process = subprocess.Popen(
                command, env=os.environ | environment_of(settings), cwd=ROOT, stdout=log, stderr=log
            )

        def answers() -> bool:
            assert process.poll() is None, (logs / "serve.log").read_text()[-3000:]
            with socket.socket() as probe:
                return probe.connect_ex(("127.0.0.1", port)) == 0

        try:
            wait_for("the server", answers)
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()
            process.wait(60)


@dataclass(frozen=True)
class Belongings:
    """A folder of pictures of a person, named `sheets`, and a file of questions about them."""

    folder: Path
    questions: Path


def draw_sheets(home: Path, folders: int, questions: int) -> Belongings:
    """So many folders with a sheet of each color; a question may use those of one folder."""
    lines = ["file,caption"]
    for number in range(folders):
        within = home / "sheets" / f"{number:02}"
        within.mkdir(parents=True)
        for color in COLORS:
            draw_sheet(color, number).save(within / f"{color}.png")
            lines.append(f"{number:02}/{color}.png,A {color} sheet")
    (home / "sheets" / "captions.csv").write_text("\n".join(lines))
    asked = [f"q{n},Which sheet belongs to number {n}?,folder=sheets/{n % folders:02}" for n in range(questions)]
    (home / "questions.csv").write_text("\n".join(["custom_id,question,where", *asked]))
    return Belongings(home / "sheets", home / "questions.csv")


def test_by_mouse_from_a_folder_to_a_promoted_model(system: System, browser: Browser, tmp_path: Path) -> None:
    base = system.champion()
    own = draw_sheets(tmp_path, FOLDERS, QUESTIONS)
    with visiting(browser, system.url) as visitor:
        page = visitor.page
        page.goto(system.call("console", "--url", system.url).strip())
        page.get_by_role("button", name="Sign in").click()
        page.get_by_role("heading", name="Overview").wait_for()
        page.get_by_role("link", name="Archives").click()
        page.get_by_label("Name").fill("sheets")
        page.get_by_role("button", name="Create").click()
        add_pictures(visitor, own.folder)
        ask_questions(visitor, own.questions)
        page.get_by_role("link", name="Review").click()
        review_by_mouse(page, 3)
        review_by_keys(page, QUESTIONS - 3)
        page.get_by_role("link", name=re.compile("Train on 6. labels")).click()
        page.get_by_role("button", name="Start the training").click()
        watch_training(visitor)
        expect(page.locator(".chip", has_text="promoted")).to_be_visible()
        page.get_by_role("link", name="Learning").first.click()
        champion = page.locator(".panel.champion", has=page.get_by_role("heading", name="Reranker"))
        assert system.champion() != base
        expect(champion).to_contain_text(system.champion(), use_inner_text=True)


def add_pictures(visitor: Visitor, folder: Path) -> None:
    """Drop a folder with the mouse, and wait until its pictures can be seen."""
    page = visitor.page
    page.get_by_role("heading", name="Add pictures").wait_for()
    drop(visitor, page.locator("#upload"), folder)
    page.get_by_role("link", name="Look at the pictures").wait_for(timeout=180_000)
    expect(page.locator("#progress")).to_contain_text(
        f"All {2 * FOLDERS} files have an outcome: {2 * FOLDERS} stored", use_inner_text=True
    )
    expect(page.locator("#not-sent")).to_have_text("", use_inner_text=True)
    page.get_by_role("link", name="Look at the pictures").click()
    page.get_by_text(f"{2 * FOLDERS} pictures", exact=True).wait_for()
    expect(page.locator("#grid .tile", has_text="A red sheet").first).to_be_visible()


def ask_questions(visitor: Visitor, file: Path) -> None:
    """Drop a file of questions, look at it, submit it, and see its job end."""
    page = visitor.page
    page.get_by_role("link", name="Jobs").click()
    page.get_by_role("link", name="Submit questions").click()
    drop(visitor, page.locator("[data-drop]"), file)
    page.get_by_role("region", name="what is in the file").get_by_text("Which sheet belongs to number 0?").wait_for()
    page.get_by_role("button", name="Submit", exact=True).click()
    page.locator("#job .chip.completed").wait_for(timeout=180_000)


def drop(visitor: Visitor, zone: Locator, path: Path) -> None:
    """Drop a file or a folder of the disk on a part of the page, as a file manager does."""
    zone.scroll_into_view_if_needed()
    visitor.page.wait_for_load_state()  # a page that has just come does not listen yet, and may still move
    box = zone.bounding_box()
    assert box is not None
    where = {"x": box["x"] + box["width"] / 2, "y": box["y"] + 10}
    dragged = {"items": [], "files": [str(path)], "dragOperationsMask": 1}
    session = visitor.context.new_cdp_session(visitor.page)
    for kind in ("dragEnter", "dragOver", "drop"):
        session.send("Input.dispatchDragEvent", {"type": kind, **where, "data": dragged})
    session.detach()


def review_by_mouse(page: Page, cases: int) -> None:
    """Mark the pictures of so many cases and call their answers wrong."""
    page.wait_for_selector("#review[data-at]")
    for _ in range(cases):
        page.wait_for_selector("form.case")
        shown = page.locator(".candidate")
        for number in range(shown.count()):
            is_red = "red" in shown.nth(number).locator(".caption").inner_text()
            shown.nth(number).locator(".yes" if is_red else ".no").click()
        page.get_by_role("button", name="Wrong").click()


def review_by_keys(page: Page, cases: int) -> None:
    """The same with y, n and x."""
    page.wait_for_selector("#review[data-at]")
    for _ in range(cases):
        page.wait_for_selector("form.case")
        for caption in page.locator(".candidate .caption").all_inner_texts():
            page.keyboard.press("y" if "red" in caption else "n")
        page.keyboard.press("x")
    page.wait_for_selector("#review[data-unsent='0']")


def watch_training(visitor: Visitor) -> None:
    """See the training run, its curve appear, and in the end the gate's table, without a reload by hand."""
    page = visitor.page
    page.locator("#curve .chip.running").wait_for()
    page.locator("#curve .charts svg").first.wait_for(timeout=240_000)
    page.get_by_role("heading", name="Gate").wait_for(timeout=240_000)


@pytest.fixture
def schooled(system: System, tmp_path: Path) -> None:
    """The archive `sheets` with a label for each question, and a champion that has learned them."""
    client = system.cluster.client
    if client.models.labelled_archives(Role.RERANKER):
        return  # by mouse
    own = draw_sheets(tmp_path / "school", FOLDERS, QUESTIONS)
    client.archives.create("sheets")
    files = [(str(path.relative_to(own.folder.parent)), path.read_bytes()) for path in own.folder.rglob("*.*")]
    with reading(system.url, make_key(client, "admin")) as reader:
        where, as_json = "/console/archives/sheets/files", {"accept": "application/json"}
        sent = reader.post(where, files=[("file", file) for file in files], headers=as_json).json()
    client.jobs.wait(sent["job"], timeout_s=180)
    client.jobs.wait(client.questions.submit(own.questions, "sheets").job_id, timeout_s=180)
    while cases := client.reviewing.next("sheets", "school", limit=50):
        for case in cases:
            client.reviewing.save(as_reviewed(case), "school")
    request = TrainingRequest(Role.RERANKER, ("sheets",), client.models.default_preset())
    training = client.jobs.wait(client.models.train(request), timeout_s=240).training
    assert training is not None and training.status is TrainingStatus.PROMOTED, training


def as_reviewed(case: NoisyView) -> Opinion:
    """The red sheet is the right one, so that every answer is wrong."""
    job_id, number = case.question.key
    shown = [candidate.image for candidate in case.question.candidates]
    right = tuple(image.image_id for image in shown if "red" in (image.caption or ""))
    others = tuple(image.image_id for image in shown if image.image_id not in right)
    return Opinion(job_id, number, case.version, f"{job_id}-{number}", Verdict.WRONG, None, right, others)


@pytest.mark.usefixtures("schooled")
def test_by_keyboard_alone_a_refused_model_is_promoted_and_rolled_back(
    system: System, browser: Browser, tmp_path: Path
) -> None:
    own = draw_sheets(tmp_path, 2, 3)
    champion = system.champion()
    with visiting(browser, system.url) as visitor:
        page = visitor.go("/console/sign-in")
        keys = page.keyboard
        tab_to(page, page.get_by_label("Key"))
        keys.type(make_key(system.cluster.client, "admin"))
        keys.press("Enter")
        open_section(page, "Archives")
        tab_to(page, page.get_by_label("Name"))
        keys.type("tiles")
        keys.press("Enter")
        page.get_by_role("heading", name="Add pictures").wait_for()
        choose(page, page.locator("#folder"), own.folder)
        page.get_by_role("link", name="Look at the pictures").wait_for(timeout=180_000)
        expect(page.locator("#progress")).to_contain_text("4 stored", use_inner_text=True)
        open_section(page, "Jobs")
        enter(page, page.get_by_role("link", name="Submit questions"))
        tab_to(page, page.get_by_label("Archive"))
        keys.press("End")
        expect(page.get_by_label("Archive")).to_have_value("tiles")
        choose(page, page.locator("#file"), own.questions)
        page.get_by_role("region", name="what is in the file").wait_for()
        enter(page, page.get_by_role("button", name="Submit", exact=True))
        page.locator("#job .chip.completed").wait_for(timeout=180_000)
        open_section(page, "Review")
        review_by_keys(page, 3)
        train_by_keyboard(page)
        watch_training(visitor)
        expect(page.locator("#curve .chip", has_text="refused")).to_be_visible()
        version = page.locator("section:has(#course) a.button")
        refused = version.inner_text()
        enter(page, version)
        page.once("dialog", lambda dialog: dialog.accept())
        enter(page, page.get_by_role("button", name="Promote"))
        page.get_by_text(f"{refused} is the champion reranker").wait_for()
        assert system.champion() == refused != champion
        page.once("dialog", lambda dialog: dialog.accept())
        enter(page, page.get_by_role("button", name=f"Roll back to {champion}"))
        page.get_by_text(f"{champion} is the champion reranker again").wait_for()
        assert system.champion() == champion


def train_by_keyboard(page: Page) -> None:
    """Train on the archive with many labels, which `tiles` has not."""
    open_section(page, "Learning")
    for name in ("sheets", "tiles"):
        box = page.get_by_role("checkbox", name=name)
        if box.is_checked() != (name == "sheets"):
            tab_to(page, box)
            page.keyboard.press("Space")
    enter(page, page.get_by_role("button", name="Start the training"))


def tab_to(page: Page, wanted: Locator) -> None:
    """Press Tab until it has the focus: nobody without a mouse could do more.

    A page that is not loaded yet does not ask before a change, and a question that is awaited would never come.
    """
    wanted.wait_for(state="attached")
    page.wait_for_load_state()
    for _ in range(150):
        if wanted.evaluate("(element) => element === document.activeElement"):
            return
        page.keyboard.press("Tab")
    raise AssertionError(f"Tab never comes to {wanted} on {page.url}")


def enter(page: Page, wanted: Locator) -> None:
    """Follow a link, or press a button."""
    tab_to(page, wanted)
    page.keyboard.press("Enter")


def open_section(page: Page, name: str) -> None:
    """Open a page from the navigation."""
    page.get_by_role("navigation", name="pages of the console").wait_for()
    enter(page, page.get_by_role("navigation", name="pages of the console").get_by_role("link", name=name, exact=True))
    page.get_by_role("heading", name=name, exact=True, level=1).wait_for()


def choose(page: Page, field: Locator, path: Path) -> None:
    """Choose a file or a folder in the browser's own window, which a key opens; it opens none while a page loads.

    A page learns only after a while that the window is awaited, and a key overtakes
    that where the page is busy. So one question to the page lies between them: its
    answer says that the page knows.
    """
    page.wait_for_load_state("networkidle")
    with page.expect_file_chooser() as window:
        tab_to(page, field)
        page.evaluate("document.readyState")
        page.keyboard.press("Space")
    window.value.set_files(path)
