"""Included by an answer worker, it answers from a picture in the store, without models.

The answer is a digest of the question and of the bytes of one picture of the archive, so that a wrong question, a wrong
picture and damaged bytes all show. Its note names the champion at that moment.
"""

from __future__ import annotations

import hashlib
import time
from dataclasses import replace

from sqlalchemy import Connection, select

from ragllava.jobs.kinds import KINDS
from ragllava.jobs.runner import ShardContext
from ragllava.records import Answer, AnswerStatus, JobKind, Role
from ragllava.stages.resources import Resources
from ragllava.stores.jobs import answers
from ragllava.stores.learning import registry
from ragllava.stores.schema import images, jobs
from tests.support import fragile_worker

THINKING_S = 0.03  # for each question, in place of the models
LATE = "late"  # names of pictures that come and go during a run begin with this; no question is about them


def stand_in_stage(context: ShardContext[Resources]) -> None:
    """Answer each question; the answers are committed one by one."""
    lease = context.lease
    for question in context.read(answers.open_questions, lease.job_id, lease.run_no, lease.lo, lease.hi):
        context.check()
        context.give_way()
        sha256, champion = context.read(picture_and_champion, lease.job_id, question.text)
        content = context.resources.objects.get_content(sha256)
        time.sleep(THINKING_S)
        text = hashlib.sha256(question.text.encode() + content).hexdigest()[:16]
        result = [Answer(question.question_no, AnswerStatus.ANSWERED, text=text, note=champion)]
        context.commit(answers.insert_answers, lease.job_id, lease.run_no, lease.shard_id, lease.epoch, result)


def picture_and_champion(connection: Connection, job_id: int, text: str) -> tuple[str, str]:
    """The hash of the picture that a question is about, and the name of the reranker."""
    of_job = select(jobs.c.archive_id).where(jobs.c.id == job_id).scalar_subquery()
    statement = select(images.c.sha256).where(images.c.archive_id == of_job, ~images.c.source.startswith(LATE))
    hashes = connection.scalars(statement.order_by(images.c.source)).all()
    champion = registry.champion(connection, Role.RERANKER, "mini")
    number = int.from_bytes(hashlib.sha256(text.encode()).digest()[:4])
    return hashes[number % len(hashes)], champion.name if champion else "none"


assert fragile_worker, "it makes a worker that needs no models"
KINDS[JobKind.ANSWER] = replace(KINDS[JobKind.ANSWER], stage=stand_in_stage)
