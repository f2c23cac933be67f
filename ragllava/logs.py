"""Log lines: an event's name and its facts, then a sentence. Configured at the entry points only."""

from __future__ import annotations

import json
import logging
import time

from ragllava.errors import SettingsError
from ragllava.settings import load_settings
from ragllava.visible import visible

_STANDARD = frozenset(logging.makeLogRecord({}).__dict__) | {"message", "asctime", "taskName"}

_CHATTY = (
    "httpx",
    "urllib3",
    "PIL",
    "open_clip",
    "transformers",
    "kombu",
    "celery.app.trace",
    "celery.beat",
    "celery.worker.strategy",  # each tick
)


class FactsFormatter(logging.Formatter):
    """`2026-11-23T10:00:00Z INFO shard_done shard=4 job=2 | shard done`, or one JSON object for each line."""

    def __init__(self, *, as_json: bool = False) -> None:
        """`as_json` is for log collectors, the other form for people."""
        super().__init__()
        self._as_json = as_json

    def format(self, record: logging.LogRecord) -> str:
        """One line, except for a traceback, which follows its line."""
        facts = {name: value for name, value in record.__dict__.items() if name not in _STANDARD}
        action = str(facts.pop("action", record.name))
        when = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(record.created))
        trace = self.formatException(record.exc_info) if record.exc_info else None
        if self._as_json:
            line = {"time": when, "level": record.levelname, "action": action, "message": record.getMessage(), **facts}
            return json.dumps(line | ({"trace": trace} if trace else {}), default=str)  # ASCII only
        listed = "".join(f" {name}={_plain(value)}" for name, value in facts.items() if not name.startswith("data"))
        message = " ".join(record.getMessage().split("\n"))
        return visible(f"{when} {record.levelname} {action}{listed} | {message}" + (f"\n{trace}" if trace else ""))


def _plain(value: object) -> str:
    """Quoted if it has white space, so that a name from outside cannot imitate facts or lines."""
    text = str(value)
    return repr(text) if any(character.isspace() for character in text) else text


def configure_logging(level: int = logging.INFO) -> None:
    """Send all messages to standard error, those of chatty libraries only from WARNING up.

    RAGLLAVA_LOG_FORMAT chooses the form. Settings that are wrong are reported by whoever needs them, as text.
    """
    try:
        as_json = load_settings().log_format == "json"
    except SettingsError:
        as_json = False
    handler = logging.StreamHandler()
    handler.setFormatter(FactsFormatter(as_json=as_json))
    logging.basicConfig(level=level, handlers=[handler], force=True)
    for name in _CHATTY:
        logging.getLogger(name).setLevel(logging.WARNING)
