"""Result files out: one line for every input line, as JSONL, CSV or Parquet, and the file of errors.

JSONL and Parquet contain everything as it is. CSV is for people and spreadsheets: it begins with a byte order mark, by
which Excel recognises UTF-8; all cells are quoted; evidence is in numbered columns; and where a spreadsheet would read
a formula, an apostrophe is in front of it (docs/reliability.md D16).
"""

from __future__ import annotations

import csv
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

from ragllava.errors import UsageError
from ragllava.json_records import to_json, write_json_lines
from ragllava.metadata import Metadata
from ragllava.records import Answer, AnswerStatus, Candidate, Change, FileFormat, Question, evidence_of
from ragllava.stages.results.output_files import output_file

_MODEL_KEYS = ("index", "reranker", "generator", "prompt", "threshold", "retrieval", "depth")
_EVIDENCE_KEYS = (
    "image_id",
    "source",
    "uri",
    "caption",
    "origin",
    "retrieval_rank",
    "retrieval_score",
    "caption_rank",
    "caption_score",
    "relevance",
)
_PREVIOUS_EVIDENCE_KEYS = ("image_id", "source")
_ROWS_PER_GROUP = 10_000
# What begins a formula, also in full width. A tab or a line end before it is skipped by some spreadsheets.
_FORMULA = re.compile(r"['\u200b\ufeff]*[=+\-@\uff1d\uff0b\uff0d\uff20\t\r\n]")
# A program that separates cells by semicolons or tabs, or that ignores quotes, begins a cell after these.
_INNER_FORMULA = re.compile(r"([;\t\r\n]['\u200b\ufeff]*)(?=[=+\-@\uff1d\uff0b\uff0d\uff20])")


@dataclass(frozen=True, slots=True)
class Previous:
    """The outcome of the same line in the job that is refreshed; `status` None: it had none.

    `evidence` has the id and source of each picture. `changes` are the reasons why the line was asked again, if it was.
    """

    job_id: int
    status: AnswerStatus | None
    answer: str | None
    evidence: tuple[tuple[int, str], ...]
    changes: tuple[Change, ...] = ()


@dataclass(frozen=True, slots=True)
class ResultRow:
    """The outcome of one input line. `custom_id` and `question` are None where the line was not a valid question.

    `candidates` are all retrieved images, in any order; those with an `evidence_no` are the evidence. `models` is
    a ModelStamp as JSON, None where no model ran. A result has `error_code` and `error` or neither. `previous` is set
    in the results of a refresh, in every row. `metadata` has those of the evidence by image id, where they were asked
    for. `given` has the further columns of the input line, in the results of a file that has any. `job_id` and
    `archive` are None where no job asked the question. `picture` is the sha256 of the picture that the question was
    asked with; with `of_pictures`, of a job with such questions, every row has the key. Tokens as in an Answer.
    """

    line: int
    custom_id: str | None
    question: str | None
    status: AnswerStatus
    answer: str | None = None
    confidence: float | None = None
    candidates: tuple[Candidate, ...] = ()
    models: dict[str, Any] | None = None
    note: str | None = None
    error_code: str | None = None
    error: str | None = None
    previous: Previous | None = None
    metadata: Mapping[int, Metadata] | None = None
    job_id: int | None = None
    archive: str | None = None
    given: dict[str, Any] | None = None
    picture: str | None = None
    of_pictures: bool = False
    prompt_tokens: int | None = None
    completion_tokens: int | None = None

    @classmethod
    def of(cls, question: Question, answer: Answer) -> ResultRow:
        """The row of a question that was just answered."""
        return cls(
            line=question.line,
            custom_id=question.custom_id,
            question=question.text,
            status=answer.status,
            answer=answer.text,
            confidence=answer.confidence,
            candidates=answer.candidates,
            models=to_json(answer.models),
            note=answer.note,
            error_code=answer.error_code,
            error=answer.error,
            picture=question.picture,
            prompt_tokens=answer.prompt_tokens,
            completion_tokens=answer.completion_tokens,
        )

    @property
    def evidence(self) -> list[Candidate]:
        """The kept candidates in rank order."""
        return evidence_of(self.candidates)

    @property
    def has_changed(self) -> bool:
        """Whether the answer differs from the previous one."""
        previous = self.previous
        return previous is not None and (previous.status, previous.answer) != (self.status, self.answer)

    def as_json(self) -> dict[str, Any]:
        """As written into result files: the same keys in every row of a job; scores to 6 decimals."""
        error = None
        if self.error_code is not None or self.error is not None:
            error = {"code": self.error_code, "message": self.error, "line": self.line}
        return {
            "custom_id": self.custom_id,
            "line": self.line,
            "question": self.question,
            **({"picture": self.picture} if self.of_pictures or self.picture else {}),
            "status": str(self.status),
            "answer": self.answer,
            "confidence": _rounded(self.confidence),
            "evidence": [_evidence_json(candidate) | self._metadata_of(candidate) for candidate in self.evidence],
            "models": self._models_json(),
            "note": self.note,
            "error": error,
            "job": self.job_id,
            "archive": self.archive,
            **({"input": self.given} if self.given is not None else {}),
            **({"previous": self._previous_json(self.previous)} if self.previous else {}),
        }

    def _metadata_of(self, candidate: Candidate) -> dict[str, Any]:
        return {} if self.metadata is None else {"metadata": self.metadata.get(candidate.image.image_id, {})}

    def _previous_json(self, previous: Previous) -> dict[str, Any]:
        before = [image_id for image_id, _ in previous.evidence]
        return {
            "job": previous.job_id,
            "status": str(previous.status) if previous.status else None,
            "answer": previous.answer,
            "evidence": [{"image_id": image_id, "source": source} for image_id, source in previous.evidence],
            "asked_again": bool(previous.changes),
            "because": [change.value for change in previous.changes],
            "changed": self.has_changed,
            "evidence_changed": before != [candidate.image.image_id for candidate in self.evidence],
        }

    def _models_json(self) -> dict[str, Any] | None:
        if self.models is None:
            return None
        stamp = {key: self.models.get(key) for key in _MODEL_KEYS}
        return stamp | {"threshold": _rounded(stamp["threshold"])}


