"""`ragllava demo --learn`: both roles are trained on feedback about an archive that the models never saw.

There are two archives: in-domain postcards, as the shipped models learned them, and shifted ones. Questions about both
are answered, a share of the answers gets gold feedback, both roles are trained by the train worker, and the questions
without feedback are asked again. A last training on shuffled answers shows that the gate refuses it.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ragllava.cli.demo.run import Demo, Domain
from ragllava.cli.options import make_table, package_versions
from ragllava.errors import RagllavaError, UsageError
from ragllava.evaluation.metrics import JobFigures, is_right, score_job
from ragllava.json_records import write_json_lines
from ragllava.records import Role, TrainingStatus

if TYPE_CHECKING:
    from rich.table import Table

    from ragllava.client import Client, JobView, ResultRow, TrainingView
    from ragllava.postcards.archive import KnownQuestion, PostcardArchive, WrittenArchive

IN_DOMAIN_QUESTIONS = 2  # times as many, so that one answer is less than a point of any total there
NEEDED_FALL = 0.3  # of the wrong answers about the shifted archive
ALLOWED_FALL = 0.01  # of any total of the in-domain archive
# The retriever does not know the shifted archive and is not trained: this share of the postcards are candidates of each
# question. The right picture is often not among 20 of 400, and then no reranker can find it.
_CANDIDATE_SHARE = 0.2
_KEPT_OUT_SHARE = 0.4  # of the postcards, which get no feedback
# Lower than the rate of the mini preset, which makes models forget the in-domain archive; and long enough that the
# result does not depend on the negatives that were drawn.
_RERANKER_SETTINGS: Mapping[str, Any] = {"learning_rate": 5e-4, "epochs": 2.0}
# `train_vision` overfits: .93 of the labelled pictures right, no more of others, and the in-domain archive worse.
_GENERATOR_SETTINGS: Mapping[str, Any] = {"learning_rate": 5e-4, "epochs": 4.0}
_HARD_NEGATIVES = 4.0
_BARE_SHARE = 0.1  # the gate measures without captions, too


@dataclass(frozen=True, slots=True)
class AnsweredArchive:
    """One archive of the demo with its known answers, and the rows of the job that answered all its questions."""

    run: Demo
    written: WrittenArchive
    archive: PostcardArchive
    job_id: int
    rows: Sequence[ResultRow]

    @property
    def held_out(self) -> list[KnownQuestion]:
        """The questions that are compared: none of their postcards gets feedback."""
        return [question for question in self.archive.questions if all(map(is_kept_out, question.relevant))]

    @property
    def labelled(self) -> list[KnownQuestion]:
        """The questions that get feedback: none of their postcards is kept out; as many of each archive."""
        return labelled_questions(self.archive.questions)[
            :: IN_DOMAIN_QUESTIONS if self.run.domain == "in_domain" else 1
        ]

    def figures(self, rows: Sequence[ResultRow]) -> JobFigures:
        """The figures of the held-out questions alone."""
        return score_job(self.held_out, rows)


@dataclass(frozen=True, slots=True)
class BeforeAfter:
    """The figures of one archive's held-out questions before and after the trainings."""

    before: JobFigures
    after: JobFigures

    @property
    def fall_of_errors(self) -> float:
        """The share of the wrong answers that is gone; negative when there are more, 0 when there were none."""
        wrong = 1 - self.before.all.answer_accuracy
        return (self.after.all.answer_accuracy - self.before.all.answer_accuracy) / wrong if wrong else 0.0

    @property
    def largest_fall(self) -> float:
        """The largest fall of a total; 0 when none fell."""
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


def in_use(trained: Sequence[TrainingView]) -> str:
    """What became of the trained versions, in one sentence."""
    promoted = [view.role.value for view in trained if view.status is TrainingStatus.PROMOTED]
    if not promoted:
        return "the gate refused every trained version, so questions are answered as before"
    undo = " and ".join(f"`ragllava models rollback --role {role}`" for role in promoted)
    return f"the trained {' and '.join(promoted)} stays in use; {undo} undoes it"


