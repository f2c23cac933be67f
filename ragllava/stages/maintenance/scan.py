"""Maintenance tasks that compare: archives with their buckets, and images with their vectors."""

from __future__ import annotations

from collections import Counter
from typing import Any

from sqlalchemy import Connection

from ragllava.jobs.runner import ShardContext
from ragllava.stages.buckets.sync import scan
from ragllava.stages.maintenance.task_report import Report, TaskRequest, counted, shortened
from ragllava.stages.reindex.gaps import Gap, find_gaps
from ragllava.stages.resources import Resources
from ragllava.stores.archives import archive
from ragllava.stores.archives.archive import Archive


def scan_buckets(context: ShardContext[Resources], request: TaskRequest) -> Report:
    """Repair what events have lost (docs/reliability.md D13). What is new is queued as ingest jobs; the next tick
    dispatches them."""
    name = None
    if request.archive_id is not None:
        [name] = [one.name for one in context.read(_archives, request)]
    reports = scan(context.engine, context.settings, context.resources.objects, name)
    different = [report for report in reports if report.found_differences]
    listed = sum(report.listed for report in reports)
    summary = f"listed {counted(listed, 'object')} of {counted(len(reports), 'binding')}"
    addresses = ", ".join(report.address for report in different)
    summary += f"; repaired {addresses}" if different else "; nothing differed"
    problems = [f"{report.address} was not compared: {report.problem}" for report in reports if report.problem]
    figures = {"bindings": [report.as_json() for report in reports]}
    return Report("; ".join([summary, *problems]), figures, failed=bool(problems))


def report_gaps(context: ShardContext[Resources], request: TaskRequest) -> Report:
    """Name the images that no question can find."""
    found: dict[str, list[Gap]] = {}
    for one in context.read(_archives, request):
        context.check()
        found[one.name] = context.read(find_gaps, one.archive_id)
    number = sum(map(len, found.values()))
    where = ", ".join(f"{name} {len(gaps)}" for name, gaps in found.items() if gaps)
    summary = f"{counted(number, 'image')} without a vector ({where})" if number else "every image has its vector"
    return Report(summary, {"archives": [_as_figures(name, gaps) for name, gaps in found.items() if gaps]})


def _as_figures(name: str, gaps: list[Gap]) -> dict[str, Any]:
    reasons = Counter(gap.reason.value for gap in gaps)
    return {
        "archive": name,
        "reasons": dict(sorted(reasons.items())),
        "images": shortened([{"source": gap.source, "why": gap.explanation} for gap in gaps]),
    }


def _archives(connection: Connection, request: TaskRequest) -> list[Archive]:
    known = archive.list_archives(connection)
    return [one for one in known if request.archive_id in (None, one.archive_id)]
