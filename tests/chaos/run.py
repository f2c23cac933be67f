"""A chaos run: questions answered undisturbed, the same questions answered under faults, and the comparison."""

from __future__ import annotations

import itertools
import json
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rich.table import Table
from sqlalchemy import text

from ragllava.jobs.states import JobState
from ragllava.postcards.archive import draw_archive, write_archive
from ragllava.stores.database import make_engine
from tests.chaos import counters
from tests.chaos.counters import Comparison
from tests.chaos.faults import FAULTS, Fault
from tests.chaos.system import ARCHIVE, System
from tests.chaos.work_faults import register_second_champion, submit_over_a_cut_connection
from tests.chaos.worker import LATE
from tests.support.waiting import wait_for

PICTURES = 24
LATE_PICTURES = 24
SAMPLE_S = 0.1
PROGRESS_S = 150.0  # after a fault has healed
Outcome = tuple[str, str | None]  # status and answer
Echo = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class FaultReport:
    """One fault: its length, the longest time without a new answer from its beginning until the next answer after its
    end, and that until this answer alone. All in seconds.
    """

    fault: Fault
    job_id: int
    held_s: float
    longest_pause_s: float
    recovered_s: float
    problem: str | None = None


@dataclass
class ChaosReport:
    """What a run has shown."""

    questions: int
    faults: list[FaultReport] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)  # names of faults for which there was no time
    lost: list[str] = field(default_factory=list)  # custom ids
    twice: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    counters: list[Comparison] = field(default_factory=list)  # of the exporter, with the tables
    seconds: float = 0.0

    @property
    def is_clean(self) -> bool:
        """Nothing was lost, nothing is there twice, nothing is wrong, and every fault was survived."""
        faulty = [report for report in self.faults if report.problem]
        return not (self.lost or self.twice or self.wrong or self.problems or self.skipped or faulty)

    def table(self) -> Table:
        """The faults in the order of the run."""
        table = Table("fault", "what", "held s", "longest pause s", "answers again after s", "problem", box=None)
        for row in self.faults:
            figures = (f"{number:.1f}" for number in (row.held_s, row.longest_pause_s, row.recovered_s))
            table.add_row(row.fault.name, row.fault.what, *figures, row.problem or "")
        return table

    def lines(self) -> Iterator[str]:
        """The comparison with the undisturbed run, and what else is wrong."""
        for title, ids in (("lost", self.lost), ("twice", self.twice), ("wrong", self.wrong)):
            if ids:
                yield f"{title}: {', '.join(ids[:10])}{' …' if len(ids) > 10 else ''}"
        if self.skipped:
            yield f"not run, because the time was over: {', '.join(self.skipped)}"
        yield from self.problems
        agreeing = sum(comparison.agrees for comparison in self.counters)
        yield f"{agreeing} of {len(self.counters)} numbers of /metrics agree with the tables"
        yield (
            f"{self.questions} questions, {len(self.faults)} faults in {self.seconds:.0f} s: {len(self.lost)} lost, "
            f"{len(self.twice)} twice, {len(self.wrong)} wrong"
        )


class Progress:
    """Notes each moment at which there were new answers, or none to be given."""

    def __init__(self, system: System) -> None:
        self._engine = make_engine(system.settings.require_database(), pool_size=1, name="chaos progress")
        self._moments = [time.monotonic()]
        self._answers = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="progress", daemon=True)
        self._thread.start()

    def after(self, moment: float) -> float | None:
        """The first moment of progress after `moment`; None when there is none yet."""
        return next((seen for seen in self._moments if seen > moment), None)

    def longest_pause(self, begin: float, end: float) -> float:
        """The longest time without progress between two moments, of which the second is one of progress."""
        seen = [begin, *(moment for moment in self._moments if begin < moment < end), end]
        return max(later - earlier for earlier, later in itertools.pairwise(seen))

    def close(self) -> None:
        self._stop.set()
        self._thread.join(30)
        self._engine.dispose()

    def _watch(self) -> None:
        statement = text(
            "SELECT (SELECT count(*) FROM answers), (SELECT count(*) FROM jobs WHERE kind = 'answer' "
            "AND state IN ('running', 'paused', 'cancelling'))"
        )
        while not self._stop.wait(SAMPLE_S):
            try:
                with self._engine.connect() as connection:
                    answers, open_jobs = connection.execute(statement).one()
            except Exception:  # noqa: BLE001 - the database is disturbed: no progress is seen
                continue
            if answers > self._answers or not open_jobs:
                self._moments.append(time.monotonic())
                self._answers = answers


