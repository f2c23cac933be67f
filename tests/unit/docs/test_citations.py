"""Citations in the code: each leads to a heading on a page that ships, and no other document is cited."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
FORMS = {
    "docs/reliability.md": re.compile(r"docs/reliability\.md ((?:(?:, | and | to )?D\d+)+)"),
    "docs/method.md": re.compile(r"docs/method\.md ((?:(?:, | and | to )?\d)+)"),
}
HEADINGS = {"docs/reliability.md": r"^### (D\d+) \S", "docs/method.md": r"^## (\d)\. \S"}
# Documents that outsiders do not have, and decisions without their page.
DANGLING = re.compile(
    r"\b(?:RELIABILITY|METHOD|USERS|PERFORMANCE|ARCHITECTURE|STYLE|RETRIEVAL|OPERATIONS|DATA_FORMATS|HTTP_API|LAYOUT)"
    r"(?:\.md\b|[ ,:]+(?:[DR]?\d|sections?\b|experiment\b))|\bexperiment \d|\(D\d+\b|\(R\d+\b"
)


def code_files() -> Iterator[Path]:
    listing = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=False)
    if listing.returncode:
        pytest.skip("not a git checkout, so nothing tells the project's files from others")
    for name in filter(None, listing.stdout.split(b"\0")):
        path = ROOT / os.fsdecode(name)
        if path.suffix in {".py", ".toml", ".yml", ".mako", ".j2"} and path.is_file() and path != Path(__file__):
            yield path


@pytest.mark.parametrize("page", FORMS)
def test_every_citation_has_its_heading(page: str) -> None:
    headings = set(re.findall(HEADINGS[page], (ROOT / page).read_text(encoding="utf-8"), re.MULTILINE))
    cited: dict[str, str] = {}
    for path in code_files():
        for listed in FORMS[page].findall(path.read_text(encoding="utf-8")):
            cited |= dict.fromkeys(re.findall(r"D?\d+", listed), path.name)
    assert cited, f"nothing cites {page}"
    assert {number: name for number, name in cited.items() if number not in headings} == {}


def test_nothing_cites_a_document_that_does_not_ship() -> None:
    found = [
        f"{path.relative_to(ROOT)}: {match[0]}"
        for path in code_files()
        for match in DANGLING.finditer(path.read_text(encoding="utf-8"))
    ]
    assert found == []


def test_cited_pages_exist() -> None:
    cited = {
        (path.name, page)
        for path in code_files()
        for page in re.findall(r"\bdocs/[\w-]+\.md\b", path.read_text(encoding="utf-8"))
    }
    assert [pair for pair in sorted(cited) if not (ROOT / pair[1]).is_file()] == []