def labelled_questions(questions: Sequence[KnownQuestion]) -> list[KnownQuestion]:
    """The questions that may get feedback."""
    return [question for question in questions if not any(map(is_kept_out, question.relevant))]


def totals(figures: JobFigures) -> dict[str, float]:
    """The figures that count in the comparison; those by type have too few questions each."""
    named = {"right answers": figures.all.answer_accuracy}
    for name, group, depth in (("one picture", figures.one_image, 1), ("two pictures", figures.two_image, 2)):
        if group is not None:
            named[f"right answers, {name}"] = group.answer_accuracy
            named[f"reranked recall@{depth}, {name}"] = group.reranked_recall[depth]
    return named


def learn_from_feedback(client: Client, run: Demo) -> dict[str, Any]:
    """The whole demo; returns the figures for `--json`. Raises RagllavaError when a job or a training fails."""
    demo = LearningDemo(client, run)
    demo.require_enough()
    demo.reset()
    archives = [demo.first_answers("in_domain"), demo.first_answers("shifted")]
    for answered in archives:
        demo.give_feedback(answered, answered.labelled)
    trained = [demo.train(role, f"train {role}") for role in Role]
    comparisons = [demo.ask_again(answered) for answered in archives]
    return demo.conclude(archives, comparisons, trained, demo.train_on_shuffled(archives[1]))


