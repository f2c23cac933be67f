"""From feedback about answers to labels (docs/feedback-and-training.md).

A verdict `right` alone means that the answer given is right and that the kept images are relevant. A verdict `wrong`
makes the question a noisy case. If the line also names the right answer or an image, the case is `labelled`; else it
stays `open`, because there is nothing to learn from yet. What an earlier label says about images stays then, and so
does the right answer that it gave.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime

from sqlalchemy import Connection

from ragllava.answer_text import exact_match
from ragllava.errors import InvalidInput, LineError, UsageError
from ragllava.feedback import Label, NoisyCase, NoisyReason, NoisyState, Verdict
from ragllava.records import AnswerStatus, JobKind, StoredImage
from ragllava.stages.feedback.files import Dismissal, FeedbackFile, FeedbackLine, ImageName
from ragllava.stages.record_files.layouts import Rejected
from ragllava.stores.archives import archive
from ragllava.stores.jobs import answered
from ragllava.stores.jobs.answered import AnsweredQuestion, QuestionKey
from ragllava.stores.learning import labels, noisy
from ragllava.stores.learning.noisy import NoisyView

SOURCES = ("person", "gold")

_WITH_OUTCOME = (AnswerStatus.ANSWERED, AnswerStatus.NO_EVIDENCE)


@dataclass(frozen=True, slots=True)
class StoredFeedback:
    """The result of storing a file: new labels by verdict, dismissed cases, and the lines that were left out.

    `unchanged` counts the lines that repeat the question's newest label; they make no new label. `open_cases` counts
    the questions called wrong without a right answer or an image.
    """

    right: int
    wrong: int
    unchanged: int
    open_cases: int
    dismissed: int
    errors: list[LineError]

    @property
    def stored(self) -> int:
        """How many labels the file added."""
        return self.right + self.wrong


@dataclass(frozen=True, slots=True)
class QuestionView:
    """One question of an answer job as a reviewer sees it. `case` None: not a noisy case; `label` None: unlabelled."""

    question: AnsweredQuestion
    case: NoisyView | None
    label: Label | None


@dataclass(frozen=True, slots=True)
class _References:
    """What the lines of a file refer to."""

    kinds: Mapping[int, str]  # by job
    questions: Mapping[tuple[int, str], AnsweredQuestion]  # by job and custom_id
    by_source: Mapping[int, Mapping[str, list[StoredImage]]]  # by archive
    by_id: Mapping[int, Mapping[int, StoredImage]]  # by archive


def store_feedback(
    connection: Connection, file: FeedbackFile, *, source: str = "person", skip_invalid: bool = False
) -> StoredFeedback:
    """Store the labels of a file; the newest label of a question counts, and is not stored twice.

    Raises InvalidInput when a line is invalid, or names a job, question or image that does not exist; then nothing is
    stored. With `skip_invalid` such lines are left out and reported, unless no line is left.
    """
    if source not in SOURCES:
        raise UsageError(f"a label's source is {' or '.join(SOURCES)}, not {source!r}")
    references = _look_up(connection, file)
    given, dismissed, errors = _resolve(file, references, source)
    if errors and not (skip_invalid and (given or dismissed)):
        raise InvalidInput(file.name, errors)
    noisy.lock_cases(connection, [*(label.key for label in given), *dismissed])
    newest = labels.newest_labels(connection, [label.key for label in given])
    kept = [_keep_earlier(label, newest.get(label.key)) for label in given]
    # A repeated label teaches nothing new, and must not make a training due.
    new = [label for label in kept if not label.says_the_same(newest.get(label.key))]
    labels.insert_labels(connection, new)
    # A bare `wrong` that repeats a known one says nothing about its case.
    told = [
        label
        for label, full in zip(given, kept, strict=True)
        if full == label or not full.says_the_same(newest.get(label.key))
    ]
    open_cases = _mark_cases(connection, told, references)
    dismissals = noisy.set_state(connection, dismissed, NoisyState.DISMISSED)
    counts = Counter(label.verdict for label in new)
    unchanged = len(given) - len(new)
    return StoredFeedback(counts[Verdict.RIGHT], counts[Verdict.WRONG], unchanged, open_cases, dismissals, errors)


def view_question(connection: Connection, job_id: int, custom_id: str) -> QuestionView:
    """Look one question up. Raises UsageError when the job has no such question."""
    question = answered.find_questions(connection, [(job_id, custom_id)]).get((job_id, custom_id))
    if question is None:
        raise UsageError(f'job {job_id} has no question with the custom_id "{custom_id}"')
    case = noisy.find_case(connection, job_id, question.question_no)
    return QuestionView(question, case, labels.newest_labels(connection, [question.key]).get(question.key))


def _look_up(connection: Connection, file: FeedbackFile) -> _References:
    lines: list[FeedbackLine | Dismissal] = [*file.valid, *file.dismissed]
    questions = answered.find_questions(connection, [(line.job_id, line.custom_id) for line in lines])
    names: dict[int, set[ImageName]] = defaultdict(set)
    for line in file.valid:
        if question := questions.get((line.job_id, line.custom_id)):
            names[question.archive_id].update((*(line.relevant or ()), *line.irrelevant))
    return _References(
        kinds=answered.kinds_of_jobs(connection, [line.job_id for line in lines]),
        questions=questions,
        by_source={
            archive_id: archive.images_by_source(connection, archive_id, [n for n in wanted if isinstance(n, str)])
            for archive_id, wanted in names.items()
        },
        by_id={
            archive_id: archive.load_images(connection, [n for n in wanted if isinstance(n, int)], archive_id)
            for archive_id, wanted in names.items()
        },
    )


def _resolve(
    file: FeedbackFile, references: _References, source: str
) -> tuple[list[Label], list[QuestionKey], list[LineError]]:
    """The labels, the dismissed questions, and the errors, each in the order of the lines."""
    given: list[Label] = []
    dismissed: list[QuestionKey] = []
    errors = list(file.errors)
    first_lines: dict[tuple[int, str], int] = {}
    lines: list[FeedbackLine | Dismissal] = [*file.valid, *file.dismissed]
    for line in lines:
        try:
            if isinstance(line, Dismissal):
                dismissed.append(_question(line, references).key)
                continue
            first = first_lines.setdefault((line.job_id, line.custom_id), line.line)
            if first != line.line:
                raise Rejected("duplicate_question", f"line {first} is about this question already")
            given.append(_label(line, references, source))
        except Rejected as rejected:
            errors.append(rejected.at(line.line, line.custom_id))
    return given, dismissed, sorted(errors, key=lambda error: error.line)


def _question(line: FeedbackLine | Dismissal, references: _References) -> AnsweredQuestion:
    kind = references.kinds.get(line.job_id)
    if kind != JobKind.ANSWER:
        problem = f"job {line.job_id} has no answers, its kind is {kind}" if kind else f"there is no job {line.job_id}"
        raise Rejected("unknown_job", f"{problem}; `ragllava jobs list` shows all")
    question = references.questions.get((line.job_id, line.custom_id))
    if question is None:
        raise Rejected("unknown_question", f'job {line.job_id} has no question with the custom_id "{line.custom_id}"')
    if line.asked is not None and line.asked.strip() != question.text:
        message = f'question "{line.custom_id}" of job {line.job_id} is {question.text!r}, not {line.asked.strip()!r}'
        raise Rejected("unknown_question", message)
    return question


def _label(line: FeedbackLine, references: _References, source: str) -> Label:
    question = _question(line, references)
    if question.status not in _WITH_OUTCOME:
        state = f"ended as {question.status}" if question.status else "is still open"
        raise Rejected("no_answer", f'question "{line.custom_id}" {state}; there is no answer to label')
    irrelevant = tuple(_image_id(name, question, references) for name in line.irrelevant)
    is_right = line.verdict is Verdict.RIGHT
    if line.relevant is None:
        kept = [candidate.image.image_id for candidate in question.evidence] if is_right else []
        relevant = tuple(image_id for image_id in kept if image_id not in irrelevant)
    else:
        relevant = tuple(_image_id(name, question, references) for name in line.relevant)
    if both := set(relevant) & set(irrelevant):
        raise Rejected("contradiction", f"image {min(both)} is called relevant and irrelevant")
    if not is_right and line.answer is not None and exact_match(line.answer, question.answer or ""):
        raise Rejected("contradiction", f"the answer {question.answer!r} is called wrong and given as the right one")
    if is_right and question.status is AnswerStatus.NO_EVIDENCE and (line.answer or relevant):
        raise Rejected("contradiction", "the outcome `no_evidence` is called right, but the line names evidence")
    answer = line.answer if line.answer is not None else question.answer if is_right else None
    return Label(question.job_id, question.question_no, line.verdict, answer, relevant, irrelevant, source)


def _image_id(name: ImageName, question: AnsweredQuestion, references: _References) -> int:
    """The image of a name: one of the question's candidates, else the only one of the archive."""
    if isinstance(name, int):
        if name not in references.by_id[question.archive_id]:
            raise Rejected("unknown_image", f"the archive {question.archive} has no image with the id {name}")
        return name
    matches = [candidate.image for candidate in question.candidates if candidate.image.source == name]
    matches = matches or references.by_source[question.archive_id].get(name, [])
    if not matches:
        raise Rejected("unknown_image", f"the archive {question.archive} has no image {name!r}")
    if len(matches) > 1:
        ids = ", ".join(str(image.image_id) for image in matches[:5])
        raise Rejected("unknown_image", f"several images are called {name!r}: name one by its id ({ids}), in JSON")
    return matches[0].image_id


