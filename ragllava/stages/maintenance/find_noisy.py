"""Finds noisy cases among stored answers: those given before cases were logged, or before the limits changed.

Uses only what is stored: candidates near η, ranks that disagree, questions without evidence, answers with low
confidence. Whether an answer is fragile is known only after asking again, which this task does not do.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from sqlalchemy import Connection

from ragllava.feedback import NoisyCase
from ragllava.jobs.isolation import Failures
from ragllava.jobs.runner import ShardContext
from ragllava.records import Answer, ModelStamp
from ragllava.stages.answer.doubts import DoubtLimits, diagnose
from ragllava.stages.maintenance.task_report import Report, counted, with_failures
from ragllava.stages.resources import Resources
from ragllava.stores.jobs.answered import AnsweredQuestion, load_questions
from ragllava.stores.learning import noisy
from ragllava.stores.learning.noisy import AnsweredJob

_PAGE = 500


def find_noisy_cases(context: ShardContext[Resources]) -> Report:
    """Log the doubtful answers of ended jobs that are not noisy cases yet, and reasons that logged cases lack.

    Labelled and dismissed questions are skipped: a person has looked at them already.
    """
    counts = _Counts()
    failures = Failures()
    jobs = context.read(noisy.answered_jobs, context.lease.archive_id or None)
    for job in jobs:
        failures.run(f"job {job.job_id}", _check_job, context, job, counts)
    report = Report(
        f"{counted(counts.new, 'noisy case')} logged or extended among {counted(counts.checked, 'answer')} "
        f"of {counted(len(jobs), 'job')}",
        {
            "jobs": len(jobs),
            "answers": counts.checked,
            "cases": counts.new,
            "reasons": dict(sorted(counts.reasons.items())),
        },
    )
    return with_failures(report, failures)


@dataclass(slots=True)
class _Counts:
    checked: int = 0
    new: int = 0
    reasons: Counter[str] = field(default_factory=Counter)


def _check_job(context: ShardContext[Resources], job: AnsweredJob, counts: _Counts) -> None:
    limits = DoubtLimits.of(context.settings, job.top_n)
    numbers = context.read(noisy.unlabelled_questions, job.job_id)
    for start in range(0, len(numbers), _PAGE):
        context.check()
        page = numbers[start : start + _PAGE]
        cases = context.commit(_check_page, job, page, limits)
        counts.checked += len(page)
        counts.new += len(cases)
        counts.reasons.update(reason.value for case in cases for reason in case.reasons)


def _check_page(
    connection: Connection, job: AnsweredJob, numbers: Sequence[int], limits: DoubtLimits
) -> list[NoisyCase]:
    logged = noisy.logged_reasons(connection, job.job_id, numbers)
    questions = load_questions(connection, [(job.job_id, number) for number in numbers])
    diagnosed = [diagnose(_answer(question), limits) for question in questions.values() if question.status]
    cases = [_only_new(case, logged.get(case.question_no, set())) for case in diagnosed if case]
    cases = [case for case in cases if case.reasons]
    noisy.insert_cases(connection, job.archive_id, job.job_id, cases)
    return cases


def _answer(question: AnsweredQuestion) -> Answer:
    assert question.status is not None, "questions without an outcome were left out"  # noqa: S101 - for the type checker
    return Answer(
        question.question_no,
        question.status,
        text=question.answer,
        confidence=question.confidence,
        candidates=question.candidates,
        models=ModelStamp(**question.models) if question.models else None,
    )


def _only_new(case: NoisyCase, logged: set[str]) -> NoisyCase:
    """The case with only those reasons that are not logged yet."""
    new = tuple(reason for reason in case.reasons if reason.value not in logged)
    return replace(case, reasons=new, details={reason.value: case.details[reason.value] for reason in new})
