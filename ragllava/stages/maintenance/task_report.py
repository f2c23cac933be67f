"""The report of a maintenance task."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from ragllava.jobs.isolation import Failures

SHOWN = 10  # of long lists in a report


@dataclass(frozen=True, slots=True)
class Report:
    """The result of a maintenance task: a sentence for the user, and figures with a few examples, as JSON.

    `failed`: a part could not be done, and needs attention.
    """

    summary: str
    figures: dict[str, Any] = field(default_factory=dict)
    failed: bool = False


def with_failures(report: Report, failures: Failures) -> Report:
    """The report, which says what failed. Raises the error of a service that was away for all parts."""
    failures.require_success()
    sentence = failures.sentence()
    if sentence is None:
        return report
    first = dict(list(failures.reasons.items())[:SHOWN])
    figures = report.figures | {"failures": {"number": len(failures.reasons), "first": first}}
    return Report(f"{report.summary}; {sentence}", figures, failed=True)


def shortened(items: Sequence[Any]) -> list[Any]:
    """The first items, for a report."""
    return list(items[:SHOWN])


def counted(number: int, noun: str, plural: str | None = None) -> str:
    """`1 blob`, `1,204 blobs`."""
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"


def mebibytes(size_bytes: int) -> str:
    """`1.2 MiB`."""
    return f"{size_bytes / 2**20:.1f} MiB"
