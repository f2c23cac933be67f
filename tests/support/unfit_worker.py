"""Included by a real worker, it makes it refuse every job of questions, as one with another profile does."""

from __future__ import annotations

from dataclasses import replace

from ragllava.errors import JobRefused
from ragllava.jobs.kinds import KINDS
from ragllava.jobs.runner import ShardContext
from ragllava.records import JobKind
from ragllava.stages.resources import Resources
from tests.support import fragile_worker


def refusing_stage(context: ShardContext[Resources]) -> None:
    """Refuse the job."""
    raise JobRefused("this worker cannot do it")


assert fragile_worker, "it makes a worker that needs no models"
KINDS[JobKind.ANSWER] = replace(KINDS[JobKind.ANSWER], stage=refusing_stage)
