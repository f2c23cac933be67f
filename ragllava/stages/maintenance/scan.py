"""Maintenance tasks that compare archives with their buckets, and images with their vectors."""

from __future__ import annotations

from collections import Counter
from typing import Any

from sqlalchemy import Connection

from ragllava.jobs.isolation import Failures
from ragllava.jobs.runner import ShardContext
from ragllava.stages.buckets.scanning import scan
from ragllava.stages.maintenance.task_report import Report, counted, shortened, with_failures
from ragllava.stages.reindex.gaps import Gap, find_gaps
from ragllava.stages.resources import Resources
from ragllava.stores.archives import archive
from ragllava.stores.archives.archive import Archive


def scan_buckets(context: ShardContext[Resources]) -> Report:
    """Repair what lost events have missed (docs/reliability.md D13). New pictures are queued as ingest jobs, which the
    next tick dispatches."""
    name = context.read(_archives, context.lease.archive_id)[0].name if context.lease.archive_id else None
    reports = scan(context.engine, context.settings, context.resources.objects, name)
    different = [report for report in reports if report.found_differences]
    listed = sum(report.listed for report in reports)
    summary = f"listed {counted(listed, 'object')} of {counted(len(reports), 'binding')}"
    addresses = ", ".join(report.address for report in different)
    summary += f"; repaired {addresses}" if different else "; nothing differed"
    problems = [f"{report.address} was not compared: {report.problem}" for report in reports if report.problem]
    problems += [
        f"{counted(report.held, 'object')} of {report.address} are gone at once, so their pictures stay: "
        "`ragllava archive scan NAME --allow-removals` lets them go"
        for report in reports
        if report.held
    ]
    figures = {"bindings": [report.as_json() for report in reports]}
    return Report("; ".join([summary, *problems]), figures, failed=bool(problems))


def report_gaps(context: ShardContext[Resources]) -> Report:
    """Report the images that no search finds, and keep their numbers for the metrics."""
    gaps_of: dict[str, list[Gap]] = {}
    failures = Failures()
    for selected in context.read(_archives, context.lease.archive_id):
        context.check()
        gaps = failures.run(selected.name, context.read, find_gaps, selected.archive_id)
        if gaps is not None:
            context.commit(archive.note_gaps, selected.archive_id, _reasons(gaps))
        if gaps:
            gaps_of[selected.name] = gaps
    total = sum(map(len, gaps_of.values()))
    counts = ", ".join(f"{name} {len(gaps)}" for name, gaps in gaps_of.items())
    summary = f"{counted(total, 'image')} without a vector ({counts})" if total else "every image has its vector"
    report = Report(summary, {"archives": [_as_figures(name, gaps) for name, gaps in gaps_of.items()]})
    return with_failures(report, failures)


def _reasons(gaps: list[Gap]) -> dict[str, int]:
    return dict(sorted(Counter(gap.reason.value for gap in gaps).items()))


def _as_figures(name: str, gaps: list[Gap]) -> dict[str, Any]:
    return {
        "archive": name,
        "reasons": _reasons(gaps),
        "images": shortened([{"source": gap.source, "why": gap.explanation} for gap in gaps]),
    }


def _archives(connection: Connection, archive_id: int) -> list[Archive]:
    """One archive, or all for the id 0."""
    return [row for row in archive.list_archives(connection) if archive_id in (0, row.archive_id)]
