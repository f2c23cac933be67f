"""Log lines: what a person and a collector of logs read in them."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Iterator

import pytest

from ragllava.logs import FactsFormatter, configure_logging


def record(message: str = "shard done", **facts: object) -> logging.LogRecord:
    made = logging.makeLogRecord({"name": "ragllava.test", "levelname": "INFO", "msg": message} | facts)
    made.created = 1795428000.9
    return made


def test_a_line_has_time_level_action_facts_and_sentence() -> None:
    line = FactsFormatter().format(record(action="shard_done", shard=4, job=2))
    assert line == "2026-11-23T10:00:00Z INFO shard_done shard=4 job=2 | shard done"


def test_without_an_action_the_logger_is_named() -> None:
    assert FactsFormatter().format(record()) == "2026-11-23T10:00:00Z INFO ragllava.test | shard done"


def test_arguments_are_put_in() -> None:
    assert FactsFormatter().format(record("%d of %d", args=(3, 4))).endswith("| 3 of 4")


def test_text_from_outside_cannot_pass_for_a_fact_or_a_line() -> None:
    line = FactsFormatter().format(record("no such file: a\nb", source="a.png job=7\n2026 INFO forged"))
    assert line.count("\n") == 0
    assert r"source='a.png job=7\n2026 INFO forged'" in line
    assert line.endswith("| no such file: a b")


def test_a_traceback_follows_its_line() -> None:
    try:
        raise ValueError("what went wrong")
    except ValueError:
        failed = record("failed", exc_info=sys.exc_info())
    first, *trace = FactsFormatter().format(failed).splitlines()
    assert first.endswith("| failed")
    assert trace[0].startswith("Traceback") and trace[-1] == "ValueError: what went wrong"


def test_as_json_each_line_is_an_object_with_the_same_facts() -> None:
    try:
        raise ValueError("what went wrong")
    except ValueError:
        failed = record("two\nlines", action="shard_failed", shard=4, where={"a"}, exc_info=sys.exc_info())
    line = FactsFormatter(as_json=True).format(failed)
    assert line.count("\n") == 0
    fields = json.loads(line)
    assert fields.pop("trace").endswith("ValueError: what went wrong")
    assert fields == {
        "time": "2026-11-23T10:00:00Z",
        "level": "INFO",
        "action": "shard_failed",
        "message": "two\nlines",
        "shard": 4,
        "where": "{'a'}",
    }


@pytest.fixture
def restored_logging() -> Iterator[None]:
    """Logging is the process's own; leave it to the next test as it was."""
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


@pytest.mark.usefixtures("restored_logging")
def test_configured_lines_go_to_standard_error_and_chatty_libraries_are_quiet(
    capsys: pytest.CaptureFixture[str],
) -> None:
    configure_logging()
    logging.getLogger("ragllava.somewhere").info("heard", extra={"action": "spoken"})
    logging.getLogger("celery.worker.strategy").info("a task was received")
    logging.getLogger("urllib3.connectionpool").info("a connection was opened")
    logging.getLogger("urllib3.connectionpool").warning("a connection broke")
    output = capsys.readouterr()
    assert output.out == ""
    heard, broke = output.err.splitlines()
    assert heard.endswith("INFO spoken | heard")
    assert broke.endswith("| a connection broke")


@pytest.mark.usefixtures("restored_logging")
def test_a_setting_chooses_json(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("RAGLLAVA_LOG_FORMAT", "json")
    configure_logging()
    logging.getLogger("ragllava.somewhere").info("heard", extra={"action": "spoken", "shard": 4})
    fields = json.loads(capsys.readouterr().err)
    assert (fields["action"], fields["message"], fields["shard"]) == ("spoken", "heard", 4)


@pytest.mark.usefixtures("restored_logging")
def test_wrong_settings_do_not_stop_the_log(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RAGLLAVA_LOG_FORMAT", "xml")
    configure_logging()
    logging.getLogger("ragllava.somewhere").info("heard")
    assert capsys.readouterr().err.endswith("| heard\n")


def test_text_from_outside_cannot_control_a_terminal() -> None:
    line = FactsFormatter().format(record("a\x1b[2Jb", source="a\x1b]0;x\x07.png"))
    assert "\x1b" not in line and "\x07" not in line and r"a\x1b[2Jb" in line
