"""Links, anchors, file names and citations lead to something that is in the repository."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import pytest
import yaml

from tests.support.pages import ROOT, Page, all_pages, project_files, read_page

PAGES = all_pages()
DOCS = [page for page in PAGES if page.name.startswith("docs/")]
SITE: dict[str, Any] = yaml.safe_load((ROOT / "mkdocs.yml").read_text())
FOLDERS = ("docs/", "infra/", "migrations/", "ragllava/", "tests/", "workers/")
TEXTS = (".py", ".md", ".toml", ".yml")
HERE = "tests/unit/docs/"  # where citations are examples

# Working papers of the authors, which no outsider has. The brackets keep these lines from matching themselves.
PRIVATE = re.compile(
    r"\bRELIABILIT[Y]\b|\bMETHO[D] \d|\bUSER[S] R\d|\bSTYL[E] \d|\bPERFORMANC[E]\b|\bARCHITECTUR[E]\b"
    r"|\bDATA_FORMAT[S]\b|\bexperimen[t] \d"
)
# `docs/reliability.md D13`, `docs/reliability.md D11, D12`, `docs/method.md 6 and 7`
CITATION = re.compile(r"docs/([\w-]+)\.md ((?:D\d+|\d+)\b(?:(?:, | and | to )(?:D\d+|\d+)\b)*)")
DECISION = re.compile(r"\bD\d{1,2}\b")


def outside(target: str) -> bool:
    return re.match(r"[a-z]+:", target) is not None


def linked(page: Page, target: str) -> tuple[str, str]:
    """The path below ROOT and the anchor that a link of `page` leads to."""
    path, _, anchor = target.partition("#")
    return (posixpath.normpath(posixpath.join(posixpath.dirname(page.name), path)) if path else page.name), anchor


def nav_pages(entries: list[Any]) -> Iterator[str]:
    for entry in entries:
        for value in entry.values():
            if isinstance(value, list):
                yield from nav_pages(value)
            else:
                yield value


def cited() -> Iterator[tuple[str, str, str]]:
    """Each citation: the file that has it, the page, and the decision or section."""
    for name in project_files():
        if name.endswith(TEXTS) and not name.startswith(HERE):
            for page, numbers in CITATION.findall(unwrapped(name)):
                for number in re.findall(r"D?\d+", numbers):
                    yield name, page, number


def unwrapped(name: str) -> str:
    """A file's text with each line break, indentation and comment mark as one space."""
    return re.sub(r"\s*\n\s*(?:#+:? )?", " ", (ROOT / name).read_text(encoding="utf-8"))


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_links_lead_somewhere(page: Page) -> None:
    for target in page.links:
        if not outside(target):
            path, anchor = linked(page, target)
            assert (ROOT / path).is_file(), target
            if anchor:
                assert anchor in read_page(path).anchors, target


@pytest.mark.parametrize("page", DOCS, ids=str)
def test_links_of_the_site_stay_in_it(page: Page) -> None:
    """mkdocs publishes docs/ alone; other files are named in backticks."""
    assert [t for t in page.links if not outside(t) and not linked(page, t)[0].startswith("docs/")] == []


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_named_files_exist(page: Page) -> None:
    named = {mention.split("::")[0] for mention in page.mentions if re.fullmatch(r"[\w./:-]+", mention)}
    files = {name for name in named if name.startswith(FOLDERS) or name in ("docker-compose.yml", "mkdocs.yml")}
    assert [name for name in sorted(files) if not (ROOT / name).exists()] == []


@pytest.mark.parametrize("page", DOCS, ids=str)
def test_lists_and_tables_follow_an_empty_line(page: Page) -> None:
    """Code hosts show them without it as well, mkdocs shows their marks as text."""
    within = ("- ", "|", " ", "#", "1. ", "2. ", "3. ")
    wrong = [
        f"{line!r} follows {before!r}"
        for before, line in pairwise(["", *page.prose.splitlines()])
        if re.match(r"- |1\. |\|", line) and before and not before.startswith(within)
    ]
    assert wrong == []


def test_the_site_has_every_page() -> None:
    docs = {page.name.removeprefix("docs/") for page in DOCS}
    assert sorted(nav_pages(SITE["nav"])) == sorted(docs)
    linked_pages = {target.partition("#")[0] for target in read_page("docs/index.md").links}
    assert docs - linked_pages == {"index.md"}


def test_the_site_fetches_nothing_from_elsewhere() -> None:
    assert SITE["theme"]["font"] is False
    assert SITE["plugins"] == ["search"]
    assert not {"extra_css", "extra_javascript", "hooks"} & set(SITE)


def test_no_file_cites_a_document_that_is_not_here() -> None:
    wrong = [
        f"{name}: {match[0]}"
        for name in project_files()
        if name.endswith(TEXTS)
        for match in PRIVATE.finditer(unwrapped(name))
    ]
    assert wrong == []


def test_every_citation_leads_to_its_heading() -> None:
    citations = list(cited())
    assert citations
    dangling = []
    for name, page, number in citations:
        heading = rf"^### {number}\b" if number.startswith("D") else rf"^## {number}\. "
        path = ROOT / "docs" / f"{page}.md"
        if not path.is_file() or not re.search(heading, path.read_text(encoding="utf-8"), re.MULTILINE):
            dangling.append(f"{name}: docs/{page}.md {number}")
    assert dangling == []


def test_every_decision_is_cited_with_its_page() -> None:
    bare = [
        f"{name}: {match[0]}"
        for name in project_files()
        if name.endswith(".py") and not name.startswith(HERE)
        for match in DECISION.finditer(CITATION.sub("", unwrapped(name)))
    ]
    assert bare == []


def test_named_pages_exist() -> None:
    missing = {
        f"{name}: docs/{page}"
        for name in project_files()
        if name.endswith(TEXTS)
        for page in re.findall(r"\bdocs/([\w-]+\.md)\b", (ROOT / name).read_text(encoding="utf-8"))
        if not (ROOT / "docs" / page).is_file()
    }
    assert missing == set()