@dataclass(frozen=True, slots=True)
class LearningDemo:
    """The stages of the demo, on a running system."""

    client: Client
    run: Demo

    def require_enough(self) -> None:
        """Raises UsageError, before minutes of work, when the gate would have too few questions."""
        from ragllava.training.gate_report import GateRules

        run, share = self._run_of("shifted"), self.client.settings.held_out_share
        written, archive = run.draw(self.client.settings)
        for_gate = len(_split(labelled_questions(archive.questions), written, share)[1])
        needed = GateRules().fewest_questions
        if for_gate < needed:
            raise UsageError(
                f"of {run.questions} questions about {run.images} postcards only {for_gate} would be left for the "
                f"gate, which needs {needed}: ask more, by --questions"
            )

    def reset(self) -> None:
        """Cancel the open jobs of an earlier demo, and replace champions that a demo trained by the base model."""
        names = {self._run_of("in_domain").name, self._run_of("shifted").name}
        for job in self.client.jobs.list(only_open=True):
            if job.archive in names:
                self.client.jobs.cancel(job.job_id)
                self.client.jobs.wait(job.job_id)
                self._print(f"cancelled job {job.job_id}, which an interrupted demo left")
        for role in Role:
            self._begin_with_base(role)

    def _begin_with_base(self, role: Role) -> None:
        views = self.client.models.list(role)
        champion = next((view.version for view in views if view.state == "champion"), None)
        if champion is None or champion.adapter_sha256 is None:
            return
        archive = next(iter((champion.training or {}).get("archives", ())), "")  # that it was trained for
        if Demo.is_learning_archive(archive):
            # the base registered last: that of the champion may be of an earlier release, which no worker has
            base = next(view.version for view in views if view.version.adapter_sha256 is None)
            self.client.models.promote(base.name, role, "demo --learn begins with the base")
            self._print(f"the {role} begins with the base again, not with {champion.name}")
        else:
            self._print(
                f"the {role} begins with {champion.name}, which was trained for {archive or 'no archive'}; the figures "
                "show what is learned beyond it"
            )

    def first_answers(self, domain: Domain) -> AnsweredArchive:
        """Draw an archive, ingest it, and answer all its questions."""
        run = self._run_of(domain)
        written, archive = run.draw(self.client.settings)
        run.ingest(self.client, written)
        job, rows = self._ask(run, written.questions)
        self.run.seconds |= {f"{stage}, {domain}": seconds for stage, seconds in run.seconds.items()}
        return AnsweredArchive(run, written, archive, job.job_id, rows)

    def give_feedback(self, answered: AnsweredArchive, questions: Sequence[KnownQuestion]) -> None:
        """Give gold feedback on the first answers to these questions."""
        right = {question.custom_id: question for question in questions}
        above = self.client.settings.set_aside_above
        labels = [_feedback(row, right[row.custom_id], above) for row in answered.rows if row.custom_id in right]
        stored = self.client.reviews.feedback(labels, job_id=answered.job_id, source="gold")
        self._print(f"feedback on {stored.stored} answers from {answered.run.name}: {stored.wrong} of them wrong")

    def train(self, role: Role, stage: str) -> TrainingView:
        """Train one role for the shifted archive; the in-domain one is replayed and must not get worse."""
        from ragllava.cli.progress import training_line, wait_with_bar
        from ragllava.client import TrainingRequest

        request = TrainingRequest(
            role=role,
            archives=(self._run_of("shifted").name, self._run_of("in_domain").name),
            preset=self.client.models.default_preset(),
            overrides=dict(_RERANKER_SETTINGS if role is Role.RERANKER else _GENERATOR_SETTINGS),
            negatives=_HARD_NEGATIVES,
            top_k=self._run_of("shifted").top_k,
            bare_share=_BARE_SHARE,
        )
        with self.run.timed(stage):
            job = wait_with_bar(self.client, self.client.models.train(request), stage, self.run.console)
        if job.training is None or job.training.status is None or not job.training.version:
            raise RagllavaError(
                f"training the {role} ended as {job.state}: {job.error}; see `ragllava jobs show {job.job_id}`"
            )
        self._print(f"job {job.job_id}: {training_line(job.training)}, in {self.run.seconds[stage]:.0f} s")
        return job.training

    def ask_again(self, answered: AnsweredArchive) -> BeforeAfter:
        """Ask the held-out questions again, as a job of their own, and compare."""
        path = answered.written.questions.with_name("held-out.jsonl")
        lines = [{"custom_id": question.custom_id, "question": question.text} for question in answered.held_out]
        write_json_lines(lines, path)
        again = replace(answered.run, seconds={})
        _, rows = self._ask(again, path)
        self.run.seconds[f"answer again, {answered.run.domain}"] = again.seconds["answer"]
        comparison = BeforeAfter(answered.figures(answered.rows), answered.figures(rows))
        self.run.console.print(_comparison_table(answered, comparison))
        return comparison

    def train_on_shuffled(self, answered: AnsweredArchive) -> TrainingView:
        """Train a generator on answers that belong to other questions; those of the gate's questions stay right.

        Afterwards the right feedback is given again, so that no later training learns from the wrong one.
        """
        self._print("once more, on shuffled answers, which the gate should refuse:")
        right, _ = _split(answered.labelled, answered.written, self.client.settings.held_out_share)
        answers = [question.answer for question in right]
        random.Random(self.run.seed).shuffle(answers)  # noqa: S311 - repeatable on purpose
        wrong = [replace(question, answer=answer) for question, answer in zip(right, answers, strict=True)]
        self.give_feedback(answered, wrong)
        training = self.train(Role.GENERATOR, "train on shuffled answers")
        self.give_feedback(answered, right)
        return training

    def conclude(
        self,
        archives: Sequence[AnsweredArchive],
        comparisons: Sequence[BeforeAfter],
        trained: Sequence[TrainingView],
        shuffled: TrainingView,
    ) -> dict[str, Any]:
        """Print PASS or FAIL for each claim of the demo, list the versions, and return the figures."""
        in_domain, shifted = comparisons
        claims = {
            f"{shifted.fall_of_errors:.0%} of the errors about the shifted archive are gone": (
                shifted.fall_of_errors >= NEEDED_FALL
            ),
            f"no total of the in-domain archive fell by more than {100 * in_domain.largest_fall:.1f} points": (
                in_domain.largest_fall <= ALLOWED_FALL
            ),
            f"the gate's decision about the shuffled answers: {shuffled.status}": (
                shuffled.status is TrainingStatus.REFUSED
            ),
        }
        for claim, holds in claims.items():
            self._print(f"  {'PASS' if holds else 'FAIL'}: {claim}")
        for view in self.client.models.list():
            self._print(f"  {view.version.role:<10} {view.state:<11} {view.version.name}")
        self._print(in_use(trained))
        return {
            "seed": self.run.seed,
            "images": self.run.images,
            "archives": {
                answered.run.domain: {
                    "archive": answered.run.name,
                    "questions": len(answered.archive.questions),
                    "learned_from": len(answered.labelled),
                    "held_out": len(answered.held_out),
                    **comparison.as_json(),
                }
                for answered, comparison in zip(archives, comparisons, strict=True)
            },
            "trainings": [view.as_json() for view in trained],
            "shuffled": shuffled.as_json(),
            "passed": all(claims.values()),
            "seconds": self.run.seconds,
            "versions": package_versions(),
        }

    def _ask(self, run: Demo, questions: Path) -> tuple[JobView, list[ResultRow]]:
        from ragllava.client import is_success

        job = run.ask(self.client, questions)
        if not is_success(job.state):
            raise RagllavaError(f"job {job.job_id} ended as {job.state}; `ragllava jobs show {job.job_id}` shows why")
        return job, [*self.client.questions.results(job.job_id)]

    def _run_of(self, domain: Domain) -> Demo:
        """The run for one archive, with its own times."""
        shares: dict[str, Any] = (
            {"top_k": max(1, round(_CANDIDATE_SHARE * self.run.images))}
            if domain == "shifted"
            else {"questions": IN_DOMAIN_QUESTIONS * self.run.questions}
        )
        return replace(self.run, domain=domain, side=is_kept_out, seconds={}, **shares)

    def _print(self, line: str) -> None:
        self.run.console.print(line, markup=False)