def run_chaos(system: System, names: Sequence[str], questions: int, deadline: float, echo: Echo) -> ChaosReport:
    """Answer the questions undisturbed, then in one job for each fault, and compare.

    No fault begins after `deadline` (time.monotonic()).
    """
    started = time.monotonic()
    report = ChaosReport(questions)
    lines = [_question(system.random, number) for number in range(questions)]
    echo("ingesting pictures")
    _ingest_pictures(system)
    register_second_champion(system)
    echo(f"answering {questions} questions undisturbed")
    undisturbed_id = _submit(system, lines)
    _finish(system, [undisturbed_id], 600.0)
    echo(f"{time.monotonic() - started:.0f} s: undisturbed run done")
    jobs = {undisturbed_id: len(lines)}
    progress = Progress(system)
    try:
        chosen = [FAULTS[name] for name in names]
        system.random.shuffle(chosen)
        for fault, part in zip(chosen, _parts(lines, len(chosen)), strict=True):
            if time.monotonic() > deadline:
                report.skipped.append(fault.name)
                continue
            entry = _disturb(system, fault, part, progress)
            jobs[entry.job_id] = len(part)
            report.faults.append(entry)
            echo(
                f"{time.monotonic() - started:.0f} s: {fault.name}: held {entry.held_s:.1f} s, longest pause "
                f"{entry.longest_pause_s:.1f} s{'; ' + entry.problem if entry.problem else ''}"
            )
        echo("waiting for the last answers")
        _finish(system, _all_jobs(system), 300.0)
    except AssertionError as error:
        report.problems.append(str(error))
    finally:
        progress.close()
    _compare(system, undisturbed_id, jobs, report)
    report.seconds = time.monotonic() - started
    return report


def _disturb(system: System, fault: Fault, lines: Sequence[str], progress: Progress) -> FaultReport:
    system.wait_services()
    submitted = time.monotonic()
    if fault.cuts_submit:
        job_id = submit_over_a_cut_connection(system, lambda: _submit(system, lines))
    else:
        job_id = _submit(system, lines)
    problem: str | None = None
    begin = healed = submitted
    try:
        wait_for("the first answers", lambda: progress.after(submitted) is not None, PROGRESS_S)
        begin = time.monotonic()
        fault.work(system)
    except Exception as error:  # noqa: BLE001 - the others are still to be tried, and the report names it
        problem = f"{type(error).__name__}: {error}"
    healed = time.monotonic()
    try:
        wait_for(f"an answer after {fault.name}", lambda: progress.after(healed) is not None, PROGRESS_S)
    except AssertionError as error:
        problem = problem or str(error)
    answered = progress.after(healed) or time.monotonic()
    pause = progress.longest_pause(begin, answered)
    return FaultReport(fault, job_id, healed - begin, pause, answered - healed, problem)


