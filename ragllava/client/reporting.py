"""The contents of a job's report."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import PurePath

from ragllava.evaluation.metrics import JobFigures, is_right
from ragllava.jobs.views import JobView
from ragllava.records import AnswerStatus, KnownAnswer
from ragllava.stages.answer.estimating import Estimate, EstimateOutcome, compare_estimate, stored_estimate
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
        plan="; ".join(filter(None, (estimate_line(job), *limit_lines(job)))) or None,
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


def estimate_outcome(job: JobView) -> EstimateOutcome | None:
    """The estimate of an answer job beside what came out, when it has ended; None without an estimate."""
    return compare_estimate(job.estimate, job.timing)


def estimate_line(job: JobView) -> str | None:
    """`estimated 40 s to 62 s, expected 50 s; took 47 s, 6 % less than expected`; None without an estimate."""
    estimate, outcome = stored_estimate(job.estimate), estimate_outcome(job)
    if estimate is None:
        return None
    time = estimate.time
    line = "estimated: unknown" if time is None else (
        f"estimated {duration(time.low_s)} to {duration(time.high_s)}, expected {duration(time.expected_s)}"
    )  # fmt: skip
    if outcome is None:
        return line
    took = f"{line}; took {duration(outcome.took_s)}"
    if outcome.error is None:
        return took
    within = "within the range" if outcome.is_within else "outside the range"
    return f"{took}, {abs(outcome.error):.0%} {'more' if outcome.error > 0 else 'less'} than expected, {within}"


def limit_lines(job: JobView) -> Iterator[str]:
    """The limits of a job, and what they have cut."""
    if job.deadline_at is not None:
        yield f"deadline {job.deadline_at.astimezone():%Y-%m-%d %H:%M:%S %Z}"
    timing = job.timing or {}
    if job.max_gpu_s is not None:
        used = f", used {timing['busy_s']:.1f}" if "busy_s" in timing else ""
        yield f"budget {job.max_gpu_s:g} GPU seconds{used}"
    if timing.get("cut_to") is not None:
        yield f"depth cut to {timing['cut_to']} candidates for some questions"


def duration(seconds: float) -> str:
    """`4.2 s`, `3 min 20 s`, `2 h 5 min`."""
    if seconds < 90:
        return f"{seconds:.3g} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def estimate_lines(estimate: Estimate) -> Iterator[str]:
    """An estimate with its assumptions, a line for each."""
    time, busy = estimate.time, estimate.busy
    if time is None:
        yield "time: unknown"
    else:
        yield f"time: {duration(time.low_s)} to {duration(time.high_s)}, expected {duration(time.expected_s)}"
    if busy is not None:
        yield (f"GPU seconds of all workers: {busy.low_s:.3g} to {busy.high_s:.3g}, expected {busy.expected_s:.3g}")
    yield from (f"  {assumption}" for assumption in estimate.assumptions)
