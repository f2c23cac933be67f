"""The command line without a running system: help, wrong calls, exit codes, and what is printed how."""

from __future__ import annotations

import errno
import os
import signal
from collections.abc import Callable, Iterator
from dataclasses import fields, replace
from datetime import UTC, datetime, timedelta, timezone, tzinfo
from pathlib import Path

import click
import pytest
from rich.console import Console
from rich.table import Table

from ragllava.cli import options, progress
from ragllava.cli.main import COMMANDS, cli
from ragllava.cli.options import SHOWN_LINES
from ragllava.cli.services import interruptible
from ragllava.client import Client
from ragllava.errors import InvalidInput, LineError, ServiceUnavailable
from ragllava.jobs.states import JobState
from ragllava.jobs.views import JobView
from ragllava.records import JobKind, Progress
from ragllava.settings import Settings
from ragllava.training.finetune.presets import PRESETS, TrainingSettings
from tests.support.run_command import Run, runner


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    """Call the command line in an empty home; returns exit code, standard output and standard error."""
    for name in list(os.environ):
        if name.startswith("RAGLLAVA_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("RAGLLAVA_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    return runner(monkeypatch, capsys)


def all_commands(group: click.Group, *above: str) -> Iterator[tuple[str, click.Command]]:
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None, name
        yield " ".join((*above, name)), command
        if isinstance(command, click.Group):
            yield from all_commands(command, *above, name)


EVERY_COMMAND = dict(all_commands(cli))


# -- help


def test_the_list_of_commands_leads_to_commands_of_these_names() -> None:
    assert {name: EVERY_COMMAND[name].name for name in COMMANDS} == {name: name for name in COMMANDS}


@pytest.mark.parametrize("name", EVERY_COMMAND)
def test_every_command_and_each_of_its_options_has_a_help_text(name: str) -> None:
    command = EVERY_COMMAND[name]
    assert command.help and command.help.strip().endswith((".", ".\n"))
    silent = [option.name for option in command.params if isinstance(option, click.Option) and not option.help]
    assert silent == []


def test_help_lists_every_command_in_the_order_of_use(run: Run) -> None:
    code, out, _ = run("--help")
    assert code == 0
    listed = [line.split()[0] for line in out.partition("Commands:")[2].splitlines() if line[2:3].strip()]
    assert listed == list(COMMANDS)


# -- wrong calls: exit code 2, one line that says what is wrong, how to get help


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--nosuch"], "No such option '--nosuch'"),
        (["statsu"], "No such command 'statsu'. Did you mean 'status'?"),
        (["xyzzy"], "No such command 'xyzzy'"),
        (["jobs", "lst"], "No such command 'lst'"),
        (["jobs", "show"], "Missing argument 'JOB_ID'"),
        (["jobs", "show", "seven"], "'seven' is not a valid"),
        (["jobs", "show", "0"], "0 is not in the range"),
        (["jobs", "cancel", "9" * 30], "is not in the range"),
        (["results", "1"], "Missing option '-o'"),
        (["ingest", "--archive", "a"], "Missing argument 'PATHS...'"),
        (["submit", "q.jsonl"], "Missing option '--archive'"),
        (["ask", "what?", "--archive", "a", "--threshold", "1.5"], "neither auto nor a number from 0 to 1"),
        (["ask", "what?", "--archive", "a", "--threshold", "high"], "neither auto nor a number from 0 to 1"),
        (["ask", "what?", "--archive", "a", "--top-k", "0"], "0 is not in the range"),
        (["ask", "what?", "--archive", "a", "--timeout", "0"], "0.0 is not in the range"),
        (["up", "--answer-workers", "0"], "0 is not in the range"),
        (["demo", "--json", "."], "is a directory"),
    ],
)
def test_a_wrong_call_is_told_in_one_line(words: list[str], says: str, run: Run) -> None:
    code, out, err = run(*words)
    assert code == 2
    assert out == ""
    [line] = [line for line in err.splitlines() if line.startswith("Error: ")]
    assert says in line
    assert "--help" in err


def test_a_group_without_a_command_shows_its_help(run: Run) -> None:
    code, _, err = run("jobs")
    assert code == 2
    assert "Continue a paused job." in err