def dismiss_cases(
    connection: Connection,
    archive_id: int,
    *,
    job_id: int | None = None,
    custom_ids: Sequence[str] | None = None,
    reason: NoisyReason | None = None,
    before: datetime | None = None,
) -> int:
    """Dismiss the open noisy cases of an archive that fulfil all conditions given; returns how many.

    Raises UsageError for a custom_id that is not of an open case of the job.
    """
    numbers = None
    if job_id is not None and custom_ids is not None:
        questions = answered.find_questions(connection, [(job_id, custom_id) for custom_id in custom_ids])
        numbers = [question.question_no for question in questions.values() if question.archive_id == archive_id]
        open_numbers = noisy.open_numbers(connection, archive_id, job_id, numbers)
        open_ids = {question.custom_id for question in questions.values() if question.question_no in open_numbers}
        if missing := [custom_id for custom_id in custom_ids if custom_id not in open_ids]:
            raise UsageError(f"job {job_id} has no open noisy case with the custom_id {missing[0]!r}")
    return noisy.dismiss(connection, archive_id, job_id=job_id, numbers=numbers, reason=reason, before=before)


def _keep_earlier(label: Label, earlier: Label | None) -> Label:
    """A bare `wrong` with what the earlier label says about images, and with the right answer, if it gave one.

    The answer of an earlier `right` is the one that is called wrong now.
    """
    if earlier is None or not _is_bare_wrong(label):
        return label
    answer = earlier.answer if earlier.verdict is Verdict.WRONG else None
    return replace(label, answer=answer, relevant=earlier.relevant, irrelevant=earlier.irrelevant)


