"""The documentation's pages and what they contain, for the tests that compare them with the code."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import click
import pytest

from ragllava.cli.main import cli

ROOT = Path(__file__).parents[2]
TOP_PAGES = ("README.md", "CONTRIBUTING.md", "SECURITY.md")

_PAGES = (*TOP_PAGES, "infra/*.md", "docs/**/*.md", "ragllava/**/*.md")
_FENCE = re.compile(r"^```([^\n]*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
_HEADING = re.compile(r"^#{1,6} +(.*?) *$", re.MULTILINE)
_LINK = re.compile(r"\]\(([^)\s]+)\)")
_ENDS_OF_COMMANDS = ("|", "||", "&&", ";", "&", ">", ">>")


@dataclass(frozen=True)
class Page:
    """One Markdown file; `name` is its path below ROOT."""

    name: str
    text: str

    def __str__(self) -> str:
        return self.name

    def blocks(self, language: str) -> list[str]:
        """The fenced code blocks that are written in `language`."""
        return [body for tag, body in _FENCE.findall(self.text) if tag == language]

    @property
    def languages(self) -> set[str]:
        """The languages of the fenced code blocks; the empty string for a block that names none."""
        return {tag for tag, _ in _FENCE.findall(self.text)}

    @property
    def prose(self) -> str:
        """The text without fenced code blocks."""
        return _FENCE.sub("", self.text)

    @property
    def headings(self) -> list[str]:
        """The headings of all levels, without their marks."""
        return _HEADING.findall(self.prose)

    @property
    def links(self) -> list[str]:
        """The targets of links and pictures."""
        return _LINK.findall(self.prose)

    @property
    def anchors(self) -> set[str]:
        """The anchors that lead to a heading both where the repository is hosted and in the built site."""
        return {hosted for title in self.headings for hosted in [hosted_anchor(title)] if hosted == built_anchor(title)}

    @property
    def mentions(self) -> list[str]:
        """What stands in backticks within the text, on one line."""
        return [" ".join(mention.split()) for mention in re.findall(r"`([^`]+)`", self.prose)]

    def section(self, title: str) -> Page:
        """The part from the heading `title` to the next heading of the same or a higher level."""
        match = re.search(rf"^(##+) {re.escape(title)}\n(.*?)(?=^##? |^\1 |\Z)", self.text, re.DOTALL | re.MULTILINE)
        assert match, f"{self.name} has no section {title!r}"
        return Page(f"{self.name}: {title}", match[2])

    def first_column(self) -> list[str]:
        """Every code word in the first cells of the tables of this page, in order."""
        cells = re.findall(r"^\| (`[^|]*?) \|", self.prose, re.MULTILINE)
        return re.findall(r"`([^`]+)`", " ".join(cells))

    def commands(self) -> Iterator[list[str]]:
        """The words of every command in the `sh` blocks, without comments; one over several lines is one command."""
        for block in self.blocks("sh"):
            for line in _whole_lines(block.replace("\\\n", " ")):
                words: list[str] = []
                for word in shlex.split(line, comments=True):
                    if word in _ENDS_OF_COMMANDS:
                        yield words
                        words = []
                    else:
                        words.append(word)
                if words:
                    yield words


def _whole_lines(block: str) -> Iterator[str]:
    """The lines of a shell script; a quote that is open at the end of a line takes the next one in."""
    line = ""
    for physical in block.splitlines(keepends=True):
        line += physical
        try:
            shlex.split(line, comments=True)
        except ValueError:
            continue
        yield line
        line = ""
    assert not line, f"a quote is not closed: {line}"


def hosted_anchor(title: str) -> str:
    """The anchor of a heading on a code host."""
    return re.sub(r"[^\w -]", "", _plain(title).lower()).replace(" ", "-")


def built_anchor(title: str) -> str:
    """The anchor of a heading in the site that mkdocs builds (the rule of Python-Markdown's `toc`)."""
    plain = unicodedata.normalize("NFKD", _plain(title)).encode("ascii", "ignore").decode()
    return re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", plain).strip().lower())


def _plain(title: str) -> str:
    return re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", title).replace("`", "")


def read_page(name: str) -> Page:
    """The page at this path below ROOT."""
    return Page(name, (ROOT / name).read_text(encoding="utf-8"))


def all_pages() -> list[Page]:
    """Every page, by path: what users and contributors read, except the changelog, which also tells of the past."""
    paths = {path for pattern in _PAGES for path in ROOT.glob(pattern)}
    return [read_page(path.relative_to(ROOT).as_posix()) for path in sorted(paths)]


def project_files() -> list[str]:
    """Every file that belongs to the project: what git tracks."""
    listing = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=False)
    if listing.returncode:
        pytest.skip("not a git checkout, so nothing tells the project's files from others")
    names = [os.fsdecode(name) for name in listing.stdout.split(b"\0") if name]
    return [name for name in names if (ROOT / name).is_file()]


def command_of(words: list[str]) -> tuple[click.Command, list[str]]:
    """The command that the words after `ragllava` call, and the words that are its arguments."""
    command: click.Command = cli
    while isinstance(command, click.Group) and words and not words[0].startswith("-"):
        called = command.get_command(click.Context(command), words[0])
        assert called is not None, f"there is no command {words[0]!r}"
        command, words = called, words[1:]
    return command, words


def all_commands() -> Iterator[click.Command]:
    """Every command that does something, those of groups included."""

    def below(group: click.Group) -> Iterator[click.Command]:
        for name in group.list_commands(click.Context(group)):
            command = group.get_command(click.Context(group), name)
            assert command is not None
            yield from below(command) if isinstance(command, click.Group) else [command]

    yield from below(cli)


def option_names(command: click.Command) -> set[str]:
    """What may follow a command as an option."""
    return {name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)} | {"--help"}


def choices(command: click.Command) -> list[str]:
    """The values of a command's argument that takes one of several names."""
    [kinds] = [parameter.type for parameter in command.params if isinstance(parameter, click.Argument)]
    assert isinstance(kinds, click.Choice)
    return [str(getattr(choice, "value", choice)) for choice in kinds.choices]
