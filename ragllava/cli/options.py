"""Options and small helpers that several commands share."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from rich.table import Table

    from ragllava.client import Client
    from ragllava.errors import LineError
    from ragllava.records import AnswerOptions

F = TypeVar("F", bound=Callable[..., Any])
E = TypeVar("E", bound=StrEnum)

_PIPED_WIDTH = 10_000  # characters, wider than any table

SHOWN_LINES = 20  # of a file with many invalid ones
JOB_ID = click.IntRange(1, 2**63 - 1)  # of the database

json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
archive_option = click.option("--archive", required=True, metavar="NAME", help="The archive.")


class EnumChoice(click.Choice[E]):
    """The values of an enum of strings; click's own choice takes their names."""

    def normalize_choice(self, choice: object, ctx: click.Context | None) -> str:
        """The value, as it is written."""
        return str(choice)


class ThresholdType(click.ParamType[float | None]):
    """`auto`, or a number from 0 to 1."""

    name = "auto|0..1"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float | None:
        """None stands for the reranker version's own threshold."""
        if value is None or value == "auto":
            return None
        try:
            number = float(value)
        except ValueError:
            number = -1.0
        if not 0 <= number <= 1:
            self.fail(f"{value!r} is neither auto nor a number from 0 to 1", param, ctx)
        return number


class NumberRange(click.FloatRange):
    """click's FloatRange without nan, which click accepts because it compares false with every bound."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """The number, in the range."""
        number = float(super().convert(value, param, ctx))
        if math.isnan(number):
            self.fail(f"{value!r} is not a number.", param, ctx)
        return number


def answer_options(command: F) -> F:
    """--top-k, --top-n, --threshold, --bare-prompt."""
    for option in (
        click.option("--bare-prompt", is_flag=True, help="The paper's prompt: no captions for the generator."),
        click.option("--threshold", type=ThresholdType(), default="auto", show_default=True,
                     help="Lowest relevance of evidence; auto: the reranker version's own."),
        click.option("--top-n", type=click.IntRange(1, 20), help="At most so many pictures as evidence.  [default: 2]"),
        click.option("--top-k", type=click.IntRange(1, 1000), help="Candidates that are reranked.  [default: 20]"),
    ):  # fmt: skip
        command = option(command)
    return command


def as_answer_options(
    client: Client, top_k: int | None, top_n: int | None, threshold: float | None, bare_prompt: bool
) -> AnswerOptions:
    """The options as a record; those that are not given come from the settings."""
    from ragllava.records import AnswerOptions

    return AnswerOptions(
        top_k=top_k or client.settings.top_k,
        top_n=top_n or client.settings.top_n,
        threshold=threshold,
        captions_in_answer=not bare_prompt,
    )


def connected() -> Client:
    """A client with the environment's settings, which closes its connections at the end of a `with` block."""
    from ragllava.client import Client

    return Client()


def print_lines(file: Path, errors: Sequence[LineError], kind: str) -> None:
    """The first errors of a file, on standard error; `kind` is what its other lines are, such as `invalid`."""
    for error in errors[:SHOWN_LINES]:
        click.echo(f"{file}, line {error.line}: {error.message} [{error.code}]", err=True)
    if len(errors) > SHOWN_LINES:
        click.echo(f"… and {len(errors) - SHOWN_LINES} more {kind} lines", err=True)


def print_json(value: Any) -> None:
    """Indented, keys as given, times in ISO 8601."""
    import json

    click.echo(json.dumps(value, indent=2, ensure_ascii=False, default=_plain))


def print_table(table: Table) -> None:
    """As wide as the terminal, with nothing cut; in a pipe or a file each row is one line."""
    from rich.console import Console

    for column in table.columns:
        column.overflow = "fold"
    console = Console(highlight=False, markup=False)  # a name may hold what looks like markup
    if not console.is_terminal:
        console = Console(highlight=False, markup=False, width=_PIPED_WIDTH)
    console.print(table)


def print_problem(text: str) -> None:
    """One red line, which the terminal wraps; without colour where NO_COLOR is set."""
    from rich.console import Console

    Console().print(text, style="red", highlight=False, markup=False, soft_wrap=True)


def package_versions(*packages: str) -> dict[str, str]:
    """The versions of Python and of these packages, on which measured figures may depend."""
    import platform
    from importlib.metadata import version

    return {"python": platform.python_version(), **{name: version(name) for name in packages}}


def as_time(moment: datetime | None) -> str:
    """`2026-11-23 10:00:00 UTC`, `-` for None."""
    return f"{moment.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC" if moment else "-"


def _plain(value: object) -> str:
    return value.isoformat() if isinstance(value, datetime) else str(value)
