"""Text from outside cannot control the terminal that a command prints to."""

from __future__ import annotations

import ast
import io
import json
from pathlib import Path

import click
import pytest

from ragllava.cli.main import COMMANDS, main
from ragllava.cli.options import Problem, make_table, print_json, print_result
from ragllava.cli.terminal import echo, make_console
from ragllava.visible import visible

HOSTILE = "a\x1b]0;owned\x07b\x1b[2J\x9b31m\r\x7f\u202etxt.exe\u2066"
SHOWN = "a\\x1b]0;owned\\x07b\\x1b[2J\\x9b31m\\r\\x7f\\u202etxt.exe\\u2066"
CLI = Path(__file__).parents[3] / "ragllava" / "cli"


def harmless(output: str) -> bool:
    return not any((ord(letter) < 32 and letter not in "\t\n") or 127 <= ord(letter) < 160 for letter in output)


def test_control_characters_become_escapes_and_the_rest_stays() -> None:
    assert visible(HOSTILE) == SHOWN
    assert visible("ümläut 日本\tx\ny") == "ümläut 日本\tx\ny"
    assert visible("\ud800") == "\\ud800"


def test_lines_tables_problems_and_json_are_harmless(capsys: pytest.CaptureFixture[str]) -> None:
    table = make_table(("name", HOSTILE), [(HOSTILE, 1)])
    print_result(None, [HOSTILE, table, Problem(HOSTILE)], as_json=False)
    print_json({"caption": HOSTILE})
    echo(HOSTILE, err=True)
    printed = capsys.readouterr()
    assert harmless(printed.out) and harmless(printed.err)
    assert printed.out.count(SHOWN) == 3, "a line, a cell and a problem; rich drops some controls of a header"
    assert printed.err == f"{SHOWN}\n"
    assert json.loads(printed.out[printed.out.index("{") :]) == {"caption": HOSTILE}


def test_colours_of_our_own_stay_and_those_of_texts_do_not() -> None:
    stream = io.StringIO()
    make_console(file=stream, force_terminal=True, color_system="standard").print(
        HOSTILE, style="red", highlight=False, markup=False
    )
    assert "\x1b[31m" in stream.getvalue()
    assert "\x1b]0" not in stream.getvalue() and "\x1b[2J" not in stream.getvalue() and "\x9b" not in stream.getvalue()


@pytest.mark.parametrize(
    "arguments", [("submit", f"{HOSTILE}.csv", "--archive", "a"), (HOSTILE,), ("ask", f"--{HOSTILE}")]
)
def test_errors_are_harmless(
    arguments: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["ragllava", *arguments])
    with pytest.raises(SystemExit):
        main()
    assert harmless(capsys.readouterr().err)


def test_every_command_prints_through_the_border() -> None:
    assert COMMANDS and click
    for path in CLI.rglob("*.py"):
        if path.name == "terminal.py":
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call):
                called = ast.unparse(node.func)
                assert called not in ("click.echo", "click.secho", "print", "Console"), f"{path}:{node.lineno}"