def _is_bare_wrong(label: Label) -> bool:
    return label.verdict is Verdict.WRONG and not (label.answer or label.relevant or label.irrelevant)


def _mark_cases(connection: Connection, given: Sequence[Label], references: _References) -> int:
    """Make noisy cases of wrong answers; those with something to learn are `labelled`. Returns how many stay open."""
    by_key = {question.key: question for question in references.questions.values()}
    wrong: dict[tuple[int, int], list[NoisyCase]] = defaultdict(list)
    for label in given:
        if label.verdict is Verdict.WRONG:
            question = by_key[label.key]
            details = {NoisyReason.SAID_WRONG.value: _why_wrong(label, question)}
            case = NoisyCase(label.question_no, (NoisyReason.SAID_WRONG,), details)
            wrong[question.archive_id, label.job_id].append(case)
    for (archive_id, job_id), cases in sorted(wrong.items(), key=lambda item: item[0]):
        noisy.insert_cases(connection, archive_id, job_id, cases, reopen=True)
    labelled = [label.key for label in given if not _is_bare_wrong(label)]
    noisy.set_state(connection, sorted(labelled), NoisyState.LABELLED)
    return len(given) - len(labelled)


def _why_wrong(label: Label, question: AnsweredQuestion) -> str:
    who = "a person" if label.source == "person" else "the gold label"
    outcome = f"the answer {question.answer!r}" if question.answer is not None else "the outcome `no_evidence`"
    right = f"; the right answer is {label.answer!r}" if label.answer else ""
    return f"{who} calls {outcome} wrong{right}"
