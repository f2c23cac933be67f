"""A timed sample of questions: answered as in a job, and nothing of it is stored but how long it took."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

from ragllava.jobs.runner import ShardContext
from ragllava.json_records import from_json
from ragllava.records import Answer, Question
from ragllava.stages.answer.estimating import TimedSample
from ragllava.stages.answer.stage import Pauses, answer_steps
from ragllava.stages.answer.tools import AnswerTools, cost_of, prepare
from ragllava.stages.resources import Resources

MOST_QUESTIONS = 64
_LONGEST_S = 20.0  # for all of it, as the first questions tell
_FEWEST = 4  # questions that are timed together, so that the first ones only warm the caches


def time_questions(context: ShardContext[Resources], body: Mapping[str, Any]) -> TimedSample:
    """Answer questions and drop the answers. The first few are not counted if the others fit into the time."""
    tools = prepare(context.engine, context.settings, context.resources, context.lease.archive_id, body["options"])
    questions = from_json(tuple[Question, ...], body["questions"])[:MOST_QUESTIONS]
    pause = Pauses(context, tools)
    first = _time(pause, questions[: context.settings.questions_per_step], tools)
    left_s = _LONGEST_S - first.seconds
    number = int(left_s / max(1e-6, first.seconds / first.questions))
    rest = questions[first.questions : first.questions + max(0, number)]
    return _time(pause, rest, tools) if len(rest) >= _FEWEST else first


def _time(pause: Pauses, questions: Sequence[Question], tools: AnswerTools) -> TimedSample:
    began, urgent_s = time.monotonic(), pause.seconds
    answers: list[Answer] = [answer for results, _ in answer_steps(pause, questions, {}) for answer in results]
    took_s = time.monotonic() - began - (pause.seconds - urgent_s)
    reranked = [c.image.image_id for answer in answers for c in answer.candidates if c.relevance is not None]
    return TimedSample(len(questions), took_s, len(reranked), len(set(reranked)), cost_of(tools))
