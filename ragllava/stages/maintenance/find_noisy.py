"""Noisy cases among answers that are there already: of before cases were logged, or of before the limits changed.

Looks at what is stored, so it finds what can be read off an answer: candidates near η, ranks that disagree, questions
without evidence, answers with low confidence. Whether an answer is fragile is found only by asking again, which this
task does not do.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from sqlalchemy import Connection

from ragllava.jobs.runner import ShardContext
from ragllava.records import Answer, ModelStamp, NoisyCase
from ragllava.stages.answer.doubts import DoubtLimits, diagnose
from ragllava.stages.maintenance.task_report import Report, TaskRequest, counted
from ragllava.stages.resources import Resources
from ragllava.stores.jobs.answered import AnsweredQuestion, load_questions
from ragllava.stores.learning import mining, noisy
from ragllava.stores.learning.mining import AnsweredJob

_PAGE = 500


def find_noisy_cases(context: ShardContext[Resources], request: TaskRequest) -> Report:
    """Log the doubtful answers of ended jobs that are no noisy cases yet, and reasons that known ones lack.

    What somebody labelled or dismissed stays as it is: a person has looked at it already.
    """
    looked_at = new = 0
    reasons: Counter[str] = Counter()
    jobs = context.read(mining.answered_jobs, request.archive_id)
    for job in jobs:
        limits = DoubtLimits.of(context.settings, job.top_n)
        numbers = context.read(mining.unjudged_questions, job.job_id)
        for start in range(0, len(numbers), _PAGE):
            context.check()
            page = numbers[start : start + _PAGE]
            cases = context.commit(_check_page, job, page, limits)
            looked_at += len(page)
            new += len(cases)
            reasons.update(reason.value for case in cases for reason in case.reasons)
    return Report(
        f"{counted(new, 'noisy case')} logged or widened among {counted(looked_at, 'answer')} "
        f"of {counted(len(jobs), 'job')}",
        {"jobs": len(jobs), "answers": looked_at, "cases": new, "reasons": dict(sorted(reasons.items()))},
    )


def _check_page(
    connection: Connection, job: AnsweredJob, numbers: Sequence[int], limits: DoubtLimits
) -> list[NoisyCase]:
    known = mining.known_reasons(connection, job.job_id, numbers)
    questions = load_questions(connection, [(job.job_id, number) for number in numbers])
    found = [_unknown(case, known) for question in questions.values() if (case := _diagnose(question, limits))]
    cases = [case for case in found if case.reasons]
    noisy.insert_cases(connection, job.archive_id, job.job_id, cases)
    return cases


def _diagnose(question: AnsweredQuestion, limits: DoubtLimits) -> NoisyCase | None:
    if question.status is None or question.models is None:
        return None
    stamp = ModelStamp(**question.models)
    answer = Answer(
        question.question_no,
        question.status,
        text=question.answer,
        confidence=question.confidence,
        candidates=question.candidates,
        models=stamp,
    )
    return diagnose(answer, stamp.threshold, limits)


def _unknown(case: NoisyCase, known: dict[int, set[str]]) -> NoisyCase:
    """The case with only those reasons that were not logged yet."""
    new = tuple(reason for reason in case.reasons if reason.value not in known.get(case.question_no, ()))
    return replace(case, reasons=new, details={reason.value: case.details[reason.value] for reason in new})
