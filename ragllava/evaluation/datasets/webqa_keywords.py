"""The keywords of WebQA's answers, and answers of others to its questions, from the tables of its public baseline.

The official measure compares answers with keywords ("red") and not with sentences ("The door is red."). The keywords of
the split val are published in one place only: beside the answers of the baseline models, in tab-separated tables with
the columns Guid, Qcate, A, Keywords_A and Output (WebQnA/WebQA on GitHub, `baseline_output_files`).
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ragllava.errors import InvalidInput, LineError
from ragllava.evaluation.datasets.files import BadRow, read_text
from ragllava.stages.record_files.layouts import Record, check_all

_COLUMNS = ("Guid", "Qcate", "A", "Keywords_A", "Output")
_FOLDERS = (
    "",
    "Baseline_prediction_files_on_Val",
    "baseline_output_files/Baseline_prediction_files_on_Val",
    "WebQA/baseline_output_files/Baseline_prediction_files_on_Val",
)
_FILES = "img_queries_*_{split}_*.tsv"
_PLACEHOLDERS = frozenset({"", "tbd", "tba", "todo", "n/a"})


@dataclass(frozen=True, slots=True)
class AnsweredRow:
    """One question of a table. `keywords` is None where the table has a placeholder; `output` is the best answer."""

    guid: str
    category: str
    answers: tuple[str, ...]
    keywords: str | None
    output: str

    @property
    def reference(self) -> str:
        """The keywords; without them, the first answer."""
        return self.keywords or self.answers[0]


def is_placeholder(text: str) -> bool:
    """Whether `text` stands for an answer that is not given: "TBD"."""
    return text.strip(' ."').lower() in _PLACEHOLDERS


def find_keyword_tables(folder: Path, split: str) -> list[Path]:
    """The baseline's tables of image questions of this split, in the folder of the data set, as they are published."""
    pattern = _FILES.format(split=split)
    return sorted(path for name in _FOLDERS for path in (folder / name).glob(pattern))


def read_keywords(tables: Iterable[Path]) -> dict[str, str]:
    """The keywords by guid; of two tables the first one's."""
    keywords: dict[str, str] = {}
    for table in tables:
        for row in read_table(table):
            if row.keywords is not None:
                keywords.setdefault(row.guid, row.keywords)
    return keywords


def read_table(path: Path) -> list[AnsweredRow]:
    """The rows of a table. InvalidInput: columns are missing, or rows are wrong."""
    head, *lines = read_text(path).split("\n")
    columns = head.strip("\r").split("\t")
    missing = next((name for name in _COLUMNS if name not in columns), None)
    if missing is not None:
        message = f"expected the tab-separated columns {', '.join(_COLUMNS)}, {missing} is missing"
        raise InvalidInput(str(path), [LineError("missing_column", 1, message)])

    def read(row: Record) -> AnsweredRow:
        cells = row.value.split("\t")
        if len(cells) != len(columns):
            raise BadRow(f"expected {len(columns)} columns between tabs, found {len(cells)}")
        entry = dict(zip(columns, cells, strict=True))
        answers = [text for text in _texts(entry["A"], "A") if not is_placeholder(text)]
        keywords = entry["Keywords_A"].strip()
        given = None if is_placeholder(keywords) else keywords
        if given is None and not answers:
            raise BadRow("neither 'Keywords_A' nor 'A' holds an answer")
        outputs = _texts(entry["Output"], "Output")
        return AnsweredRow(
            entry["Guid"].strip(), entry["Qcate"].strip(), tuple(answers), given, next(iter(outputs), "")
        )

    rows = [Record(number, line.strip("\r")) for number, line in enumerate(lines, start=2) if line.strip()]
    return check_all(path, rows, read)


def _texts(cell: str, name: str) -> list[str]:
    try:
        value: Any = json.loads(cell)
    except json.JSONDecodeError:
        value = None
    if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
        raise BadRow(f"{name!r} must be a JSON list of texts, found {cell!r:.80}")
    return value