def write_results(  # noqa: PLR0913 - each says which columns there are
    rows: Iterable[ResultRow],
    path: Path,
    format: FileFormat,
    *,
    top_n: int,
    is_refresh: bool = False,
    with_metadata: bool = False,
    columns: Sequence[str] = (),
    of_pictures: bool = False,
) -> int:
    """Write all rows, in the order given, and return how many; `path` appears only when it is complete.

    `with_metadata` tells whether the rows have metadata, which are one JSON text for each image in CSV and Parquet;
    `columns` are the further columns of the input file, in a CSV `input_…`, in Parquet one JSON text. `of_pictures`
    tells whether a question of the job was asked with a picture.

    `top_n` is the job's limit of evidence, so that every CSV of it has the same columns; a row with more is a
    ValueError. The CSV of a refresh has columns for the previous outcome. Raises UsageError when the file cannot be
    written there.
    """
    if format is FileFormat.XLSX:
        raise UsageError(f"{path}: results are written as JSONL, CSV or Parquet")
    with output_file(path) as part:
        if format is FileFormat.JSONL:
            return write_json_lines((_with_input(row, columns).as_json() for row in rows), part)
        empty = _empty_row(is_refresh, with_metadata, columns, of_pictures)
        if format is FileFormat.CSV:
            return _write_csv(rows, part, top_n, empty)
        return _write_parquet(rows, part, empty)


def write_errors(rows: Iterable[ResultRow], path: Path) -> int:
    """Write the error file, JSONL of the rows that are failed, dead or expired, and return how many."""
    lines = (
        {"custom_id": row.custom_id, "line": row.line, "code": row.error_code, "message": row.error}
        for row in rows
        if row.status in (AnswerStatus.FAILED, AnswerStatus.DEAD, AnswerStatus.EXPIRED)
    )
    with output_file(path) as part:
        return write_json_lines(lines, part)


def _rounded(value: float | None) -> float | None:
    # JSON has no NaN; one such score must not make the file unreadable.
    return None if value is None or not math.isfinite(value) else round(float(value), 6)


def _evidence_json(candidate: Candidate) -> dict[str, Any]:
    return {
        "image_id": candidate.image.image_id,
        "source": candidate.image.source,
        "uri": candidate.image.uri,
        "caption": candidate.image.caption,
        "origin": candidate.origin.value,
        "retrieval_rank": candidate.retrieval_rank + 1,
        "retrieval_score": _rounded(candidate.retrieval_score),
        "caption_rank": None if candidate.caption_rank is None else candidate.caption_rank + 1,
        "caption_score": _rounded(candidate.caption_score),
        "relevance": _rounded(candidate.relevance),
    }


def _empty_row(is_refresh: bool, with_metadata: bool, columns: Sequence[str], of_pictures: bool) -> ResultRow:
    """A row that has the keys of all rows of a job."""
    previous = Previous(0, None, None, ()) if is_refresh else None
    metadata: Mapping[int, Metadata] | None = {} if with_metadata else None
    row = ResultRow(0, None, None, AnswerStatus.FAILED, previous=previous, metadata=metadata, of_pictures=of_pictures)
    return _with_input(row, columns)


def _with_input(row: ResultRow, columns: Sequence[str]) -> ResultRow:
    """The row with the further columns of its line, in the order of the file; None for those that it lacks."""
    if not columns:
        return row
    return replace(row, given={name: (row.given or {}).get(name) for name in columns})


def _flat_json(row: ResultRow) -> dict[str, Any]:
    """As `ResultRow.as_json`, with metadata as JSON text."""
    record = row.as_json()
    for image in record["evidence"]:
        if "metadata" in image:
            image["metadata"] = json.dumps(image["metadata"], ensure_ascii=False)
    if "input" in record:
        record["input"] = json.dumps(record["input"], ensure_ascii=False)
    return record


