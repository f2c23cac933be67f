"""The contents of a job's report."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import PurePath

from ragllava.evaluation.metrics import JobFigures, is_right
from ragllava.jobs.control import JobView
from ragllava.records import AnswerStatus, KnownAnswer
from ragllava.stages.results.report import Figure, ReportRow, ReportSummary
from ragllava.stages.results.results import ResultRow
from ragllava.stores.jobs.refreshes import RefreshView


def summarise(
    job: JobView, rows: Sequence[ResultRow], images: int, figures: tuple[Figure, ...], caution: str | None = None
) -> ReportSummary:
    """The top of the report of an answer job, whose archive has so many `images` and may need a `caution`."""
    return ReportSummary(
        archive=job.archive,
        by_status={AnswerStatus(status): number for status, number in job.progress.by_status.items()},
        images=images,
        seconds=(job.finished_at - job.started_at).total_seconds() if job.started_at and job.finished_at else None,
        finished_at=job.finished_at,
        models=next((row.models for row in rows if row.models), None),
        figures=figures,
        caution=caution,
        refresh=refresh_line(job.refresh) if job.refresh else None,
        all_pages=f"ragllava report {job.job_id} --all-pages",
        job_id=job.job_id,
        all_results=f"ragllava results {job.job_id} -o results.jsonl",
    )


def report_title(job: JobView) -> str:
    """`Job 2: first questions`: the job's name, else that of its file, whose folders are its owner's matter."""
    name = job.name or (PurePath(job.file).name if job.file else "")
    return f"Job {job.job_id}: {name or f'questions to {job.archive}'}"


def report_rows(rows: Iterable[ResultRow], answers: Mapping[str, KnownAnswer]) -> Iterator[ReportRow]:
    """The results, marked right or wrong where `answers` has the right answer by custom_id."""
    for row in rows:
        right = answers.get(row.custom_id or "")
        if right is None:
            yield ReportRow(row)
        else:
            yield ReportRow(row, right.answer, is_right(row, right), frozenset(right.relevant))


def report_figures(figures: JobFigures | None) -> tuple[Figure, ...]:
    """Measured figures as the report names them; empty without any."""
    if figures is None:
        return ()
    right = Figure("Right answers", figures.all.answer_accuracy, f"of {figures.all.questions} questions")
    group = figures.one_image
    if group is None:
        return (right,)
    return (
        right,
        Figure("Right, one picture", group.answer_accuracy, f"of {group.questions} questions about one picture"),
        Figure("Retrieval recall@1", group.retrieval_recall[1], "before reranking, questions about one picture"),
        Figure("Recall of all candidates", group.candidate_recall, "what the reranker gets to see"),
        Figure("Reranked recall@1", group.reranked_recall[1], "after reranking, questions about one picture"),
    )


def refresh_line(refresh: RefreshView) -> str:
    """`refreshes job 12: 197 answers taken over, 3 asked again (captions 1, pictures 2), 2 of the answers differ`."""
    return (
        f"refreshes job {refresh.refreshes}: {refresh.taken_over} answers taken over, "
        f"{refresh.asked_again} asked again{reasons(refresh.because)}, {refresh.changed} of the answers differ"
    )


def reasons(because: Mapping[str, int]) -> str:
    """` (captions 1, pictures 2)`; empty without any."""
    return f" ({', '.join(f'{name} {number}' for name, number in because.items())})" if because else ""