def test_train_lists_what_can_be_changed(run: Run) -> None:
    words = {word.strip(",.") for word in run("train", "--help")[1].split()}
    assert {*PRESETS, *(field.name for field in fields(TrainingSettings))} <= words


@pytest.mark.parametrize("option", [["--negatives", "2"], ["--bare-share", "0.1"]])
def test_what_does_nothing_for_a_generator_is_refused(option: list[str], run: Run) -> None:
    code, out, err = run("train", "generator", "--archive", "holidays", *option)
    assert (code, out) == (1, "")
    assert err == f"ragllava: {option[0]} has no effect on a generator; leave it out\n"


# -- no system runs: exit code 1, one sentence


@pytest.mark.parametrize(
    "words",
    [
        ["jobs", "list"],
        ["jobs", "show", "1"],
        ["jobs", "retry", "1"],
        ["archive", "list"],
        ["archive", "show", "holidays"],
        ["ask", "what?", "--archive", "holidays"],
        ["results", "1", "-o", "a.jsonl"],
        ["report", "1"],
        ["migrate"],
    ],
)
def test_without_a_system_the_home_and_the_way_to_start_one_are_named(
    words: list[str], run: Run, tmp_path: Path
) -> None:
    code, out, err = run(*words)
    assert (code, out) == (1, "")
    assert err == (
        f"ragllava: no database runs in the home {tmp_path / 'home'}: start the embedded services with `ragllava up`, "
        "or set RAGLLAVA_DATABASE_URL; if they run from another home, set RAGLLAVA_HOME to it\n"
    )


def test_settings_shows_where_each_value_comes_from(run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "ragllava.toml").write_text('profile = "base"\n')
    monkeypatch.setenv("RAGLLAVA_REDIS_URL", "redis://:secret@broker.example:6379/0")
    code, out, _ = run("settings", "--changed")
    assert code == 0
    rows = [line.split() for line in out.splitlines()]
    assert ["RAGLLAVA_PROFILE", "base", "ragllava.toml"] in rows
    assert ["RAGLLAVA_REDIS_URL", "redis://:***@broker.example:6379/0", "environment"] in rows
    assert len(rows) == 5  # the file, the head, these two and the home


def test_status_without_a_system_says_so_and_leaves_nothing_behind(run: Run, tmp_path: Path) -> None:
    code, out, _ = run("status")
    assert code == 1
    assert "run by no process" in out and "`ragllava up`" in out
    assert run("down") == (0, f"nothing runs in {tmp_path / 'home'}\n", "")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["results", "1", "-o", "a.txt"], "the name must end in .jsonl, .csv or .parquet"),
        (["demo", "--report", "none/report.html"], "none/report.html cannot be written: there is no folder none"),
        (["demo", "--json", "none/figures.json"], "none/figures.json cannot be written: there is no folder none"),
    ],
)
def test_what_can_be_told_at_once_is_told_before_anything_is_started(
    words: list[str], says: str, run: Run, tmp_path: Path
) -> None:
    code, out, err = run(*words)
    assert (code, out) == (1, "")
    assert err.startswith("ragllava: ") and says in err
    assert list(tmp_path.iterdir()) == []