def _compare(system: System, undisturbed_id: int, jobs: Mapping[int, int], report: ChaosReport) -> None:
    """Every line of every job against that of the undisturbed run, and all jobs against those that were submitted."""
    right = dict(_outcomes(system, undisturbed_id))
    if len(right) != report.questions or {status for status, _ in right.values()} != {"answered"}:
        report.problems.append("the undisturbed run did not answer every question")
    disturbed_ids = [job_id for job_id in jobs if job_id != undisturbed_id]
    disturbed = [outcome for job_id in disturbed_ids for outcome in _outcomes(system, job_id)]
    counts = Counter(custom_id for custom_id, _ in disturbed)
    asked = [custom_id for job_id in disturbed_ids for custom_id in _asked(system, job_id)]
    report.lost += sorted(set(asked) - set(counts))
    report.twice += sorted(custom_id for custom_id, number in counts.items() if number > 1)
    report.wrong += sorted({custom_id for custom_id, outcome in disturbed if right.get(custom_id) != outcome})
    report.problems += [error for job_id in disturbed_ids for error in _errors(system, job_id)]
    for job_id, total in jobs.items():
        job = system.client.jobs.get(job_id)
        if job.state is not JobState.COMPLETED or job.progress.total != total or job.result is None:
            report.problems.append(f"job {job_id} is {job.state}, {job.progress.by_status} of {total}: {job.error}")
    submitted = {
        job.job_id
        for job in system.client.jobs.list(limit=1_000)
        if job.kind == "answer" and str(job.spec["input"]) == "standard input" and job.progress.total != 200
    }
    if submitted - set(jobs):
        report.problems.append(f"jobs that nobody submitted: {sorted(submitted - set(jobs))}")
    report.problems += [problem for check in system.checks if (problem := check()) is not None]
    report.counters = counters.compare(system.client)
    report.problems += counters.differences(report.counters)


def _outcomes(system: System, job_id: int) -> list[tuple[str, Outcome]]:
    rows = system.client.questions.results(job_id)
    return [(str(row.custom_id), (row.status.value, row.answer)) for row in rows]


def _errors(system: System, job_id: int) -> list[str]:
    rows = system.client.questions.results(job_id)
    return [f"{row.custom_id} of job {job_id}: {row.error}" for row in rows if row.error is not None]


def _asked(system: System, job_id: int) -> list[str]:
    with system.client.engine.begin() as connection:
        statement = text("SELECT custom_id FROM questions WHERE job_id = :job ORDER BY question_no")
        return [str(custom_id) for custom_id in connection.scalars(statement, {"job": job_id})]


def _question(chance: random.Random, number: int) -> str:
    return json.dumps({"custom_id": f"q{number}", "question": f"what is number {number}-{chance.randrange(10**9)}?"})


def _submit(system: System, lines: Sequence[str]) -> int:
    return system.client.questions.submit("\n".join(lines).encode(), ARCHIVE).job_id


def _parts(lines: Sequence[str], count: int) -> Iterator[Sequence[str]]:
    bounds = [len(lines) * number // count for number in range(count + 1)]
    return (lines[lo:hi] for lo, hi in itertools.pairwise(bounds))


def _all_jobs(system: System) -> list[int]:
    return [job.job_id for job in system.client.jobs.list(limit=1_000)]


def _finish(system: System, job_ids: Sequence[int], timeout_s: float) -> None:
    """Until these jobs have ended, and their results are written."""
    deadline = time.monotonic() + timeout_s
    for job_id in job_ids:
        job = system.client.jobs.wait(job_id, timeout_s=max(0.0, deadline - time.monotonic()))
        assert job.is_final, (
            f"job {job_id} ({job.kind}) has not ended: {job.progress.by_status} of {job.progress.total}"
        )
    wait_for("the results", lambda: all(system.client.jobs.get(number).result for number in job_ids), timeout_s)


def _ingest_pictures(system: System) -> None:
    """The pictures that questions are about, and some of those that come and go; the others wait."""
    drawn = draw_archive(seed=system.random.randrange(10**6), images=PICTURES + LATE_PICTURES, questions=1)
    written = write_archive(system.folder / "postcards", drawn)
    pictures = sorted(written.pictures.iterdir())
    late = [_renamed(picture) for picture in pictures[PICTURES:]]
    system.late_pictures = late[LATE_PICTURES // 2 :]
    job_id = system.client.archives.ingest(pictures[:PICTURES] + late[: LATE_PICTURES // 2], ARCHIVE).job_id
    job = system.client.jobs.wait(job_id, timeout_s=300)
    assert job.progress.by_status == {"stored": PICTURES + LATE_PICTURES // 2}, job


def _renamed(picture: Path) -> Path:
    return picture.rename(picture.with_name(f"{LATE}-{picture.name}"))
