"""What questions are read from: a file by its name, the content of one, or rows."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ragllava.stages.answer.question_files import QuestionFile, StorePicture, read_questions

ROWS = "rows.jsonl"  # what a job of rows has as the name of its file

Source = str | Path | bytes | Iterable[str | Mapping[str, Any]]


def read_source(source: Source, store_picture: StorePicture) -> QuestionFile:
    """The questions of a source; rows are read as the lines of a file. Raises as `read_questions`."""
    if isinstance(source, bytes):
        return read_questions(source, name="standard input", store_picture=store_picture)
    if isinstance(source, str | Path):
        return read_questions(Path(source), name=str(source), store_picture=store_picture)
    rows = ({"question": row} if isinstance(row, str) else dict(row) for row in source)
    lines = "".join(json.dumps(row, ensure_ascii=False, default=str) + "\n" for row in rows)
    return read_questions(lines.encode(errors="surrogatepass"), name=ROWS, store_picture=store_picture)


def folder_of(source: Source) -> Path:
    """The folder within which paths of pictures are meant: that of the file, else the current one."""
    return Path(source).parent if isinstance(source, str | Path) else Path()
