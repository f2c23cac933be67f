"""Faults by name. Each disturbs a system that answers questions, and heals what it disturbed.

A fault returns when the system is whole again as far as the outside is concerned; what it must recover from is its own
affair. What a fault started beside the questions is checked at the end of the run (`System.checks`).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial

import redis

from tests.chaos.system import ARCHIVE, LEASE_S, System

PAST_LEASE_S = LEASE_S + 1.5
SHORT_S = 3.0
AWAY_S = 60.0  # of the long absence of the database

Work = Callable[[System], None]
WorkOn = Callable[[System, str], None]  # on the part of this name


@dataclass(frozen=True, slots=True)
class Fault:
    """`cuts_submit`: the questions of this fault are submitted over a connection that breaks after its COMMIT."""

    name: str
    what: str
    work: Work
    cuts_submit: bool = False


FAULTS: dict[str, Fault] = {}


def fault(name: str, what: str, *, cuts_submit: bool = False) -> Callable[[Work], Work]:
    """Register a fault; `what` is for the table."""

    def register(work: Work) -> Work:
        FAULTS[name] = Fault(name, what, work, cuts_submit)
        return work

    return register


def family(names: Iterable[str], name: str, what: str) -> Callable[[WorkOn], WorkOn]:
    """Register a fault for each of `names`, which replaces `*` in name and text."""

    def register(work: WorkOn) -> WorkOn:
        for part in names:
            fault(name.replace("*", part), what.replace("*", part))(partial(_call, work, part))
        return work

    return register


def _call(work: WorkOn, part: str, system: System) -> None:
    work(system, part)


def redis_of(system: System) -> redis.Redis:
    """A client of the system's Redis, past the proxy."""
    return redis.Redis.from_url(system.settings.require_redis(), socket_timeout=5)


def other_job(system: System, questions: int) -> int:
    """Submit a job of questions that are not part of the comparison."""
    lines = (json.dumps({"custom_id": f"other-{n}", "question": f"another question {n}?"}) for n in range(questions))
    return system.client.questions.submit("\n".join(lines).encode(), ARCHIVE).job_id


def expect_completed(system: System, job_id: int) -> None:
    """At the end of the run, the job must be completed."""

    def check() -> str | None:
        job = system.client.jobs.get(job_id)
        if job.state.value == "completed":
            return None
        return f"job {job_id} ({job.kind}) is {job.state} with {job.progress.by_status}: {job.error}"

    system.checks.append(check)
