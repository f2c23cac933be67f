"""From what people say about answers to labels (docs/feedback-and-training.md).

A verdict `right` with nothing more means that the answer given is the right one and that the kept images are relevant.
A verdict `wrong` makes the question a noisy case; with the right answer or an image beside it the case is `labelled`,
alone it stays `open`: it says that something is wrong, and nothing yet that could be learned.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sqlalchemy import Connection, Engine

from ragllava.answer_text import exact_match
from ragllava.errors import InvalidInput, LineError, UsageError
from ragllava.records import AnswerStatus, JobKind, Label, NoisyCase, NoisyReason, NoisyState, StoredImage, Verdict
from ragllava.stages.feedback.files import Dismissal, FeedbackFile, FeedbackLine, ImageName, Rejected
from ragllava.stores.database import in_transaction
from ragllava.stores.jobs import answered
from ragllava.stores.jobs.answered import AnsweredQuestion, QuestionKey
from ragllava.stores.learning import labels, noisy
from ragllava.stores.learning.noisy import NoisyView

SOURCES = ("person", "gold")

_JUDGED = (AnswerStatus.ANSWERED, AnswerStatus.NO_EVIDENCE)


@dataclass(frozen=True, slots=True)
class StoredFeedback:
    """What became of a file: stored labels by verdict, cases put aside, and the lines that were left out.

    `unchanged` counts the lines that say what the question's newest label says: they are no new labels.
    `open_cases` counts the questions said to be wrong without more: they wait for somebody who knows better.
    """

    right: int
    wrong: int
    unchanged: int
    open_cases: int
    dismissed: int
    errors: list[LineError]

    @property
    def stored(self) -> int:
        """How many labels there are now because of this file."""
        return self.right + self.wrong


@dataclass(frozen=True, slots=True)
class QuestionView:
    """One question of an answer job as a reviewer sees it. `case` None: no noisy case; `label` None: unlabelled."""

    question: AnsweredQuestion
    case: NoisyView | None
    label: Label | None


@dataclass(frozen=True, slots=True)
class _Known:
    """What the lines of a file refer to."""

    kinds: Mapping[int, str]
    questions: Mapping[tuple[int, str], AnsweredQuestion]
    by_source: Mapping[int, Mapping[str, tuple[StoredImage, ...]]]  # by archive
    by_id: Mapping[int, Mapping[int, StoredImage]]


def store_feedback(
    engine: Engine, file: FeedbackFile, *, source: str = "person", skip_invalid: bool = False
) -> StoredFeedback:
    """Store the labels of a file in one transaction; the newest label of a question counts, and is not stored twice.

    Raises InvalidInput when a line is invalid, or names a job, question or image that is not there: then nothing
    was stored. With `skip_invalid` such lines are left out and told, unless no line is left.
    """
    if source not in SOURCES:
        raise UsageError(f"a label's source is {' or '.join(SOURCES)}, not {source!r}")

    def work(connection: Connection) -> StoredFeedback:
        known = _look_up(connection, file)
        found, errors = _as_labels(file, known, source)
        dismissed, refused = _as_dismissed(file, known)
        errors = sorted([*errors, *refused], key=lambda error: error.line)
        if errors and not (skip_invalid and (found or dismissed)):
            raise InvalidInput(file.name, errors)
        newest = labels.newest_labels(connection, [label.key for label in found])
        # Said again it teaches nothing new, and must not make a training due.
        new = [label for label in found if not label.says_the_same(newest.get(label.key))]
        labels.insert_labels(connection, new)
        opened = _mark_cases(connection, found, known)
        put_aside = noisy.set_state(connection, dismissed, NoisyState.DISMISSED)
        counts = Counter(label.verdict for label in new)
        unchanged = len(found) - len(new)
        return StoredFeedback(counts[Verdict.RIGHT], counts[Verdict.WRONG], unchanged, opened, put_aside, errors)

    return in_transaction(engine, work)


def view_question(connection: Connection, job_id: int, custom_id: str) -> QuestionView:
    """Look one question up. Raises UsageError when the job has no such question."""
    question = answered.find_questions(connection, [(job_id, custom_id)]).get((job_id, custom_id))
    if question is None:
        raise UsageError(f'job {job_id} has no question with the custom_id "{custom_id}"')
    case = noisy.find_case(connection, job_id, question.question_no)
    return QuestionView(question, case, labels.newest_labels(connection, [question.key]).get(question.key))


def _look_up(connection: Connection, file: FeedbackFile) -> _Known:
    said = file.said
    lines: list[FeedbackLine | Dismissal] = [*said, *file.dismissed]
    questions = answered.find_questions(connection, [(line.job_id, line.custom_id) for line in lines])
    names: dict[int, set[ImageName]] = defaultdict(set)
    for line in said:
        if question := questions.get((line.job_id, line.custom_id)):
            names[question.archive_id].update((*(line.relevant or ()), *line.irrelevant))
    return _Known(
        kinds=answered.kinds_of_jobs(connection, [line.job_id for line in lines]),
        questions=questions,
        by_source={
            archive_id: labels.images_by_source(connection, archive_id, [n for n in wanted if isinstance(n, str)])
            for archive_id, wanted in names.items()
        },
        by_id={
            archive_id: labels.images_by_id(connection, archive_id, [n for n in wanted if isinstance(n, int)])
            for archive_id, wanted in names.items()
        },
    )


def _as_labels(file: FeedbackFile, known: _Known, source: str) -> tuple[list[Label], list[LineError]]:
    """A label or an error for each input line; both lists in the order of the lines."""
    found: list[Label] = []
    errors: list[LineError] = []
    first_lines: dict[tuple[int, str], int] = {}
    for line in file.lines:
        if isinstance(line, LineError):
            errors.append(line)
            continue
        try:
            first = first_lines.setdefault((line.job_id, line.custom_id), line.line)
            if first != line.line:
                raise Rejected("duplicate_question", f"line {first} speaks of this question already")
            found.append(_label(line, _judged_question(line, known), known, source))
        except Rejected as rejected:
            errors.append(LineError(rejected.code, line.line, rejected.message, line.custom_id))
    return found, errors


def _as_dismissed(file: FeedbackFile, known: _Known) -> tuple[list[QuestionKey], list[LineError]]:
    """The questions put aside, or an error for each that is not there."""
    keys: list[QuestionKey] = []
    errors: list[LineError] = []
    for line in file.dismissed:
        try:
            keys.append(_question(line, known).key)
        except Rejected as rejected:
            errors.append(LineError(rejected.code, line.line, rejected.message, line.custom_id))
    return keys, errors


def _question(line: FeedbackLine | Dismissal, known: _Known) -> AnsweredQuestion:
    kind = known.kinds.get(line.job_id)
    if kind != JobKind.ANSWER:
        what = f"job {line.job_id} has no answers, its kind is {kind}" if kind else f"there is no job {line.job_id}"
        raise Rejected("unknown_job", f"{what}; `ragllava jobs list` shows all")
    question = known.questions.get((line.job_id, line.custom_id))
    if question is None:
        raise Rejected("unknown_question", f'job {line.job_id} has no question with the custom_id "{line.custom_id}"')
    if line.asked is not None and line.asked.strip() != question.text:
        message = f'question "{line.custom_id}" of job {line.job_id} is {question.text!r}, not {line.asked.strip()!r}'
        raise Rejected("unknown_question", message)
    return question


def _judged_question(line: FeedbackLine, known: _Known) -> AnsweredQuestion:
    question = _question(line, known)
    if question.status not in _JUDGED:
        ended = f"ended as {question.status}" if question.status else "is still open"
        raise Rejected("no_answer", f'question "{line.custom_id}" {ended}; there is no answer to judge')
    return question


def _label(line: FeedbackLine, question: AnsweredQuestion, known: _Known, source: str) -> Label:
    irrelevant = tuple(_image_id(name, question, known) for name in line.irrelevant)
    is_right = line.verdict is Verdict.RIGHT
    if line.relevant is None:
        kept = [candidate.image.image_id for candidate in question.evidence] if is_right else []
        relevant = tuple(image_id for image_id in kept if image_id not in irrelevant)
    else:
        relevant = tuple(_image_id(name, question, known) for name in line.relevant)
    if both := set(relevant) & set(irrelevant):
        raise Rejected("contradiction", f"image {min(both)} is called relevant and irrelevant")
    if not is_right and line.answer is not None and exact_match(line.answer, question.answer or ""):
        raise Rejected("contradiction", f"the answer {question.answer!r} is called wrong and given as the right one")
    if is_right and question.status is AnswerStatus.NO_EVIDENCE and (line.answer or relevant):
        raise Rejected("contradiction", "that there is no evidence is called right, and yet there is some")
    answer = line.answer if line.answer is not None else question.answer if is_right else None
    return Label(question.job_id, question.question_no, line.verdict, answer, relevant, irrelevant, source)


def _image_id(name: ImageName, question: AnsweredQuestion, known: _Known) -> int:
    """The image of a name: one of the question's candidates, else the only one of the archive."""
    if isinstance(name, int):
        if name not in known.by_id[question.archive_id]:
            raise Rejected("unknown_image", f"the archive {question.archive} has no image with the id {name}")
        return name
    found = [candidate.image for candidate in question.candidates if candidate.image.source == name]
    found = found or list(known.by_source[question.archive_id].get(name, ()))
    if not found:
        raise Rejected("unknown_image", f"the archive {question.archive} has no image {name!r}")
    if len(found) > 1:
        ids = ", ".join(str(image.image_id) for image in found[:5])
        raise Rejected("unknown_image", f"several images are called {name!r}: name one by its id ({ids}), in JSON")
    return found[0].image_id


