"""`ragllava` called in this process, with the words that a person would type."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import pytest

from ragllava.cli.main import main
from tests.support.progress_lines import without_progress

# Words in; exit code, standard output, and standard error without progress lines out.
Run = Callable[..., tuple[int, str, str]]


def runner(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """A function that calls `ragllava`, in the environment and the folder of this moment."""

    def call(*words: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["ragllava", *map(str, words)])
        code: Any = 0
        try:
            main()
        except SystemExit as end:
            code = end.code
        out, err = capsys.readouterr()
        return int(code or 0), out, without_progress(err)

    return call
