"""Options and small helpers that several commands share."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, is_dataclass
from datetime import UTC, datetime
from enum import StrEnum
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict, TypeVar, Unpack, cast

import click

from ragllava.cli.terminal import echo, make_console
from ragllava.errors import InvalidInput, UsageError
from ragllava.records import PRIORITIES
from ragllava.visible import visible, visible_json

if TYPE_CHECKING:
    from rich.table import Table

    from ragllava.client import Client, Columns
    from ragllava.errors import LineError
    from ragllava.records import AnswerOptions

F = TypeVar("F", bound=Callable[..., Any])
E = TypeVar("E", bound=StrEnum)

_PIPED_WIDTH = 10_000  # characters, wider than any table

STANDARD_STREAM = Path("-")  # standard input or output instead of a file
_LONGEST_HELP = 1_000  # characters of a sentence
SHOWN_LINES = 20  # of a file with many invalid ones
ROW_ID = click.IntRange(1, 2**63 - 1)  # of the database


LATEST = "latest"  # in place of the number of a job


class JobId(click.IntRange):
    """The number of a job, or `latest`, which `job_number` turns into a number when the command runs."""

    name = "job"

    def __init__(self) -> None:
        """The range of the database's numbers."""
        super().__init__(ROW_ID.min, ROW_ID.max)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The number, or LATEST."""
        return value if value == LATEST else super().convert(value, param, ctx)


JOB_ID = JobId()


def job_number(job_id: int | str, kind: str | None = None) -> int:
    """The number of a job; LATEST stands for the newest job of a kind, as `client.jobs.latest` finds it.

    Raises UsageError when there is none.
    """
    if job_id != LATEST:
        return int(job_id)
    with connected() as client:
        return client.jobs.latest(kind).job_id


def _job_argument(kind: str | None) -> Callable[[F], F]:
    def decorate(command: F) -> F:
        @wraps(command)
        def with_number(*args: Any, job_id: int | str, **options: Any) -> Any:
            return command(*args, job_id=job_number(job_id, kind), **options)

        return cast("F", click.argument("job_id", type=JOB_ID)(with_number))

    return decorate


json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
archive_option = click.option("--archive", required=True, metavar="NAME", help="The archive.")
captions_option = click.option(
    "--captions",
    type=click.Path(path_type=Path),
    help="File with the names of pictures and their captions: CSV, Excel, JSON, JSONL or Parquet.",
)
no_wait_option = click.option("--no-wait", is_flag=True, help="Return when the job is queued.")
priority_option = click.option(
    "--priority",
    type=click.Choice(list(PRIORITIES)),
    default="normal",
    show_default=True,
    help="Jobs of higher priority are served first; jobs of equal priority take turns.",
)
wait_option = click.option("--wait", is_flag=True, help="Wait for the job, with a progress bar.")
yes_option = click.option("--yes", is_flag=True, help="Do not ask.")
dry_run_option = click.option("--dry-run", is_flag=True, help="Only show what would be removed, and what stays.")
allow_removals_option = click.option(
    "--allow-removals", is_flag=True, help="Let pictures go even if many of them are gone at once."
)
job_argument = _job_argument(None)
answer_job_argument = _job_argument("answer")
force_option = click.option("--force", is_flag=True, help="Replace a file that is not of this job.")
name_option = click.option("--name", metavar="TEXT", help="What the lists of jobs call this job.")


class Commands(click.Group):
    """A group whose help shows the first sentence of each command whole, over several lines if it is long."""

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """click would cut the sentence at the end of the line."""
        commands = ((name, self.get_command(ctx, name)) for name in self.list_commands(ctx))
        rows = [(name, command.get_short_help_str(limit=_LONGEST_HELP)) for name, command in commands if command]
        with formatter.section("Commands"):
            formatter.write_dl(rows)


exclude_option = click.option(
    "--exclude",
    "exclude",
    multiple=True,
    metavar="PATTERN",
    help="Leave out files and folders whose names match this shell pattern, such as '*.pdf' or 'thumbs'. Repeatable.",
)


def column_options(command: F) -> F:
    """--image-column and --caption-column."""
    for option in (
        click.option("--caption-column", metavar="NAME", help="The column of --captions with the captions."),
        click.option("--image-column", metavar="NAME", help="The column of --captions with the names of the pictures."),
    ):
        command = option(command)
    return command


class EnumChoice(click.Choice[E]):
    """The values of an enum of strings; click's own choice takes their names."""

    def normalize_choice(self, choice: object, ctx: click.Context | None) -> str:
        """The value, as it is written."""
        return str(choice)