def test_a_mistyped_setting_stops_every_command_but_not_help(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAGLLAVA_TPO_K", "5")
    assert run("--help")[0] == 0
    for words in (["jobs", "list"], ["up"], ["demo"], ["down"]):
        code, out, err = run(*words)
        assert (code, out) == (1, "")
        assert "unknown setting RAGLLAVA_TPO_K; did you mean RAGLLAVA_TOP_K?" in err


@pytest.mark.parametrize("command", ["up", "demo"])
@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("PROFILE", "huge", "RAGLLAVA_PROFILE=huge: no such profile"),
        ("DEVICE", "gpu", "RAGLLAVA_DEVICE=gpu: use auto, cpu, cuda or cuda:<number>"),
        ("DEVICE", "cuda:99", "RAGLLAVA_DEVICE=cuda:99: this machine has "),
    ],
)
def test_a_system_that_cannot_work_is_refused_before_anything_is_started(
    command: str, name: str, value: str, says: str, run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv(f"RAGLLAVA_{name}", value)
    code, _, err = run(command)
    assert code == 1
    assert err.startswith(f"ragllava: {says}")
    assert list(tmp_path.iterdir()) == []


# -- what a raised error becomes


@pytest.fixture
def raising(monkeypatch: pytest.MonkeyPatch, run: Run) -> Callable[[BaseException], tuple[int, str, str]]:
    """`ragllava migrate`, in the middle of which this error is raised."""

    def call(error: BaseException) -> tuple[int, str, str]:
        def fail(**_options: object) -> None:
            raise error

        monkeypatch.setattr(EVERY_COMMAND["migrate"], "callback", fail)
        return run("migrate")

    return call


Raising = Callable[[BaseException], tuple[int, str, str]]


def test_an_error_of_ours_is_its_sentence(raising: Raising) -> None:
    assert raising(ServiceUnavailable("the store is away")) == (1, "", "ragllava: the store is away\n")


def test_invalid_lines_are_listed_up_to_a_limit_and_then_what_to_do(raising: Raising) -> None:
    error = InvalidInput("q.jsonl", [LineError("empty_question", n, "the question is empty") for n in range(1, 41)])
    error.add_note("do this")
    code, _, err = raising(error)
    first, *others, last = err.splitlines()
    assert code == 1
    assert first == "ragllava: q.jsonl, line 1: the question is empty [empty_question] (39 more invalid lines)"
    assert others == [f"  line {n}: the question is empty [empty_question]" for n in range(2, SHOWN_LINES + 1)]
    assert last == "do this"


def test_an_error_of_the_system_names_the_file(raising: Raising) -> None:
    named = OSError(errno.EACCES, "Permission denied", "a.csv")
    assert raising(named) == (1, "", "ragllava: a.csv: Permission denied\n")
    assert raising(OSError(errno.ENOSPC, "No space left on device"))[2] == "ragllava: No space left on device\n"


def test_ctrl_c_ends_with_130(raising: Raising) -> None:
    code, out, err = raising(KeyboardInterrupt())
    assert (code, out, err.strip()) == (130, "", "stopped")


def test_a_fault_of_ours_keeps_its_traceback(raising: Raising) -> None:
    with pytest.raises(ZeroDivisionError):
        raising(ZeroDivisionError())


# -- what is printed how


def wide_table() -> Table:
    table = Table("name", "text", box=None)
    table.add_row("first", "word " * 60)
    table.add_row("second", "x" * 300)
    return table


def test_a_piped_table_has_one_line_for_each_row(capsys: pytest.CaptureFixture[str]) -> None:
    options.print_table(wide_table())
    _, first, second = capsys.readouterr().out.splitlines()
    assert first.split() == ["first"] + ["word"] * 60
    assert second.split() == ["second", "x" * 300]


def test_a_narrow_terminal_cuts_nothing(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Console, "is_terminal", True)
    monkeypatch.setenv("COLUMNS", "40")
    options.print_table(wide_table())
    out = capsys.readouterr().out
    assert out.count("word") == 60 and out.count("x") >= 300
    assert max(len(line.rstrip()) for line in out.splitlines()[1:]) <= 40


def test_a_problem_is_red_unless_colours_are_not_wanted(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Console, "is_terminal", True)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    options.print_problem("it is [broken]")
    assert capsys.readouterr().out == "\x1b[31mit is [broken]\x1b[0m\n"
    monkeypatch.setenv("NO_COLOR", "1")
    options.print_problem("it is [broken]")
    assert capsys.readouterr().out == "it is [broken]\n"


def test_times_are_printed_in_utc_and_written_in_iso_8601(capsys: pytest.CaptureFixture[str]) -> None:
    moment = datetime(2026, 11, 23, 12, 0, 5, 999, tzinfo=timezone(timedelta(hours=2)))
    assert options.as_time(moment) == "2026-11-23 10:00:05 UTC"
    assert options.as_time(None) == "-"
    options.print_json({"at": moment, "in": Path("ä")})
    assert capsys.readouterr().out == '{\n  "at": "2026-11-23T12:00:05.000999+02:00",\n  "in": "ä"\n}\n'


def job(kind: JobKind, total: int, counts: dict[str, int], error: str | None = None) -> JobView:
    created = datetime(2026, 11, 23, tzinfo=UTC)
    progress = Progress(total, counts)
    return JobView(7, kind, "holidays", JobState.COMPLETED, 0, {}, progress, error, None, created, None, None)


@pytest.mark.parametrize(
    ("shown", "line"),
    [
        (job(JobKind.INGEST, 9, {"stored": 7, "rejected": 2}), "job 7 completed: 9 files: 2 rejected, 7 stored"),
        (job(JobKind.ANSWER, 1, {"answered": 1}), "job 7 completed: 1 question: 1 answered"),
        (job(JobKind.ANSWER, 2, {}), "job 7 completed: 2 questions: none done yet"),
        (job(JobKind.INGEST, 1, {"rejected": 1}, "no"), "job 7 completed: 1 file: 1 rejected (no)"),
        (
            job(JobKind.REINDEX, 4, {"embedded": 3, "switched": 1}),
            "job 7 completed: 3 images and the gate: 3 embedded, 1 switched",
        ),
    ],
)
def test_the_outcome_of_a_job_is_one_line(shown: JobView, line: str) -> None:
    assert progress.outcome_line(shown) == line


@pytest.mark.parametrize(
    ("minutes", "counts", "line"),
    [
        (1, {"embedded": 600}, "10 images a second, about 40 s left"),
        (60, {"embedded": 100}, "0.0278 images a second, about 9 h 0 min left"),
        (1, {}, None),
    ],
)
def test_the_pace_of_a_running_job_tells_the_time_left(
    minutes: int, counts: dict[str, int], line: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Noon(datetime):
        @classmethod
        def now(cls, tz: tzinfo | None = None) -> datetime:  # type: ignore[override]
            return datetime(2026, 11, 23, 12, tzinfo=tz)

    monkeypatch.setattr(progress, "datetime", Noon)
    shown = replace(
        job(JobKind.REINDEX, 1000, counts),
        state=JobState.RUNNING,
        started_at=datetime(2026, 11, 23, 12, tzinfo=UTC) - timedelta(minutes=minutes),
    )
    assert progress.pace_line(shown) == line
    assert progress.pace_line(replace(shown, state=JobState.COMPLETED)) is None


# -- Ctrl-C


def test_ctrl_c_while_waiting_leaves_the_job_and_says_so(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_arguments: object, **_named: object) -> None:
        raise KeyboardInterrupt

    client = Client(Settings())
    monkeypatch.setattr(client.jobs, "wait", interrupt)
    with pytest.raises(SystemExit) as end:
        progress.wait_or_leave(client, 7, "waiting", Console())
    assert end.value.code == 130
    assert "job 7 keeps running in the background; `ragllava jobs show 7`" in capsys.readouterr().err


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_the_demo_is_interrupted_once_and_stops_undisturbed(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    stopped_in_order = False
    with pytest.raises(KeyboardInterrupt), interruptible():
        try:
            signal.raise_signal(number)
        finally:
            signal.raise_signal(number)  # impatience
            stopped_in_order = True
    assert stopped_in_order
    assert signal.getsignal(number) is before


def test_the_demo_at_its_end_is_not_interrupted() -> None:
    with interruptible() as uninterruptible:
        uninterruptible.set()
        signal.raise_signal(signal.SIGINT)


@pytest.mark.parametrize("name", [name for name, command in EVERY_COMMAND.items() if isinstance(command, click.Group)])
def test_a_group_shows_the_first_sentence_of_each_command_whole(name: str, run: Run) -> None:
    code, out, _ = run(*name.split(), "--help")
    assert code == 0
    assert "..." not in out.partition("Commands:")[2]


def test_ctrl_c_before_the_wait_has_begun_names_the_job_too(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(job_id: int) -> JobView:
        raise KeyboardInterrupt

    client = Client(Settings())
    monkeypatch.setattr(client.jobs, "get", interrupted)
    with pytest.raises(SystemExit) as ended:
        progress.follow(client, 7, "questions", wait=True, as_json=False)
    assert ended.value.code == 130
    assert capsys.readouterr().err.startswith("job 7 keeps running in the background; `ragllava jobs show 7`")
