"""The HTML report of a job, with or without known answers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from ragllava.answer_text import exact_match
from ragllava.cli.progress import refresh_line
from ragllava.client import Client
from ragllava.evaluation.metrics import JobFigures
from ragllava.jobs.control import JobView
from ragllava.records import AnswerStatus, KnownAnswer
from ragllava.stages.results.report import Figure, ReportRow, ReportSummary, write_report
from ragllava.stages.results.results import ResultRow


def save_report(
    client: Client,
    job_id: int,
    path: Path,
    known: Mapping[str, KnownAnswer] | None = None,
    figures: JobFigures | None = None,
) -> int:
    """Write the report of an answer job; `known` marks answers right or wrong. Returns the number of cards."""
    job = client.job(job_id)
    rows = list(client.results(job_id))
    summary = ReportSummary(
        archive=job.archive,
        by_status={AnswerStatus(status): number for status, number in job.progress.by_status.items()},
        images=client.archive(job.archive).images,
        seconds=_seconds(job),
        finished_at=job.finished_at,
        models=next((row.models for row in rows if row.models), None),
        figures=_figures(figures) if figures else (),
        refresh=refresh_line(job),
        all_results=f"ragllava results {job_id} -o results.jsonl",
    )
    return write_report(
        path,
        title=f"Job {job_id}: questions to {job.archive}",
        summary=summary,
        rows=_report_rows(rows, known or {}),
        thumbnail=client.thumbnail,
    )


def is_right(row: ResultRow, known: KnownAnswer) -> bool:
    """Whether a result has the known answer."""
    return row.status is AnswerStatus.ANSWERED and row.answer is not None and exact_match(row.answer, known.answer)


def _report_rows(rows: list[ResultRow], known: Mapping[str, KnownAnswer]) -> Iterator[ReportRow]:
    for row in rows:
        right = known.get(row.custom_id or "")
        if right is None:
            yield ReportRow(row)
        else:
            yield ReportRow(row, right.answer, is_right(row, right), frozenset(right.relevant))


def _figures(figures: JobFigures) -> tuple[Figure, ...]:
    one, everything = figures.one_image, figures.all
    found = [Figure("Right answers", everything.answer_accuracy, f"of {everything.questions} questions")]
    if one is not None:
        found += [
            Figure("Right, one picture", one.answer_accuracy, f"of {one.questions} questions about one picture"),
            Figure("CLIP recall@1", one.retrieval_recall[1], "before reranking, questions about one picture"),
            Figure("CLIP recall@20", one.retrieval_recall[20], "what the reranker gets to see"),
            Figure("Reranked recall@1", one.reranked_recall[1], "after reranking, questions about one picture"),
        ]
    return tuple(found)


def _seconds(job: JobView) -> float | None:
    if job.started_at is None or job.finished_at is None:
        return None
    return (job.finished_at - job.started_at).total_seconds()
