"""Commands, options, targets and settings that the pages name: the code has them."""

from __future__ import annotations

import re
from collections.abc import Sequence

import pytest

from ragllava.settings import Settings
from tests.support.pages import ROOT, Page, all_commands, all_pages, command_of, option_names, read_page
from workers.app import QUEUES

PAGES = all_pages()
CALLS = [(page.name, words) for page in PAGES for words in page.commands() if "ragllava" in words]
TARGETS = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
SHIPPED_FOLDERS = ("docs/", "infra/", "migrations/", "ragllava/", "tests/", "workers/")


def queue_of(words: Sequence[str]) -> str:
    return words[words.index("-Q") + 1]


@pytest.mark.parametrize(("page", "words"), CALLS, ids=[" ".join(words) for _, words in CALLS])
def test_command_lines_are_understood(page: str, words: list[str]) -> None:
    command, arguments = command_of(words[words.index("ragllava") + 1 :])
    command.make_context(command.name, arguments)  # raises what a user would see


def test_the_pages_show_command_lines() -> None:
    """The test above would pass if none was recognised."""
    assert {"README.md", "docs/ingest.md", "docs/operations.md"} <= {page for page, _ in CALLS}


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_mentioned_commands_and_options_exist(page: Page) -> None:
    for mention in page.mentions:
        if mention.startswith("ragllava "):
            command, arguments = command_of(mention.split()[1:])
            assert {word for word in arguments if word.startswith("-")} <= option_names(command), mention


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_mentioned_options_exist_somewhere(page: Page) -> None:
    options = {name for command in all_commands() for name in option_names(command)}
    assert {mention.split()[0] for mention in page.mentions if re.match("--[a-z]", mention)} <= options


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_targets_of_make_exist(page: Page) -> None:
    called = [words for words in page.commands() if words[0] == "make"]
    mentioned = [mention.split() for mention in page.mentions if re.match(r"make \w+$", mention)]
    assert {words[1] for words in called + mentioned} <= TARGETS


def test_the_readme_shows_how_to_start_and_test() -> None:
    assert {"demo", "test"} <= {words[1] for words in read_page("README.md").commands() if words[0] == "make"}


def test_worker_commands_serve_each_queue_once() -> None:
    shown = [queue_of(words) for words in read_page("docs/deployment.md").commands() if words[0] == "celery"]
    assert sorted(shown) == sorted(QUEUES)


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_worker_commands_name_queues_that_exist(page: Page) -> None:
    assert {queue_of(words) for words in page.commands() if words[0] == "celery"} <= set(QUEUES)


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_files_in_command_lines_exist(page: Page) -> None:
    """Files of the repository, of which a test is named with `::` behind its file."""
    named = {word.split("::")[0] for words in page.commands() for word in words if word.startswith(SHIPPED_FOLDERS)}
    assert [name for name in sorted(named) if not (ROOT / name).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_mentioned_settings_exist(page: Page) -> None:
    named = set(re.findall(r"\bRAGLLAVA_([A-Z0-9_]+)(?![A-Z0-9_*])", page.text))
    assert named <= {name.upper() for name in Settings.model_fields}
