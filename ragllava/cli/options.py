"""Options and small helpers that several commands share."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from rich.table import Table

    from ragllava.client import Client
    from ragllava.records import AnswerOptions

F = TypeVar("F", bound=Callable[..., Any])

_PIPED_WIDTH = 10_000  # characters; no table of ours is as wide

SHOWN_LINES = 20  # of a file with many invalid ones
JOB_ID = click.IntRange(1, 2**63 - 1)  # what the database can hold

json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
archive_option = click.option("--archive", required=True, metavar="NAME", help="The archive.")


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
    """click's FloatRange without nan, which compares false with every bound and so lies in each range of click's."""

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
                     help="Least relevance of evidence; auto: the reranker version's own."),
        click.option("--top-n", type=click.IntRange(1, 20), help="Pictures that an answer may rest on.  [default: 2]"),
        click.option("--top-k", type=click.IntRange(1, 1000), help="Pictures that are reranked.  [default: 20]"),
    ):  # fmt: skip
        command = option(command)
    return command


def as_answer_options(
    client: Client, top_k: int | None, top_n: int | None, threshold: float | None, bare_prompt: bool
) -> AnswerOptions:
    """The options as a record; what was not given comes from the settings."""
    from ragllava.records import AnswerOptions

    return AnswerOptions(
        top_k=top_k or client.settings.top_k,
        top_n=top_n or client.settings.top_n,
        threshold=threshold,
        captions_in_answer=not bare_prompt,
    )


@contextmanager
def connected() -> Iterator[Client]:
    """A client from the environment's settings, closed at the end."""
    from ragllava.client import Client
    from ragllava.settings import load_settings

    client = Client(load_settings())
    try:
        yield client
    finally:
        client.close()


def print_json(value: Any) -> None:
    """Indented, keys as given, times in ISO 8601."""
    import json

    click.echo(json.dumps(value, indent=2, ensure_ascii=False, default=_plain))


def print_table(table: Table) -> None:
    """As wide as the terminal, nothing cut; into a pipe or a file each row goes as one line, however long."""
    from rich.console import Console

    for column in table.columns:
        column.overflow = "fold"
    console = Console(highlight=False, markup=False)  # a name may hold what looks like markup
    if not console.is_terminal:
        console = Console(highlight=False, markup=False, width=_PIPED_WIDTH)
    console.print(table)


def print_problem(text: str) -> None:
    """One red line, plain where colours are not wanted; the terminal wraps it."""
    from rich.console import Console

    Console().print(text, style="red", highlight=False, markup=False, soft_wrap=True)


def as_time(moment: datetime | None) -> str:
    """`2026-11-23 10:00:00 UTC`, `-` for None."""
    return f"{moment.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC" if moment else "-"


def _plain(value: object) -> str:
    return value.isoformat() if isinstance(value, datetime) else str(value)
