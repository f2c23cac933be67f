"""The records of a CSV file, so that no line of it gets lost in one that is broken."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator


def csv_records(lines: Iterable[str], delimiter: str) -> Iterator[tuple[int, list[str] | str]]:
    """Every record with the line that it starts on, or a sentence in its place that says why there is none.

    Quoted cells may span lines. A quote that is not closed takes lines into its record that were meant as records:
    each of them that is not blank gets a sentence of its own.
    """
    taken: list[str] = []  # the lines of the record that is being read

    def noted() -> Iterator[str]:
        for line in lines:
            taken.append(line)
            yield line

    # Strict, so that a quote that nobody closes is an error and not one cell of a hundred lines.
    reader = csv.reader(noted(), delimiter=delimiter, strict=True)
    while True:
        taken.clear()
        first = reader.line_num + 1
        try:
            yield first, next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            yield first, f"the record is not valid CSV ({error}); is each quote in it closed?"
            for line, raw in enumerate(taken[1:], start=first + 1):
                if raw.strip():
                    yield line, f"a quote in the record of line {first} is not closed before this line"
