"""The project's files among themselves: README, architecture, promises, CI, changelog, and what no file may name."""

from __future__ import annotations

import os
import re

import pytest
from setuptools.config.pyprojecttoml import read_configuration

import ragllava
from tests.support.pages import ROOT, TOP_PAGES, Page, all_pages, project_files, read_page

PAGES = all_pages()
LONGEST_README = 220  # lines
LARGEST_TEXT_BYTES = 1_000_000  # above it are weights, not text

# What belongs to one developer's machine (`one` and `user` are made up), and where packages and images come from.
FOREIGN = {
    "a path of a developer's machine": re.compile(r"(?<![\w.:/}])/(?:home|Users|root|work|mnt|tmp)/(?!one/|user/)\w"),
    "the host of a package registry": re.compile(r"pypi\.org|pythonhosted\.org|registry\.npmjs|\bindex-url\b"),
    "the host of an image registry": re.compile(r"\b(?:docker\.io|quay\.io|ghcr\.io)\b"),
}


def defined_tests() -> set[str]:
    return {
        name
        for path in (ROOT / "tests").rglob("test_*.py")
        for name in re.findall(r"^ *(?:async )?def (test_\w+)", path.read_text(encoding="utf-8"), re.MULTILINE)
    }


def test_the_usual_pages_exist() -> None:
    assert [name for name in (*TOP_PAGES, "CHANGELOG.md", "LICENSE") if not (ROOT / name).is_file()] == []


def test_the_readme_is_short() -> None:
    assert len(read_page("README.md").text.splitlines()) <= LONGEST_README


def test_the_architecture_page_names_every_folder() -> None:
    page = read_page("docs/architecture.md").text
    modules = [name for name in project_files() if name.startswith("ragllava/") and name.endswith(".py")]
    folders = {f"{os.path.dirname(name)}/" for name in modules} - {"ragllava/"}  # noqa: PTH120 - names, not paths
    assert folders
    assert [folder for folder in sorted(folders) if folder not in page] == []


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_named_tests_exist(page: Page) -> None:
    named = {mention.rpartition("::")[2] for mention in page.mentions if re.search(r"(?:^|::)test_\w+$", mention)}
    assert named - defined_tests() == set()


def test_promises_name_tests() -> None:
    promised = re.findall(r"\| `(test_\w+)` \|$", read_page("docs/reliability.md").text, re.MULTILINE)
    assert promised
    assert set(promised) - defined_tests() == set()


def test_ci_runs_the_checks_and_the_test_command_of_the_readme() -> None:
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    steps = script.read_text().splitlines()
    assert "make test" in steps
    assert ["make", "test"] in list(read_page("README.md").commands())
    assert "make lint" in steps


def test_lint_builds_the_documentation_strictly() -> None:
    [recipe] = re.findall(r"^lint:.*\n((?:\t.*\n)+)", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert re.search(r"mkdocs build .*--strict\b", recipe)


def test_the_newest_release_in_the_changelog_is_this_version() -> None:
    headings = re.findall(r"^## \[(.+?)\]", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert next(heading for heading in headings if heading != "Unreleased") == ragllava.__version__


def test_the_package_has_the_version_of_the_code() -> None:
    # As the build reads it: from the code, without importing it.
    built = read_configuration(ROOT / "pyproject.toml")["project"]["version"]
    assert built == ragllava.__version__


def test_no_file_names_a_machine_or_a_registry() -> None:
    named = []
    for name in project_files():
        path = ROOT / name
        if path.stat().st_size > LARGEST_TEXT_BYTES:
            continue
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:  # a picture
            continue
        named += [f"{name}: {match[0]} is {what}" for what, wrong in FOREIGN.items() if (match := wrong.search(text))]
    assert named == []