class Problem(str):
    """A line about what is wrong."""

    __slots__ = ()


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


class AnswerFlags(TypedDict, total=False):
    """The arguments that `answer_options` gives a command."""

    top_k: int | None
    top_n: int | None
    threshold: float | None
    bare_prompt: bool
    retrieval: str | None
    depth: str | None
    where: tuple[str, ...]


def retrieval_option(command: F) -> F:
    """--retrieval."""
    return click.option(
        "--retrieval",
        type=click.Choice(["hybrid", "picture", "caption"]),
        help="Find candidates by picture, by the words of captions, or by both.  [default: hybrid]",
    )(command)


def where_option(command: F) -> F:
    """--where, several times."""
    return click.option(
        "--where",
        multiple=True,
        metavar="CONDITION",
        help="Only pictures for which this holds: city=Wenby, year>=1950, 'city in Wenby, Ansel', caption~barn, "
        "folder=1968/, or a JSON object; may be repeated, and all must hold.",
    )(command)


def as_filter(where: Sequence[str]) -> dict[str, Any] | None:
    """The conditions of --where as a filter. Raises UsageError."""
    from ragllava.filters import parse_where

    return parse_where(where)


def answer_options(command: F) -> F:
    """--where, --retrieval, --depth, --top-k, --top-n, --threshold, --bare-prompt."""
    for option in (
        click.option("--bare-prompt", is_flag=True, help="The paper's prompt: no captions for the generator."),
        click.option("--threshold", type=ThresholdType(), default="auto", show_default=True,
                     help="Lowest relevance of evidence; auto: the reranker version's own."),
        click.option("--top-n", type=click.IntRange(1, 20), help="At most so many pictures as evidence.  [default: 2]"),
        click.option("--top-k", type=click.IntRange(1, 1000),
                     help="The nearest pictures that are candidates.  [default: 20]"),
        click.option("--depth", type=click.Choice(["need", "fixed"]),
                     help="Candidates that are reranked: as many as needed, or all.  [default: need]"),
        retrieval_option,
        where_option,
    ):  # fmt: skip
        command = option(command)
    return command


def as_answer_options(client: Client, **flags: Unpack[AnswerFlags]) -> AnswerOptions:
    """The options as a record; those that are not given come from the settings. Raises UsageError for a filter."""
    from ragllava.records import AnswerOptions, Depth, Retrieval

    return AnswerOptions(
        top_k=flags.get("top_k") or client.settings.top_k,
        top_n=flags.get("top_n") or client.settings.top_n,
        threshold=flags.get("threshold"),
        captions_in_answer=not flags.get("bare_prompt"),
        retrieval=Retrieval(flags.get("retrieval") or client.settings.retrieval),
        depth=Depth(flags.get("depth") or client.settings.depth),
        filter=as_filter(flags.get("where", ())),
    )


def as_columns(captions: Path | None, image: str | None, caption: str | None) -> Columns | None:
    """The columns of a caption file that --image-column and --caption-column name. Raises UsageError without a file."""
    from ragllava.client import Columns

    if captions is None:
        refuse_given({"--image-column": image, "--caption-column": caption}, "without --captions")
    return Columns(image, caption) if image or caption else None


def input_file(file: Path) -> Path | bytes:
    """A file that the user names, or what comes from standard input, for `-`."""
    return sys.stdin.buffer.read() if file == STANDARD_STREAM else file


def confirm(question: str, yes: bool) -> None:
    """Ask on the terminal unless `yes`; stops the command if the answer is no. Raises UsageError without a terminal."""
    if yes:
        return
    if not sys.stdin.isatty():
        raise UsageError(f"{question} Nobody can be asked here: add --yes")
    click.confirm(question, abort=True)


def refuse_given(options: Mapping[str, object], reason: str) -> None:
    """Raise UsageError if one of the options has a value: it `has no effect …`."""
    for option, value in options.items():
        if value is not None:
            raise UsageError(f"{option} has no effect {reason}")


def require_folder(path: Path | None) -> None:
    """Raise UsageError before minutes of work if a file cannot be written after them."""
    if path is not None and not path.absolute().parent.is_dir():
        raise UsageError(f"{path} cannot be written: there is no folder {path.parent}")


