"""How long an answer job will take: low, expected and high, from what can be counted and what was timed.

The work of a question is a random number whose logarithm is taken as normal. Earlier jobs with the same options measure
it, and so does a timed sample; each counts the less, the more its size differs from that of the job, because questions
of a large job share more pictures. The range holds for about 19 jobs of 20 if those before were like this one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from sqlalchemy import Connection

from ragllava.jobs.dispatch import live_slots
from ragllava.jobs.kinds import ANSWER
from ragllava.json_records import from_json, to_json
from ragllava.records import AnswerOptions, Priority, Retrieval
from ragllava.settings import Settings
from ragllava.stages.answer.sharing import distinct_images, pool_size
from ragllava.stages.answer.splitting import MOST_BY_CAPTION, Cost, shard_seconds
from ragllava.stores.jobs import timings
from ragllava.stores.jobs.timings import EarlierJob, OpenJob

_DEVIATIONS = 2.0
_LIKE_JOBS = 0.15  # standard deviation of the logarithm between jobs that are alike
_USUAL, _USUAL_WEIGHT = 0.25, 2  # that of jobs on a machine with other work, and how many jobs it counts as
_OTHER_ARCHIVE = 0.35
_SAMPLE = 0.25
_PER_SIZE = 0.2  # more, for each factor of e between the numbers of questions
_START_S, _LATEST_START_S = 0.2, 2.0  # until the first worker has a shard, beside a tick in the worst case
_FEWEST = 4  # questions of an earlier job that says anything


@dataclass(frozen=True, slots=True)
class TimedSample:
    """What a worker measured: so many questions took so many seconds, with so many pairs reranked and distinct images.
    `cost` is what answering costs with its models."""

    questions: int
    seconds: float
    pairs: int
    images: int
    cost: Cost

    def busy_s(self, number: int) -> float:
        """The seconds that `number` such questions take. The more there are, the more images they share: as many
        distinct ones are expected as if each pair drew one from a pool, whose size the sample tells."""
        per_question = self.pairs / self.questions
        pace = self.seconds / max(1e-9, self._cost(self.questions, self.images))
        pool = pool_size(self.images, self.pairs)
        return pace * self._cost(number, distinct_images(pool, per_question * number))

    def _cost(self, questions: int, images: float) -> float:
        pairs = self.pairs / self.questions * questions
        return self.cost.image * images + self.cost.pair * pairs + self.cost.question * questions


@dataclass(frozen=True, slots=True)
class Span:
    """Seconds: at best, as expected, at worst."""

    low_s: float
    expected_s: float
    high_s: float

    def holds(self, seconds: float) -> bool:
        """Whether an outcome is within."""
        return self.low_s <= seconds <= self.high_s


@dataclass(frozen=True, slots=True)
class Estimate:
    """What a job is expected to take from its submit to its end, and the assumptions.

    `time` is None where it is not known: nothing was timed, or no answer worker is ready. `busy` are the seconds that
    workers are busy with it, all together. `questions` are counted, and so are `candidates`: so many images at most are
    those of a question. `basis` is `jobs`, `sample` or `nothing`, and
    `based_on` counts the jobs or questions that were timed. `jobs_before` have `before_s` seconds of work left that is
    expected to be done first, at all workers.
    """

    time: Span | None
    busy: Span | None
    questions: int
    candidates: int
    slots: int
    basis: str
    based_on: int
    jobs_before: int
    before_s: float | None
    start_s: float
    assumptions: tuple[str, ...]

    def as_json(self) -> dict[str, Any]:
        """As it is stored with a job, and sent."""
        stored: dict[str, Any] = to_json(self)
        return stored


def stored_estimate(stored: dict[str, Any] | None) -> Estimate | None:
    """The estimate of a job; None without one."""
    return from_json(Estimate, stored) if stored else None


@dataclass(frozen=True, slots=True)
class _Measured:
    """A measurement of the seconds for each question, as a logarithm with its variance."""

    log_s: float
    variance: float


def estimate_job(
    connection: Connection,
    settings: Settings,
    archive_id: int,
    options: AnswerOptions,
    questions: int,
    priority: int = Priority.NORMAL,
    sample: TimedSample | None = None,
) -> Estimate:
    """Estimate a job of so many valid questions, if it were submitted now. Reads only.

    Whoever sees only some archives does not see the jobs of others, which are not counted then.
    """
    by_words = MOST_BY_CAPTION if options.retrieval is Retrieval.HYBRID else 0
    candidates = timings.count_images(connection, archive_id, options.top_k + by_words)
    profile = timings.live_profile(connection)
    slots = live_slots(connection, settings).get(ANSWER.queue, 0) if profile else 0
    fewest = min(_FEWEST, max(1, questions // 2))
    earlier = timings.earlier_jobs(connection, archive_id, to_json(options), profile, fewest)
    number = max(1, questions)
    measured = [_of_job(job, number) for job in earlier]
    if sample is not None:
        measured.append(_Measured(math.log(sample.busy_s(number) / number), _SAMPLE**2))
    each = _combined(measured)
    busy = None if each is None else _scaled(each, questions)
    first = [job for job in timings.open_jobs(connection) if job.priority >= priority]
    before_s = None if each is None else _work_before(first, questions, priority, each.expected_s)
    start_s = _start(earlier)
    basis, based_on = ("jobs", len(earlier)) if earlier else ("sample", sample.questions if sample else 0)
    made = Estimate(
        time=_wall(busy, slots, before_s or 0.0, start_s, settings) if busy and slots else None,
        busy=busy,
        questions=questions,
        candidates=candidates,
        slots=slots,
        basis=basis if measured else "nothing",
        based_on=based_on,
        jobs_before=len(first),
        before_s=before_s,
        start_s=start_s,
        assumptions=(),
    )
    return _with_assumptions(made, profile, bool(earlier and not earlier[0].is_own))


def _of_job(job: EarlierJob, questions: int) -> _Measured:
    apart = _PER_SIZE * math.log(questions / job.questions)
    base = _LIKE_JOBS if job.is_own else _OTHER_ARCHIVE
    return _Measured(math.log(job.busy_s / job.questions), base**2 + apart**2)


def _combined(measured: Sequence[_Measured]) -> Span | None:
    """Seconds of a question: the mean by precision, and a range of the spread between jobs and the uncertainty of the
    mean. The spread is that of the measurements, and while these are few, what is usual."""
    if not measured:
        return None
    weights = [1 / item.variance for item in measured]
    total = sum(weights)
    mean = sum(weight * item.log_s for weight, item in zip(weights, measured, strict=True)) / total
    number = len(measured)
    squares = sum(weight * (item.log_s - mean) ** 2 for weight, item in zip(weights, measured, strict=True))
    spread = (_USUAL_WEIGHT * _USUAL**2 + number * squares / total) / (_USUAL_WEIGHT + number - 1)
    deviation = math.sqrt(max(_LIKE_JOBS**2, spread) + 1 / total)
    return Span(*(math.exp(mean + sign * _DEVIATIONS * deviation) for sign in (-1, 0, 1)))


def _scaled(each: Span, questions: int) -> Span:
    return Span(each.low_s * questions, each.expected_s * questions, each.high_s * questions)


def _work_before(first: Sequence[OpenJob], questions: int, priority: int, each_s: float) -> float:
    """The seconds of others' work that is expected to be done before this job ends, all workers together: all of what
    has a higher priority; jobs of the same take turns, so of each as much as this job has itself."""
    inputs = sum(job.inputs if job.priority > priority else min(job.inputs, questions) for job in first)
    return inputs * each_s


def _start(earlier: Sequence[EarlierJob]) -> float:
    """Seconds until a worker has the first shard: as of earlier jobs that found one free."""
    waits = sorted(job.waited_s for job in earlier if job.waited_s is not None)
    return min(_LATEST_START_S, waits[len(waits) // 4]) if waits else _START_S


def _wall(busy: Span, slots: int, before_s: float, start_s: float, settings: Settings) -> Span:
    """From submit to end. At best all workers share the work evenly; at worst one works on a shard that is too short to
    be split, what is before is done first, and the start waits for a tick."""
    most = settings.shard_seconds

    def shared(seconds: float) -> float:
        """Shards of about the same length, of which the last ones do not keep all workers busy."""
        length = shard_seconds(seconds, most, slots)
        number = max(1, math.ceil(seconds / length - 1e-9))
        return math.ceil(number / slots) * seconds / number

    high = busy.high_s if busy.high_s <= most * 2 / 3 else shared(busy.high_s) + most / 3 * (slots > 1)
    before = before_s / slots
    return Span(
        start_s / 2 + busy.low_s / slots + before / 2,
        start_s + shared(busy.expected_s) + before,
        start_s + settings.tick_s / 2 + high + 2 * before,
    )


def _with_assumptions(made: Estimate, profile: str | None, is_foreign: bool) -> Estimate:
    """The same with a sentence for each assumption."""
    asked = f"{made.questions:,} valid {'question' if made.questions == 1 else 'questions'}"
    said = [f"counted: {asked}, at most {made.candidates:,} candidate pictures for each"]
    match made.basis:
        case "jobs":
            where = "jobs of other archives" if is_foreign else "jobs of this archive"
            said.append(f"timed: the last {made.based_on} {where} with the same options and the profile {profile}")
        case "sample":
            said.append(f"timed: a sample of {made.based_on} of the questions, with the profile {profile}")
        case _:
            said.append("timed: nothing, so the time is unknown; no job with these options and this profile has ended")
    if not made.slots:
        said.append("workers: none is ready, so it is unknown when the job begins")
    else:
        number = "1 is ready" if made.slots == 1 else f"{made.slots} are ready"
        said.append(f"workers: {number} now, and it is taken that this stays so")
    said.append(f"start: {made.start_s:.1f} s until a worker has the first shard")
    if made.jobs_before:
        known = made.before_s is not None
        time = f"about {made.before_s:.0f} s of their work come first" if known else "of unknown length"
        said.append(f"before it: {made.jobs_before} open {'job' if made.jobs_before == 1 else 'jobs'}, {time}")
    else:
        said.append("before it: no job")
    return replace(made, assumptions=tuple(said))


@dataclass(frozen=True, slots=True)
class EstimateOutcome:
    """An estimate beside what came out: seconds from submit to the first end, those that workers were busy, and by what
    share the time was longer (or shorter, below 0) than expected."""

    estimate: Estimate
    took_s: float
    busy_s: float
    error: float | None
    is_within: bool | None


def compare_estimate(stored: dict[str, Any] | None, timing: dict[str, Any] | None) -> EstimateOutcome | None:
    """The estimate of a job and what came out; None while one of them is missing."""
    made = stored_estimate(stored)
    if made is None or timing is None:
        return None
    took_s, busy_s, time = timing["took_s"], timing["busy_s"], made.time
    if time is None:
        return EstimateOutcome(made, took_s, busy_s, None, None)
    return EstimateOutcome(made, took_s, busy_s, took_s / time.expected_s - 1, time.holds(took_s))