def is_kept_out(file_name: str) -> bool:
    """Whether this postcard gets no feedback."""
    from ragllava.training.data.datasets import is_held_out

    return is_held_out(file_name, _KEPT_OUT_SHARE)


def _split(
    questions: Sequence[KnownQuestion], written: WrittenArchive, share: float
) -> tuple[list[KnownQuestion], list[KnownQuestion]]:
    """(questions for the training, questions for the gate), as the train job splits them."""
    from PIL import Image

    from ragllava.imaging.likeness import Likeness, thumbnail
    from ragllava.training.data.datasets import LabelledQuestion
    from ragllava.training.data.examples import Evidence
    from ragllava.training.data.sides import Side, assign_sides

    hashes, thumbnails = {}, {}
    for name in {name for question in questions for name in question.relevant}:
        path = written.pictures / name
        hashes[name] = sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
        with Image.open(path) as picture:
            thumbnails[sha256] = thumbnail(picture)
    labelled = [
        LabelledQuestion(question.text, None, tuple(Evidence(hashes[name], None) for name in question.relevant), ())
        for question in questions
    ]
    sides = assign_sides(labelled, Likeness(thumbnails), held_out=share, calibration=0.0)
    parts: tuple[list[KnownQuestion], list[KnownQuestion]] = ([], [])
    for question in questions:
        parts[sides.of(question.text) is Side.HELD_OUT].append(question)
    return parts


def _feedback(row: ResultRow, question: KnownQuestion, above: float) -> dict[str, Any]:
    """Complete feedback on an answer; irrelevant are wrong pictures that were kept or have a relevance >= `above`."""
    shown = (c for c in row.candidates if c.evidence_no is not None or (c.relevance or 0.0) >= above)
    return {
        "custom_id": question.custom_id,
        "verdict": "right" if is_right(row, question) else "wrong",
        "answer": question.answer,
        "relevant": list(question.relevant),
        "irrelevant": [c.image.source for c in shown if c.image.source not in question.relevant],
    }


def _comparison_table(answered: AnsweredArchive, comparison: BeforeAfter) -> Table:
    before, after = totals(comparison.before), totals(comparison.after)
    for name, kind in comparison.before.by_type.items():
        before[f"  {name} ({kind.questions})"] = kind.score
        after[f"  {name} ({kind.questions})"] = comparison.after.by_type[name].score
    rows = ((name, f"{old:.3f}", f"{after[name]:.3f}", f"{after[name] - old:+.3f}") for name, old in before.items())
    title = f"{len(answered.held_out)} held-out questions from {answered.run.name}"
    return make_table(("figure", "before", "after", "difference"), rows, title=title)
