"""The cost of queue, leases and commits: jobs compared with the stage functions called in this process."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Sequence
from contextlib import closing
from functools import partial

from ragllava.json_records import to_json
from ragllava.lab.bench.jobs import OPTIONS, SAMPLE, run_job, sample_questions, write_questions
from ragllava.lab.bench.processes import spend
from ragllava.lab.bench.rows import BenchRow, Wanted, timed
from ragllava.lab.bench.workload import Workload
from ragllava.records import Answer, Question
from ragllava.stages.answer.doubts import DoubtLimits, find_noisy
from ragllava.stages.answer.pipeline import answer_again, answer_questions
from ragllava.stages.answer.tools import AnswerTools, prepare
from ragllava.stages.resources import Resources
from ragllava.stores.archives import archive
from ragllava.stores.database import in_transaction

_MOST_QUESTIONS = 100
_ROUNDS = 3
_ASKED = 9  # questions asked one by one; the median counts
_MOST_SHARE = 1.05
_MOST_EXTRA_S = 0.050  # of one question
_REFERENCE = "the stage functions, called in one process"


def overhead_rows(workload: Workload) -> list[BenchRow]:
    """A bulk job, then one question asked with `ask`."""
    client = workload.require_client()
    texts = sample_questions(workload)[:_MOST_QUESTIONS]
    with closing(Resources(client.settings)) as resources:
        resources.models = workload.models  # already loaded
        archive_id = in_transaction(client.engine, archive.get_archive, SAMPLE).archive_id
        tools = prepare(client.engine, client.settings, resources, archive_id, to_json(OPTIONS))
        return [_bulk_row(workload, texts, tools), _ask_row(workload, texts, tools)]


def _bulk_row(workload: Workload, texts: Sequence[str], tools: AnswerTools) -> BenchRow:
    client = workload.require_client()
    path = write_questions(client, "overhead", texts)
    job_s, direct_s = [], []
    for number in range(_ROUNDS):
        workload.progress(f"overhead: {len(texts)} questions, round {number + 1} of {_ROUNDS}")
        seconds, job_id = run_job(client, path, SAMPLE)
        job_s.append(seconds)
        seconds, answers = timed(partial(_answer, texts, tools))
        direct_s.append(seconds)
    differing = sum(
        row.answer != answer.text for row, answer in zip(client.questions.results(job_id), answers, strict=True)
    )
    return BenchRow(
        "overhead", f"overhead, a job of {len(texts)} questions", _REFERENCE, "s", min(job_s), min(direct_s),
        Wanted(at_most=_MOST_SHARE), {"answers_that_differ": differing},
        "from the submit to the last commit; the reference writes nothing",
    )  # fmt: skip


def _ask_row(workload: Workload, texts: Sequence[str], tools: AnswerTools) -> BenchRow:
    """The limit is a number of milliseconds, so the wanted ratio depends on the time of the reference."""
    client = workload.require_client()
    workload.progress(f"overhead: {_ASKED} questions one by one")
    ask_s, direct_s = [], []
    profile: defaultdict[str, float] = defaultdict(float)
    for number in range(_ASKED):
        text = texts[number % len(texts)]
        spent = spend(partial(client.questions.ask, text, SAMPLE, OPTIONS))
        ask_s.append(spent.seconds)
        for name, processor_ms in spent.figures(_ASKED).items():
            profile[name] += processor_ms
        direct_s.append(timed(partial(_answer, [text], tools))[0])
    through, direct = statistics.median(ask_s), statistics.median(direct_s)
    return BenchRow(
        "overhead", "overhead, one question now", _REFERENCE, "s", through, direct,
        Wanted(at_most=(direct + _MOST_EXTRA_S) / direct), {"extra_ms": (through - direct) * 1000, **profile},
        f"the wanted ratio corresponds to {_MOST_EXTRA_S * 1000:.0f} ms more than the reference",
    )  # fmt: skip


def _answer(texts: Sequence[str], tools: AnswerTools) -> list[Answer]:
    """Everything that a shard computes: the answers, and which of them are doubtful."""
    questions = [Question(number, number + 1, f"q-{number}", text) for number, text in enumerate(texts)]
    answers = answer_questions(questions, tools)
    again = partial(answer_again, tools=tools) if tools.settings.leave_one_out else None
    find_noisy(questions, answers, DoubtLimits.of(tools.settings, tools.options.top_n), again)
    return answers
