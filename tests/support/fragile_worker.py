"""Included by a real worker, it puts in place a stage that needs no models, and that dies of certain questions.

`POISON` in a question kills the process that looks at it, `BROKEN` raises. `HELD` ones have no answer until they
are let go (tests/support/held_questions.py).
"""

from __future__ import annotations

import os
import signal
import time
from dataclasses import replace

from ragllava.jobs.kinds import KINDS
from ragllava.jobs.runner import ShardContext
from ragllava.records import Answer, AnswerStatus, JobKind, Question, Role
from ragllava.stages.resources import Resources
from ragllava.stores.jobs import answers
from ragllava.stores.learning.registry import BaseVersion
from tests.support.held_questions import HELD, are_let_go


def fragile_stage(context: ShardContext[Resources]) -> None:
    """Answer each question with its own text, one commit for each."""
    lease = context.lease
    for question in context.read(answers.open_questions, lease.job_id, lease.run_no, lease.lo, lease.hi):
        context.check()
        context.give_way()
        _suffer(question)
        while HELD in question.text and not are_let_go(context.settings):
            context.check()
            context.give_way()
            time.sleep(0.1)  # at last: of one that was frozen here and let go meanwhile, the fence refuses the answer
        result = [Answer(question.question_no, AnswerStatus.ANSWERED, text=question.text)]
        context.commit(answers.insert_answers, lease.job_id, lease.run_no, lease.shard_id, lease.epoch, result)


def _suffer(question: Question) -> None:
    if "POISON" in question.text:
        os.kill(os.getpid(), signal.SIGKILL)
    if "BROKEN" in question.text:
        raise RuntimeError("a bug that only this question shows")


def _no_models(self: Resources, *, embeds: bool, answers: bool) -> dict[str, str]:
    return {"fragile": "1"}


def _no_versions(self: Resources) -> list[BaseVersion]:
    return [BaseVersion(Role.RERANKER, "fragile", "none"), BaseVersion(Role.GENERATOR, "fragile", "none")]


KINDS[JobKind.ANSWER] = replace(KINDS[JobKind.ANSWER], stage=fragile_stage)
Resources.warm_up = _no_models  # type: ignore[method-assign]
Resources.base_versions = _no_versions  # type: ignore[method-assign]