def _evidence_keys(row: ResultRow) -> Sequence[str]:
    return _EVIDENCE_KEYS if row.metadata is None else (*_EVIDENCE_KEYS, "metadata")


# CSV


def _csv_cells(row: ResultRow, top_n: int) -> dict[str, Any]:
    """The cells of a row by the names of their columns, which depend on `top_n` and on which fields the row has."""
    record = _flat_json(row)
    if len(record["evidence"]) > top_n:
        raise ValueError(f"line {row.line} has {len(record['evidence'])} images of evidence, but top_n is {top_n}")
    first = ("custom_id", "line", "question", "picture", "status", "answer", "confidence")
    cells = {key: record[key] for key in first if key in record}
    cells |= _evidence_cells(record["evidence"], _evidence_keys(row), top_n)
    cells |= {f"model_{key}": record["models"] and record["models"][key] for key in _MODEL_KEYS}
    cells |= {"note": record["note"], "error_code": row.error_code, "error": row.error}
    cells |= {"job": record["job"], "archive": record["archive"]}
    cells |= {f"input_{name}": _cell(value) for name, value in (row.given or {}).items()}
    for key, value in record.get("previous", {}).items():
        if key == "evidence":
            evidence = _evidence_cells(value, _PREVIOUS_EVIDENCE_KEYS, top_n)
            cells |= {f"previous_{name}": cell for name, cell in evidence.items()}
        elif isinstance(value, bool):
            cells[f"previous_{key}"] = str(value).lower()
        else:
            cells[f"previous_{key}"] = ", ".join(value) if isinstance(value, list) else value
    return cells


def _cell(value: Any) -> Any:
    """A JSON value as a cell; objects and lists as JSON text."""
    return json.dumps(value, ensure_ascii=False) if isinstance(value, dict | list | bool) else value


def _evidence_cells(evidence: Sequence[dict[str, Any]], keys: Sequence[str], top_n: int) -> dict[str, Any]:
    """The cells of `top_n` images; None for those that are missing."""
    return {
        f"evidence_{no + 1}_{key}": evidence[no][key] if no < len(evidence) else None
        for no in range(top_n)
        for key in keys
    }


def _write_csv(rows: Iterable[ResultRow], path: Path, top_n: int, empty: ResultRow) -> int:
    count = 0
    columns = _csv_cells(empty, top_n)
    given = list(empty.given or {})
    with path.open("w", encoding="utf-8-sig", newline="") as file:
        writer = csv.DictWriter(file, list(columns), quoting=csv.QUOTE_ALL)
        writer.writerow({name: _harmless(name) for name in columns})  # some names are the user's
        for row in rows:
            count += 1
            cells = _csv_cells(_with_input(row, given), top_n)
            writer.writerow({name: _harmless(cell) for name, cell in cells.items()})
    return count


def _harmless(cell: Any) -> Any:
    """A text with one more apostrophe before each place where a formula could begin; remove them to restore the text.

    Numbers stay as they are: they cannot contain a formula.
    """
    if not isinstance(cell, str):
        return cell
    cell = _INNER_FORMULA.sub(r"\1'", cell)
    return f"'{cell}" if _FORMULA.match(cell) else cell


# Parquet


def _parquet_schema(empty: ResultRow) -> Any:
    import pyarrow as pa

    text = pa.string()
    types = dict.fromkeys(("line", "job", "image_id", "retrieval_rank", "caption_rank"), pa.int64())
    types |= dict.fromkeys(("confidence", "retrieval_score", "caption_score", "relevance", "threshold"), pa.float64())
    types |= dict.fromkeys(("asked_again", "changed", "evidence_changed"), pa.bool_())

    def struct(keys: Iterable[str], **nested: Any) -> Any:
        return pa.struct([(key, (types | nested).get(key, text)) for key in keys])

    record = empty.as_json()
    previous_evidence = pa.list_(struct(_PREVIOUS_EVIDENCE_KEYS))
    row = struct(
        record,
        evidence=pa.list_(struct(_evidence_keys(empty))),
        models=struct(_MODEL_KEYS),
        error=struct(("code", "message", "line")),
        previous=struct(record.get("previous", ()), evidence=previous_evidence, because=pa.list_(text)),
    )
    return pa.schema(list(row))


def _write_parquet(rows: Iterable[ResultRow], path: Path, empty: ResultRow) -> int:
    import pyarrow as pa
    from pyarrow import parquet

    count = 0
    remaining = iter(rows)
    schema = _parquet_schema(empty)
    given = list(empty.given or {})
    with parquet.ParquetWriter(path, schema) as writer:
        while group := [_flat_json(_with_input(row, given)) for row in islice(remaining, _ROWS_PER_GROUP)]:
            writer.write_table(pa.Table.from_pylist(group, schema=schema))
            count += len(group)
    return count
