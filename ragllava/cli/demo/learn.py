"""`ragllava demo --learn`: an archive of a world that the models never saw learns from what is said about its answers.

Two archives: postcards from home, as the shipped models learned them, and postcards of the shifted world. Both are
answered, a share of the answers gets gold feedback, both roles are trained through the queue, and the questions that no
feedback spoke of are asked again. Last, a training on shuffled answers shows that the gate keeps watch.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ragllava.cli.demo.run import Demo, World, installed_versions, with_candidates
from ragllava.errors import RagllavaError, UsageError

if TYPE_CHECKING:
    from rich.table import Table

    from ragllava.client import Client
    from ragllava.evaluation.metrics import JobFigures
    from ragllava.jobs.control import JobView
    from ragllava.postcards.archive import KnownQuestion, PostcardArchive, WrittenArchive
    from ragllava.records import Role
    from ragllava.stages.results.results import ResultRow
    from ragllava.stores.learning.trainings import TrainingView

HOME_QUESTIONS = 2  # times as many, so that one answer is less than a point of any total there
NEEDED_FALL = 0.3  # of the wrong answers in the shifted world
ALLOWED_FALL = 0.01  # of any total at home
# Of a world that the retriever does not know, and it does not learn: so many of the postcards are candidates of each
# question. Among 20 of 400 the right picture often is not, and no reranker can find it then.
_CANDIDATE_SHARE = 0.2
_KEPT_OUT_SHARE = 0.4  # of the postcards; no feedback speaks of them
# Gentler than the mini preset, whose rate makes models forget that know home well already; and long enough that what
# comes out does not hang on which negatives were drawn.
_RERANKER_SETTINGS: Mapping[str, Any] = {"learning_rate": 5e-4, "epochs": 2.0}
# With `train_vision` it learns the labelled pictures by heart: .93 of these right, no more of others, and home worse.
_GENERATOR_SETTINGS: Mapping[str, Any] = {"learning_rate": 5e-4, "epochs": 4.0}
_HARD_NEGATIVES = 4.0
_BARE_SHARE = 0.1  # the gate asks without captions, too


@dataclass(frozen=True, slots=True)
class Side:
    """One archive of the demo: what is known about it, and the rows of the job that answered all its questions."""

    run: Demo
    written: WrittenArchive
    archive: PostcardArchive
    job_id: int
    rows: Sequence[ResultRow]

    @property
    def held_out(self) -> list[KnownQuestion]:
        """The questions that are compared: all their postcards are kept out of the feedback."""
        return [known for known in self.archive.questions if all(map(is_kept_out, known.relevant))]

    @property
    def taught(self) -> list[KnownQuestion]:
        """The questions that get feedback: none of their postcards is kept out.

        Of home so many are left out that as many remain as of the other world: it is there to be kept in mind.
        """
        return taught_questions(self.archive.questions)[:: HOME_QUESTIONS if self.run.world == "home" else 1]

    def figures(self, rows: Sequence[ResultRow]) -> JobFigures:
        """The figures of the held-out questions alone."""
        from ragllava.evaluation.metrics import score_job

        return score_job(self.held_out, (with_candidates(row) for row in rows))


@dataclass(frozen=True, slots=True)
class Compared:
    """The held-out questions of one archive before and after the trainings."""

    before: JobFigures
    after: JobFigures

    @property
    def fall_of_errors(self) -> float:
        """Which share of the wrong answers is gone; negative when there are more, 0 when there were none."""
        wrong = 1 - self.before.all.answer_accuracy
        return (self.after.all.answer_accuracy - self.before.all.answer_accuracy) / wrong if wrong else 0.0

    @property
    def largest_fall(self) -> float:
        """By how much that total fell which fell most; 0 when none did."""
        pairs = zip(totals(self.before).values(), totals(self.after).values(), strict=True)
        return max(0.0, *(before - after for before, after in pairs))

    def as_json(self) -> dict[str, Any]:
        """For `--json`."""
        return {
            "before": self.before.as_json(),
            "after": self.after.as_json(),
            "fall_of_errors": round(self.fall_of_errors, 4),
            "largest_fall": round(self.largest_fall, 4),
        }


def taught_questions(questions: Sequence[KnownQuestion]) -> list[KnownQuestion]:
    """Those that may get feedback."""
    return [known for known in questions if not any(map(is_kept_out, known.relevant))]


def totals(figures: JobFigures) -> dict[str, float]:
    """The figures that are compared as a whole; those by type rest on too few questions each."""
    named = {"right answers": figures.all.answer_accuracy}
    for name, group, depth in (("one picture", figures.one_image, 1), ("two pictures", figures.two_image, 2)):
        if group is not None:
            named[f"right answers, {name}"] = group.answer_accuracy
            named[f"reranked recall@{depth}, {name}"] = group.reranked_recall[depth]
    return named


def learn_from_mistakes(client: Client, run: Demo) -> dict[str, Any]:
    """The whole demonstration; returns the figures for `--json`. Raises RagllavaError when a job ends badly."""
    from ragllava.records import Role

    lesson = Lesson(client, run)
    lesson.require_enough()
    lesson.begin_anew()
    sides = [lesson.first_answers("home"), lesson.first_answers("shifted")]
    for side in sides:
        lesson.teach(side, side.taught)
    trained = [lesson.train(role, f"train {role}") for role in Role]
    compared = [lesson.ask_again(side) for side in sides]
    return lesson.conclude(sides, compared, trained, lesson.train_on_shuffled(sides[1]))


@dataclass(frozen=True, slots=True)
class Lesson:
    """The stages of the demonstration, on a running system."""

    client: Client
    run: Demo

    def require_enough(self) -> None:
        """Raises UsageError, before minutes of work, when the gate would have too few questions to judge by."""
        from ragllava.training.gate import GateRules

        run, share = self._run_of("shifted"), self.client.settings.held_out_share
        written, archive = run.draw(self.client.settings)
        judging = len(_split(taught_questions(archive.questions), written, share)[1])
        needed = GateRules().fewest_questions
        if judging < needed:
            raise UsageError(
                f"of {run.questions} questions about {run.images} postcards only {judging} would be left to judge a "
                f"training by, and the gate needs {needed}: ask more, by --questions"
            )

    def begin_anew(self) -> None:
        """Undo what an earlier demonstration left: its open jobs, and its versions as champions."""
        names = {self._run_of("home").name, self._run_of("shifted").name}
        for job in self.client.jobs(only_open=True):
            if job.archive in names:
                self.client.cancel(job.job_id)
                self.client.wait(job.job_id)
                self._tell(f"cancelled job {job.job_id}, which an interrupted demo left")
        for view in self.client.versions():
            version = view.version
            if view.state == "champion" and names & set((version.training or {}).get("archives", ())):
                self.client.promote(version.base_name, version.role, "demo --learn begins with the base")
                self._tell(f"the {version.role} begins with the base again, not with {version.name}")

    def first_answers(self, world: World) -> Side:
        """Draw an archive, store it, and have all its questions answered."""
        run = self._run_of(world)
        written, archive = run.draw(self.client.settings)
        run.ingest(self.client, written)
        job, rows = self._ask(run, written.questions)
        self.run.seconds |= {f"{stage}, {world}": seconds for stage, seconds in run.seconds.items()}
        return Side(run, written, archive, job.job_id, rows)

    def teach(self, side: Side, right: Sequence[KnownQuestion]) -> None:
        """Give gold feedback on the first answers to these questions."""
        known = {question.custom_id: question for question in right}
        sure = self.client.settings.set_aside_above
        said = [_feedback(row, known[row.custom_id], sure) for row in side.rows if row.custom_id in known]
        stored = self.client.feedback(said, job_id=side.job_id, source="gold")
        self._tell(f"feedback on {stored.stored} answers from {side.run.name}: {stored.wrong} of them wrong")

    def train(self, role: Role, stage: str) -> TrainingView:
        """Train one role for the shifted archive, with the one from home as replay and guard."""
        from ragllava.cli.progress import training_line, wait_with_bar
        from ragllava.records import Role
        from ragllava.training.request import TrainingRequest, default_preset

        request = TrainingRequest(
            role=role,
            archives=(self._run_of("shifted").name, self._run_of("home").name),
            preset=default_preset(self.client.settings.profile),
            overrides=dict(_RERANKER_SETTINGS if role is Role.RERANKER else _GENERATOR_SETTINGS),
            negatives=_HARD_NEGATIVES,
            top_k=self._run_of("shifted").top_k,
            bare_share=_BARE_SHARE,
        )
        with self.run.timed(stage):
            job = wait_with_bar(self.client, self.client.train(request), stage, self.run.console)
        if job.training is None or job.training.status is None or not job.training.version:
            raise RagllavaError(
                f"training the {role} ended as {job.state}: {job.error}; see `ragllava jobs show {job.job_id}`"
            )
        self._tell(f"job {job.job_id}: {training_line(job)}, in {self.run.seconds[stage]:.0f} s")
        return job.training

    def ask_again(self, side: Side) -> Compared:
        """Ask the held-out questions once more, as a job of their own, and compare."""
        path = side.written.questions.with_name("held-out.jsonl")
        lines = [{"custom_id": known.custom_id, "question": known.text} for known in side.held_out]
        path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
        again = replace(side.run, seconds={})
        _, rows = self._ask(again, path)
        self.run.seconds[f"answer again, {side.run.world}"] = again.seconds["answer"]
        compared = Compared(side.figures(side.rows), side.figures(rows))
        self.run.console.print(_comparison_table(side, compared))
        return compared

    def train_on_shuffled(self, side: Side) -> TrainingView:
        """Train a generator on answers that belong to other questions; the questions that judge it stay right.

        Afterwards the right answers are said again, so that no later training learns from the wrong ones.
        """
        from ragllava.records import Role

        self._tell("once more, on shuffled answers, which the gate should refuse:")
        learned, _ = _split(side.taught, side.written, self.client.settings.held_out_share)
        answers = [known.answer for known in learned]
        random.Random(self.run.seed).shuffle(answers)  # noqa: S311 - repeatable on purpose
        self.teach(side, [replace(known, answer=answer) for known, answer in zip(learned, answers, strict=True)])
        training = self.train(Role.GENERATOR, "train on shuffled answers")
        self.teach(side, learned)
        return training

    def conclude(
        self,
        sides: Sequence[Side],
        compared: Sequence[Compared],
        trained: Sequence[TrainingView],
        shuffled: TrainingView,
    ) -> dict[str, Any]:
        """Say what was shown, list the versions, and return the figures."""
        from ragllava.records import TrainingStatus

        home, shifted = compared
        shown = {
            f"{shifted.fall_of_errors:.0%} of the errors in the shifted world are gone": (
                shifted.fall_of_errors >= NEEDED_FALL
            ),
            f"no total at home fell by more than {100 * home.largest_fall:.1f} points": (
                home.largest_fall <= ALLOWED_FALL
            ),
            f"the gate said to the shuffled answers: {shuffled.status}": shuffled.status is TrainingStatus.REFUSED,
        }
        for claim, holds in shown.items():
            self._tell(f"  {'as it should be' if holds else 'NOT as it should be'}: {claim}")
        for view in self.client.versions():
            self._tell(f"  {view.version.role:<10} {view.state:<11} {view.version.name}")
        self._tell(
            "the trained versions stay in use; `ragllava models rollback --role generator` (or reranker) undoes it"
        )
        return {
            "seed": self.run.seed,
            "images": self.run.images,
            "archives": {
                side.run.world: _sizes(side) | found.as_json() for side, found in zip(sides, compared, strict=True)
            },
            "trainings": [view.as_json() for view in trained],
            "shuffled": shuffled.as_json(),
            "as_it_should_be": all(shown.values()),
            "seconds": self.run.seconds,
            "versions": installed_versions(),
        }

    def _ask(self, run: Demo, questions: Path) -> tuple[JobView, list[ResultRow]]:
        from ragllava.client import is_success

        job = run.ask(self.client, questions)
        if not is_success(job.state):
            raise RagllavaError(f"job {job.job_id} ended as {job.state}; `ragllava jobs show {job.job_id}` says why")
        return job, list(self.client.results(job.job_id))

    def _run_of(self, world: World) -> Demo:
        """The run of one archive, with times of its own."""
        shares: dict[str, Any] = (
            {"top_k": max(1, round(_CANDIDATE_SHARE * self.run.images))}
            if world == "shifted"
            else {"questions": HOME_QUESTIONS * self.run.questions}
        )
        return replace(self.run, world=world, learns=True, side=is_kept_out, seconds={}, **shares)

    def _tell(self, line: str) -> None:
        self.run.console.print(line, markup=False)


def is_kept_out(file_name: str) -> bool:
    """Whether no feedback speaks of this postcard."""
    from ragllava.training.data.datasets import is_held_out

    return is_held_out(file_name, _KEPT_OUT_SHARE)


def _split(
    questions: Sequence[KnownQuestion], written: WrittenArchive, share: float
) -> tuple[list[KnownQuestion], list[KnownQuestion]]:
    """(those that a training learns from, those that it is judged by), as the train job splits them."""
    from ragllava.training.data.datasets import is_judging
    from ragllava.training.data.snapshot import FEWEST_IMAGES

    by_image = len({name for known in questions for name in known.relevant}) >= FEWEST_IMAGES

    def hashes(known: KnownQuestion) -> list[str]:
        names = known.relevant if by_image else ()
        return [hashlib.sha256((written.pictures / name).read_bytes()).hexdigest() for name in names]

    judging = {known.custom_id for known in questions if is_judging(known.text, hashes(known), share)}
    return [k for k in questions if k.custom_id not in judging], [k for k in questions if k.custom_id in judging]


def _feedback(row: ResultRow, known: KnownQuestion, sure: float) -> dict[str, Any]:
    """What somebody who knows everything says: also which pictures the reranker wrongly kept or was sure of."""
    from ragllava.cli.reporting import is_right

    shown = (c for c in row.candidates if c.evidence_no is not None or (c.relevance or 0.0) >= sure)
    return {
        "custom_id": known.custom_id,
        "verdict": "right" if is_right(row, known) else "wrong",
        "answer": known.answer,
        "relevant": list(known.relevant),
        "irrelevant": [c.image.source for c in shown if c.image.source not in known.relevant],
    }


def _sizes(side: Side) -> dict[str, Any]:
    asked = len(side.archive.questions)
    return {"archive": side.run.name, "questions": asked, "taught": len(side.taught), "held_out": len(side.held_out)}


def _comparison_table(side: Side, compared: Compared) -> Table:
    from rich.table import Table

    title = f"{len(side.held_out)} held-out questions from {side.run.name}"
    table = Table("figure", "before", "after", "difference", title=title)
    before, after = totals(compared.before), totals(compared.after)
    for name, kind in compared.before.by_type.items():
        before[f"  {name} ({kind.questions})"] = kind.accuracy
        after[f"  {name} ({kind.questions})"] = compared.after.by_type[name].accuracy
    for name, value in before.items():
        table.add_row(name, f"{value:.3f}", f"{after[name]:.3f}", f"{after[name] - value:+.3f}")
    return table