def connected() -> Client:
    """A client with the environment's settings, which closes its connections at the end of a `with` block."""
    from ragllava.client import Client

    return Client()


@contextmanager
def advising(skip_invalid: bool, done: str, does: str) -> Iterator[None]:
    """Add to an error in a file's lines that nothing was stored, and what can be done; `done` as in `stored`."""
    try:
        yield
    except InvalidInput as error:
        if any(line.line for line in error.errors):
            advice = "no line is valid" if skip_invalid else f"--skip-invalid {does} the valid lines, if there are any"
            error.add_note(f"nothing was {done}; {advice}")
        raise


def print_lines(file: Path, errors: Sequence[LineError], kind: str) -> None:
    """The first errors of a file, on standard error; `kind` is what its other lines are, such as `invalid`."""
    for error in errors[:SHOWN_LINES]:
        echo(f"{file}, line {error.line}: {error.message} [{error.code}]", err=True)
    if len(errors) > SHOWN_LINES:
        echo(f"… and {len(errors) - SHOWN_LINES} more {kind} lines", err=True)


def print_json(value: Any) -> None:
    """Indented, keys as given; records as their `as_json()` or by their fields, times in ISO 8601."""
    import json

    echo(visible_json(json.dumps(value, indent=2, ensure_ascii=False, default=_plain)))


def fields_of(record: object, *names: str) -> dict[str, Any]:
    """These attributes of a record, for JSON."""
    return {name: getattr(record, name) for name in names}


def print_result(value: Any, shown: Iterable[str | Table], as_json: bool) -> None:
    """The result of a command: `value` as JSON, or the lines, tables and problems of `shown`."""
    if as_json:
        print_json(value)
        return
    for item in shown:
        if isinstance(item, Problem):
            print_problem(item)
        elif isinstance(item, str):
            echo(item)
        else:
            print_table(item)


def print_rows(
    values: Sequence[Any], columns: Sequence[str], rows: Iterable[Sequence[object]], as_json: bool, *, none: str
) -> None:
    """A list of records as JSON, or as a table with one row for each; `none` when there are no records."""
    print_result(values, [make_table(columns, rows, box=None) if values else none], as_json)


def make_table(columns: Sequence[str], rows: Iterable[Sequence[object]], **style: Any) -> Table:
    """A table of plain texts; None is shown as `-`. `style` goes to rich's Table."""
    from rich.table import Table
    from rich.text import Text

    table = Table(*columns, **style)
    for row in rows:
        # Escaped here as well, so that the width of a column is that of the text that is shown.
        cells = ("-" if cell is None else cell if isinstance(cell, Text) else visible(str(cell)) for cell in row)
        table.add_row(*(cell if isinstance(cell, Text) else Text(cell) for cell in cells))
    return table


def print_table(table: Table) -> None:
    """As wide as the terminal, with nothing cut; in a pipe or a file each row is one line."""

    for column in table.columns:
        column.overflow = "fold"
    console = make_console(highlight=False, markup=False)  # a name may hold what looks like markup
    if not console.is_terminal:
        console = make_console(highlight=False, markup=False, width=_PIPED_WIDTH)
    console.print(table)


def print_problem(text: str) -> None:
    """One red line, which the terminal wraps; without colour where NO_COLOR is set."""

    make_console().print(visible(text), style="red", highlight=False, markup=False, soft_wrap=True)


def package_versions() -> dict[str, str | None]:
    """The versions of Python, of this package, of those that it requires and of the model libraries.

    None for a required one that is not installed; the model libraries are left out then.
    """
    import platform
    import re
    from importlib.metadata import PackageNotFoundError, requires, version

    versions: dict[str, str | None] = {"python": platform.python_version()}
    for line in ("ragllava", *(requires("ragllava") or ())):
        name = re.split(r"[^\w.-]", line)[0]
        is_model = re.search(r"extra == .models", line) is not None
        if "extra ==" not in line or is_model:
            try:
                versions[name] = version(name)
            except PackageNotFoundError:
                if not is_model:
                    versions[name] = None
    return versions


def as_time(moment: datetime | None) -> str:
    """`2026-11-23 10:00:00 UTC`, `-` for None."""
    return f"{moment.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC" if moment else "-"


def _plain(value: Any) -> Any:
    if isinstance(value, datetime):
        return value.isoformat()
    if hasattr(value, "as_json"):
        return value.as_json()
    return asdict(value) if is_dataclass(value) and not isinstance(value, type) else str(value)
