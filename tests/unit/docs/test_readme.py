"""README.md against the code: its settings, commands, codes and promises are those of the repository."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from ragllava.cli.main import cli
from ragllava.records import AnswerStatus
from ragllava.settings import Settings, default_home
from ragllava.stages.answer import question_files
from ragllava.stages.results.results import ResultRow

ROOT = Path(__file__).parents[3]
README = (ROOT / "README.md").read_text(encoding="utf-8")
CHANGELOG = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
LARGEST_TEXT_BYTES = 1_000_000  # above it are weights, not text

# What belongs to one developer's machine (`one` and `user` are made up), and where packages and images come from.
FOREIGN = {
    "a path of a developer's machine": re.compile(r"(?<![\w.:/}])/(?:home|Users|root|work|mnt|tmp)/(?!one/|user/)\w"),
    "the host of a package registry": re.compile(r"pypi\.org|pythonhosted\.org|registry\.npmjs|\bindex-url\b"),
    "the host of an image registry": re.compile(r"\b(?:docker\.io|quay\.io|ghcr\.io)\b"),
}


def blocks(language: str) -> list[str]:
    """The code blocks of the README that are written in `language`."""
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.DOTALL | re.MULTILINE)


def command_lines() -> list[str]:
    return [line.partition("  #")[0].strip() for block in blocks("sh") for line in block.splitlines() if line.strip()]


def section(title: str) -> str:
    """The text from the heading `title` to the next heading of the same or a higher level."""
    found = re.search(rf"^(##+) {re.escape(title)}\n(.*?)(?=^##? |^\1 |\Z)", README, re.DOTALL | re.MULTILINE)
    assert found, f"the README has no section {title!r}"
    return found[2]


def project_files() -> list[str]:
    """Every file that belongs to the project: what git tracks."""
    listing = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=False)
    if listing.returncode:
        pytest.skip("not a git checkout, so nothing tells the project's files from others")
    names = [os.fsdecode(name) for name in listing.stdout.split(b"\0") if name]
    return [name for name in names if (ROOT / name).is_file()]


def test_every_setting_is_explained_with_its_default() -> None:
    rows = dict(re.findall(r"^\| `RAGLLAVA_(\w+)` \| (.*?) \|", section("Settings"), re.MULTILINE))
    assert rows == {name.upper(): written_default(name) for name in Settings.model_fields}


def written_default(name: str) -> str:
    if name == "home":
        return f"`{str(default_home()).replace(str(Path.home()), '~')}`"
    default = Settings.model_fields[name].default
    if default is None:
        return "not set" if name in ("models_dir", "events_list") or name.startswith("vllm_") else "embedded"
    if isinstance(default, bool):
        return f"`{str(default).lower()}`"
    return f"`{default:g}`" if isinstance(default, float) else f"`{default}`"


def command_of(words: list[str]) -> tuple[click.Command, list[str]]:
    """The command that the words after `ragllava` call, and the words that are its arguments."""
    command: click.Command = cli
    while isinstance(command, click.Group) and words and not words[0].startswith("-"):
        found = command.get_command(click.Context(command), words[0])
        assert found is not None, f"there is no command {words[0]!r}"
        command, words = found, words[1:]
    return command, words


@pytest.mark.parametrize("line", [line for line in command_lines() if "ragllava " in line])
def test_command_lines_are_understood(line: str) -> None:
    words = shlex.split(line)
    command, arguments = command_of(words[words.index("ragllava") + 1 :])
    command.make_context(command.name, arguments)  # raises what a user would see


@pytest.mark.parametrize("mention", sorted(set(re.findall(r"`ragllava ([^`]+)`", README))))
def test_mentioned_commands_and_options_exist(mention: str) -> None:
    command, arguments = command_of(mention.split())
    known = {name for p in command.params for name in (*p.opts, *p.secondary_opts)} | {"--help"}
    assert {word for word in arguments if word.startswith("-")} <= known


def test_mentioned_options_exist_somewhere() -> None:
    def commands_below(group: click.Group) -> Iterator[click.Command]:
        for name in group.list_commands(click.Context(group)):
            command, _ = command_of([name]) if group is cli else (group.commands[name], [])
            yield from commands_below(command) if isinstance(command, click.Group) else [command]

    parameters = [parameter for command in commands_below(cli) for parameter in command.params]
    known = {name for parameter in parameters for name in (*parameter.opts, *parameter.secondary_opts)}
    assert set(re.findall(r"`(--[a-z-]+)[^`]*`", README)) <= known


def test_targets_of_make_exist() -> None:
    targets = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = {line.split()[1] for line in command_lines() if line.startswith("make ")}
    assert named
    assert named <= targets


def test_worker_commands_are_those_of_the_workers_module() -> None:
    """The queues, each served by one of the commands shown."""
    served = [re.search(r"-Q (\w+)", line) for line in command_lines() if line.startswith("celery ")]
    source = (ROOT / "workers" / "app.py").read_text()
    [table] = re.findall(r"^QUEUES = \{(.*?)^\}", source, re.DOTALL | re.MULTILINE)
    assert sorted(match[1] for match in served if match) == sorted(re.findall(r'^    "(\w+)":', table, re.MULTILINE))


def test_every_validation_code_is_explained() -> None:
    source = Path(question_files.__file__).read_text()
    raised = set(re.findall(r'_Rejected\(\s*"(\w+)"', source))
    explained = set(re.findall(r"`(\w+)`", "".join(re.findall(r"^\| (`.*?) \|", section("Questions"), re.MULTILINE))))
    assert explained == raised


def test_the_output_line_has_all_keys() -> None:
    shown = next(json.loads(block) for block in blocks("json") if '"evidence"' in block)
    row = ResultRow(1, "q", "?", AnswerStatus.ANSWERED, models={})
    assert list(shown) == list(row.as_json())
    assert list(shown["models"]) == list(row.as_json()["models"])


def test_every_status_is_explained() -> None:
    explained = re.findall(r"^\| `(\w+)` \|", section("Results"), re.MULTILINE)
    assert explained == [status.value for status in AnswerStatus]


def test_question_examples_are_valid() -> None:
    for language, name in (("json", "questions.jsonl"), ("csv", "questions.csv")):
        for block in re.findall(rf"^```{language}\n(.*?)^```", section("Questions"), re.DOTALL | re.MULTILINE):
            assert question_files.read_questions(block.encode(), name=name).errors == []


def test_promises_name_tests_that_exist() -> None:
    promised = re.findall(r"\| `(test_\w+)` \|$", section("How jobs work, and what is promised"), re.MULTILINE)
    assert promised
    defined = {
        name
        for path in (ROOT / "tests").rglob("test_*.py")
        for name in re.findall(r"^ *def (test_\w+)", path.read_text(), re.MULTILINE)
    }
    assert [name for name in promised if name not in defined] == []


def test_links_lead_somewhere() -> None:
    headings = {
        re.sub(r"[^\w -]", "", title).lower().replace(" ", "-")
        for title in re.findall(r"^##+ (.*)$", README, re.MULTILINE)
    }
    for target in re.findall(r"\]\(([^)]+)\)", README):
        if target.startswith("#"):
            assert target.removeprefix("#") in headings
        elif not target.startswith("https://"):
            assert (ROOT / target).is_file(), target


def test_ci_runs_the_checks_and_the_test_command_of_the_readme() -> None:
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    steps = script.read_text().splitlines()
    assert "make test" in steps
    assert "make test" in command_lines()
    assert "make lint" in steps


def test_the_changelog_knows_this_version() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    headings = re.findall(r"^## \[(.+?)\]", CHANGELOG, re.MULTILINE)
    assert {version, "Unreleased"} & set(headings)


def test_no_file_names_a_machine_or_a_registry() -> None:
    found = []
    for name in project_files():
        path = ROOT / name
        if path.stat().st_size > LARGEST_TEXT_BYTES:
            continue
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:  # a picture
            continue
        found += [f"{name}: {match[0]} is {what}" for what, wrong in FOREIGN.items() if (match := wrong.search(text))]
    assert found == []
