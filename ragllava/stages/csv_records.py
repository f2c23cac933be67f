"""Read the records of a CSV file so that a broken record hides no other line."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator


def csv_records(lines: Iterable[str], delimiter: str) -> Iterator[tuple[int, list[str] | str]]:
    """Every record with the number of its first line; a broken record is replaced by a sentence with the reason.

    Quoted cells may span lines. An unclosed quote pulls later lines into its record: there is a sentence for each of
    these lines that is not blank.
    """
    consumed: list[str] = []  # the lines of the current record

    def lines_consumed() -> Iterator[str]:
        for line in lines:
            consumed.append(line)
            yield line

    # Strict, so that an unclosed quote is an error and not one cell of a hundred lines.
    reader = csv.reader(lines_consumed(), delimiter=delimiter, strict=True)
    while True:
        consumed.clear()
        first = reader.line_num + 1
        try:
            yield first, next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            yield first, f"the record is not valid CSV ({error}); is each quote in it closed?"
            for line, raw in enumerate(consumed[1:], start=first + 1):
                if raw.strip():
                    yield line, f"a quote in the record of line {first} is not closed before this line"