def _mark_cases(connection: Connection, found: Sequence[Label], known: _Known) -> int:
    """Make noisy cases of what is wrong; all that was labelled is `labelled`. Returns how many stay open."""
    by_key = {question.key: question for question in known.questions.values()}
    wrong: dict[tuple[int, int], list[NoisyCase]] = defaultdict(list)
    for label in found:
        if label.verdict is Verdict.WRONG:
            question = by_key[label.key]
            sentence = _sentence(label, question)
            case = NoisyCase(label.question_no, (NoisyReason.SAID_WRONG,), {NoisyReason.SAID_WRONG.value: sentence})
            wrong[question.archive_id, label.job_id].append(case)
    for (archive_id, job_id), cases in sorted(wrong.items(), key=lambda item: item[0]):
        noisy.insert_cases(connection, archive_id, job_id, cases, reopen=True)
    teaching = [label for label in found if _teaches(label)]
    keys = sorted(label.key for label in teaching)
    noisy.set_state(connection, keys, NoisyState.LABELLED)
    return len(found) - len(teaching)


def _teaches(label: Label) -> bool:
    return label.verdict is Verdict.RIGHT or bool(label.answer or label.relevant or label.irrelevant)


def _sentence(label: Label, question: AnsweredQuestion) -> str:
    who = "a person" if label.source == "person" else "the gold label"
    said = f"the answer {question.answer!r} wrong" if question.answer is not None else "it wrong that no image was kept"
    right = f"; right is {label.answer!r}" if label.answer else ""
    return f"{who} calls {said}{right}"
