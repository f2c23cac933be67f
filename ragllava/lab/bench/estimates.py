"""Estimates beside what came out, on jobs of differing size and style, and a deadline of half the needed time."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from ragllava.errors import JobRefused
from ragllava.jobs.states import JobState
from ragllava.lab.bench.jobs import SAMPLE, sample_questions, write_questions
from ragllava.lab.bench.rows import BenchRow, Wanted
from ragllava.lab.bench.workload import Workload
from ragllava.records import AnswerOptions, Depth, Retrieval
from ragllava.stages.answer.estimating import Span, compare_estimate

if TYPE_CHECKING:
    from ragllava.client import Client, JobView

# What is asked, as shares of the largest job, by options that differ in what they cost.
_STYLES = (
    ("hybrid, by need", AnswerOptions()),
    ("pictures, all 20", AnswerOptions(retrieval=Retrieval.PICTURE, depth=Depth.FIXED)),
    ("captions, by need", AnswerOptions(retrieval=Retrieval.CAPTION)),
    ("hybrid, 8 and 1", AnswerOptions(top_k=8, top_n=1, depth=Depth.FIXED)),
)
_SHARES = (0.1, 0.04, 0.2, 0.07, 0.3, 0.15, 0.5, 0.1, 0.02, 0.4)
_FEWEST = 8
_WITHIN = 9
_LATE = 0.05  # of the time until the deadline
_STOPPING_S = 1.0  # of one worker
_POLL_S = 0.05


def estimate_rows(workload: Workload) -> list[BenchRow]:
    """Ten jobs, each estimated just before."""
    texts = sample_questions(workload)
    rows = [_job_row(workload, texts, number) for number in range(len(_SHARES))]
    within = sum(row.figures["within"] for row in rows)
    total = BenchRow(
        "estimates", f"estimates, of {len(rows)} jobs within low and high", "wanted", "jobs", within, _WITHIN,
        Wanted(at_least=1.0),
    )  # fmt: skip
    return [*rows, total]


def _job_row(workload: Workload, texts: Sequence[str], number: int) -> BenchRow:
    """What a job took, compared with what `--estimate` had said just before."""
    client = workload.require_client()
    style, options = _STYLES[number % len(_STYLES)]
    asked = _part(texts, _SHARES[number], number)
    workload.progress(f"estimates: job {number + 1}, {len(asked)} questions, {style}")
    path = write_questions(client, f"estimates-{number}", asked)
    estimate = client.questions.estimate(path, SAMPLE, options).estimate
    job = _wait(client, client.questions.submit(path, SAMPLE, options).job_id)
    span, took_s = estimate.time or Span(0.0, 0.0, 0.0), _took(job)
    workload.progress(f"  {took_s:.2f} s, estimated {span.low_s:.2f} to {span.high_s:.2f} s by {estimate.basis}")
    figures = {
        "low_s": span.low_s,
        "high_s": span.high_s,
        "within": float(span.holds(took_s)),
        "sampled": float(estimate.basis == "sample"),
        "based_on": float(estimate.based_on),
    }
    name = f"estimates, {len(asked)} questions, {style}"
    return BenchRow("estimates", name, "expected", "s", took_s, span.expected_s or None, Wanted(), figures)


def deadline_rows(workload: Workload) -> list[BenchRow]:
    """A job with half the time that it needs, and one with half the budget. It is timed without a limit first."""
    client, texts = workload.require_client(), sample_questions(workload)
    rows = []
    # With as many candidates as evidence nothing can be cut, so that about half of the questions must expire.
    for style, options in (("cut", _STYLES[1][1]), ("not cut", replace(_STYLES[1][1], top_k=2))):
        path = write_questions(client, f"deadline-{options.top_k}", texts)
        workload.progress(f"deadlines: {len(texts)} questions, top_k {options.top_k}, without a limit")
        free = _wait(client, client.questions.submit(path, SAMPLE, options).job_id)
        needed_s, busy_s = _took(free), _busy(free)
        deadline_s = max(1, round(needed_s / 2))
        workload.progress(f"deadlines: it took {needed_s:.1f} s; the same with a deadline after {deadline_s} s")
        job_id = client.questions.submit(path, SAMPLE, options, deadline=f"{deadline_s}s").job_id
        rows.append(_deadline_row(_wait(client, job_id), style, deadline_s))
        workload.progress(f"  {rows[-1].ours:.2f} s, {rows[-1].figures}")
        if style == "not cut":
            limit_s = round(busy_s / 2, 1)
            job_id = client.questions.submit(path, SAMPLE, options, max_gpu_seconds=limit_s).job_id
            rows.append(_budget_row(_wait(client, job_id), limit_s))
            workload.progress(f"  {rows[-1].ours:.2f} of {limit_s} GPU seconds, {rows[-1].figures}")
    return rows


def _deadline_row(job: JobView, style: str, deadline_s: float) -> BenchRow:
    name = f"deadline of half the needed time, depth {style}"
    wanted = Wanted(at_least=1 - _LATE, at_most=1 + _LATE)
    return BenchRow("deadlines", name, "the deadline", "s", _took(job), deadline_s, wanted, _ends(job))


def _budget_row(job: JobView, limit_s: float) -> BenchRow:
    """What the worker does until it has stopped is above the budget, however large that is."""
    wanted = Wanted(at_least=1 - _LATE, at_most=(limit_s + _STOPPING_S) / limit_s)
    return BenchRow("deadlines", "half the needed budget", "the budget", "s", _busy(job), limit_s, wanted, _ends(job))


def _ends(job: JobView) -> dict[str, float]:
    counts, timing = job.progress.by_status, job.timing or {}
    return {
        "finished": float(counts.get("answered", 0) + counts.get("no_evidence", 0)),
        "expired": float(counts.get("expired", 0)),
        "all": float(job.progress.total),
        "cut_to": float(timing.get("cut_to") or 0),
    }


def _part(texts: Sequence[str], share: float, number: int) -> list[str]:
    """Questions from another place of the list for each job."""
    size = min(len(texts), max(_FEWEST, round(share * len(texts))))
    start = number * 37 % max(1, len(texts) - size + 1)
    return list(texts[start : start + size])


def _took(job: JobView) -> float:
    """Seconds from the submit to the end."""
    outcome = compare_estimate(job.estimate, job.timing)
    return outcome.took_s if outcome else 0.0


def _busy(job: JobView) -> float:
    return float((job.timing or {}).get("busy_s", 0.0))


def _wait(client: Client, job_id: int) -> JobView:
    """The job when it has ended; also one with expired questions. Raises JobRefused for one with other failures."""
    job = client.jobs.wait(job_id, poll_s=_POLL_S)
    good = ("answered", "no_evidence", "expired")
    if (
        job.state is JobState.CANCELLED
        or sum(job.progress.by_status.get(status, 0) for status in good) != job.progress.total
    ):
        raise JobRefused(f"job {job_id} of the benchmark ended as {job.state}: {job.error}")
    time.sleep(_POLL_S)  # so that the worker is free again
    return job
