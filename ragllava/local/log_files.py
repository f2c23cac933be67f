"""The log files of a home: their last lines, and what is added to them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from ragllava.errors import UsageError
from ragllava.imaging.decode import printable
from ragllava.local.home import Home

_POLL_S = 0.3
_TAIL_BYTES = 1 << 20  # the last lines of a file are searched for within so many


def find_logs(home: Home, names: Sequence[str]) -> list[Path]:
    """The logs of these names (`answer` stands for `worker-answer` too), else all. Raises UsageError for none."""
    files = sorted(home.logs.glob("*.log"))
    if not files:
        raise UsageError(f"there are no logs in {home.logs}: `ragllava up` has not run from this home")
    chosen = [file for file in files if not names or {file.stem, file.stem.removeprefix("worker-")} & set(names)]
    missing = [name for name in names if not any(name in (f.stem, f.stem.removeprefix("worker-")) for f in chosen)]
    if missing:
        raise UsageError(f"there is no log {missing[0]}; there are {', '.join(file.stem for file in files)}")
    return chosen


def last_log_lines(file: Path, count: int) -> list[str]:
    """The last lines of a log, as printable text."""
    with file.open("rb") as stream:
        stream.seek(max(0, file.stat().st_size - _TAIL_BYTES))
        lines = stream.read().decode(errors="replace").splitlines()
    return [_plain(line) for line in lines[-count:]] if count else []


def new_log_lines(
    files: Iterable[Path], wait: Callable[[], None] = lambda: time.sleep(_POLL_S)
) -> Iterator[tuple[Path, str]]:
    """Each line that is added to one of the logs from now on, with its file; never ends.

    A file that has become shorter, because another run began it again, is read from its beginning.
    """
    read = {file: file.stat().st_size for file in files}
    while True:
        for file, start in read.items():
            size = file.stat().st_size if file.exists() else 0
            if size == start:
                continue
            with file.open("rb") as stream:
                stream.seek(start if size > start else 0)
                content = stream.read()
            end = content.rfind(b"\n") + 1  # the beginning of a line is left for the next look
            read[file] = (start if size > start else 0) + end
            yield from ((file, _plain(line)) for line in content[:end].decode(errors="replace").splitlines())
        wait()


def _plain(line: str) -> str:
    return printable(line.replace("\t", "    "))
