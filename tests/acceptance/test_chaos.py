"""A short chaos run: the whole system, three faults. `make chaos` runs all of them."""

from __future__ import annotations

import time

import pytest

from tests.chaos.faults import FAULTS
from tests.chaos.run import run_chaos
from tests.chaos.system import running_system

pytestmark = pytest.mark.acceptance

QUESTIONS = 60


@pytest.mark.timeout(900)
def test_under_three_faults_each_answer_is_there_once_and_the_same_as_undisturbed() -> None:
    names = ["kill-answering", "redis-empty", "cut-postgres"]
    with running_system(seed=1) as system:
        report = run_chaos(system, names, QUESTIONS, time.monotonic() + 600.0, print)
    assert report.is_clean, "\n".join([*report.lines(), *(str(fault) for fault in report.faults)])
    assert sorted(entry.fault.name for entry in report.faults) == sorted(names)
    numbers = {(row.metric, row.labels): row.exported for row in report.counters if row.agrees}
    assert len(numbers) == len(report.counters)
    assert numbers["ragllava_questions_total", ("answer", "answered")] == 2 * QUESTIONS  # undisturbed, and disturbed
    assert numbers["ragllava_jobs_total", ("answer", "completed")] == 1 + len(names)


def test_each_fault_says_what_it_does() -> None:
    assert all(name == fault.name and "*" not in fault.name + fault.what for name, fault in FAULTS.items())
    assert len({fault.what for fault in FAULTS.values()}) == len(FAULTS)
