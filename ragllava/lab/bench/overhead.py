"""What queue, leases and commits cost: jobs against the stage functions called in this process."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Sequence
from contextlib import closing
from functools import partial

from ragllava.json_records import to_json
from ragllava.lab.bench.jobs import SAMPLE, run_job, sample_archive, write_questions
from ragllava.lab.bench.processor import spend
from ragllava.lab.bench.rows import BenchRow, Wanted, timed
from ragllava.lab.bench.workload import System, Workload
from ragllava.records import Answer, AnswerOptions, Question
from ragllava.stages.answer.doubts import DoubtLimits, find_noisy
from ragllava.stages.answer.stage import answer_again, answer_questions
from ragllava.stages.answer.tools import AnswerTools, prepare
from ragllava.stages.resources import Resources
from ragllava.stores.archives import archive
from ragllava.stores.database import in_transaction

_MOST_QUESTIONS = 100
_ROUNDS = 3
_ASKED = 9  # questions asked one by one; the middle one counts
_MOST_SHARE = 1.05
_MOST_EXTRA_S = 0.050  # of one question
_REFERENCE = "the stage functions, called in one process"


def overhead_rows(workload: Workload) -> list[BenchRow]:
    """A bulk job, then one question now."""
    system = workload.require_system()
    texts = [question.text for question in sample_archive(workload)[:_MOST_QUESTIONS]]
    with closing(Resources(system.settings)) as resources:
        resources.models = workload.models  # loaded already
        tools = _tools(system, resources)
        return [_bulk_row(workload, texts, tools), _ask_row(workload, texts, tools)]


def _tools(system: System, resources: Resources) -> AnswerTools:
    archive_id = in_transaction(system.engine, lambda c: archive.get_archive(c, SAMPLE).archive_id)
    return prepare(system.engine, system.settings, resources, archive_id, to_json(AnswerOptions()))


def _bulk_row(workload: Workload, texts: Sequence[str], tools: AnswerTools) -> BenchRow:
    system = workload.require_system()
    path = write_questions(system, "overhead", texts)
    questions = _numbered(texts)
    through_s, direct_s = [], []
    said: list[str | None] = []
    answers: list[Answer] = []
    for number in range(_ROUNDS):
        workload.progress(f"overhead: {len(texts)} questions, round {number + 1} of {_ROUNDS}")
        seconds, job_id = run_job(system, path, SAMPLE)
        through_s.append(seconds)
        said = [row.answer for row in system.client.questions.results(job_id)]
        seconds, answers = timed(lambda: _answer(questions, tools))
        direct_s.append(seconds)
    differing = sum(one != other.text for one, other in zip(said, answers, strict=True))
    return BenchRow(
        "overhead", f"overhead, a job of {len(texts)} questions", _REFERENCE, "s", min(through_s), min(direct_s),
        Wanted(at_most=_MOST_SHARE), {"answers_that_differ": differing},
        "from the submit to the last commit; the reference writes nothing",
    )  # fmt: skip


def _ask_row(workload: Workload, texts: Sequence[str], tools: AnswerTools) -> BenchRow:
    """The limit is a number of milliseconds, so the wanted ratio follows from the reference's time."""
    client = workload.require_system().client
    workload.progress(f"overhead: {_ASKED} questions one by one")
    through_s, direct_s = [], []
    profile: defaultdict[str, float] = defaultdict(float)
    for number in range(_ASKED):
        text = texts[number % len(texts)]
        spent = spend(lambda text=text: client.questions.ask(text, SAMPLE))  # type: ignore[misc]
        through_s.append(spent.seconds)
        for name, processor_ms in spent.figures(_ASKED).items():
            profile[name] += processor_ms
        direct_s.append(timed(lambda text=text: _answer(_numbered([text]), tools))[0])  # type: ignore[misc]
    through, direct = statistics.median(through_s), statistics.median(direct_s)
    return BenchRow(
        "overhead", "overhead, one question now", _REFERENCE, "s", through, direct,
        Wanted(at_most=(direct + _MOST_EXTRA_S) / direct), {"extra_ms": (through - direct) * 1000} | profile,
        f"the wanted ratio is that of {_MOST_EXTRA_S * 1000:.0f} ms more than the reference",
    )  # fmt: skip


def _answer(questions: Sequence[Question], tools: AnswerTools) -> list[Answer]:
    """All that a shard computes: the answers, and which of them are doubtful."""
    found = answer_questions(questions, tools)
    again = partial(answer_again, tools=tools) if tools.settings.leave_one_out else None
    find_noisy(questions, found, DoubtLimits.of(tools.settings, tools.options.top_n), again)
    return found


def _numbered(texts: Sequence[str]) -> list[Question]:
    return [Question(number, number + 1, f"q-{number}", text) for number, text in enumerate(texts)]
