"""`ragllava feedback` and `ragllava noisy …`: labels of answers, doubtful answers, the exchange with reviewers."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ragllava.cli.options import (
    JOB_ID,
    Commands,
    EnumChoice,
    advising,
    answer_job_argument,
    archive_option,
    confirm,
    connected,
    fields_of,
    input_file,
    job_number,
    json_option,
    make_table,
    print_lines,
    print_result,
    print_rows,
    yes_option,
)
from ragllava.cli.terminal import echo
from ragllava.errors import UsageError
from ragllava.feedback import NoisyReason, NoisyState

if TYPE_CHECKING:
    from rich.table import Table

    from ragllava.client import AnsweredQuestion, Client, NoisyView, QuestionView, StoredFeedback
    from ragllava.feedback import Label
    from ragllava.records import Candidate

MAX_PRESIGN_HOURS = 168  # no S3 store signs an address for more than a week

reason_option = click.option("--reason", type=EnumChoice(NoisyReason), help="Only cases with this reason.")
skip_option = click.option("--skip-invalid", is_flag=True, help="Store the valid lines and list the others.")


@click.command()
@click.argument("file", type=click.Path(path_type=Path, allow_dash=True))
@click.option("--job", "job_id", type=JOB_ID, help="The job of all lines that name none.")
@click.option(
    "--source",
    type=click.Choice(["person", "gold"]),
    default="person",
    show_default=True,
    help="Where the labels come from: a person, or a gold standard.",
)
@skip_option
@json_option
def feedback(file: Path, job_id: int | str | None, source: str, skip_invalid: bool, as_json: bool) -> None:
    """Label answers as right or wrong, from JSONL, CSV or Excel; with - as FILE, from standard input.

    The columns are job, custom_id, verdict (right or wrong), answer (the right one), relevant and irrelevant (images
    by their source; in CSV with `;` between them). A verdict `right` alone means: this answer, from these images.
    """
    with connected() as client, advising(skip_invalid, "stored", "stores"):
        job = None if job_id is None else job_number(job_id, "answer")
        labels = input_file(file)
        stored = client.reviews.feedback(labels, job_id=job, source=source, skip_invalid=skip_invalid)
        _print_stored(client, file, stored, as_json)


@click.group("noisy", cls=Commands)
def noisy() -> None:
    """Questions whose candidates or answer look wrong, or were labelled as wrong."""


@noisy.command("list")
@archive_option
@click.option("--state", type=EnumChoice(NoisyState), help="Only cases in this state.")
@reason_option
@click.option("--limit", default=50, show_default=True, type=click.IntRange(1), help="At most so many.")
@json_option
def list_noisy(archive: str, state: NoisyState | None, reason: NoisyReason | None, limit: int, as_json: bool) -> None:
    """The noisy cases of an archive, those of the newest job first."""
    none = "no such noisy case" if state or reason else f"{archive} has no noisy case"
    with connected() as client:
        cases = client.reviews.list(archive, state=state, reason=reason, limit=limit)
    columns = ("job", "custom_id", "state", "reasons", "question", "answer")
    print_rows([_case_json(case) for case in cases], columns, map(_case_cells, cases), as_json, none=none)
    if len(cases) == limit and not as_json:
        echo(f"the first {limit}; --limit shows more", err=True)


@noisy.command("show")
@answer_job_argument
@click.argument("custom_id")
@json_option
def show_noisy(job_id: int, custom_id: str, as_json: bool) -> None:
    """One question: its candidates, its answer, the reasons to doubt it, and its newest label."""
    with connected() as client:
        view = client.reviews.get(job_id, custom_id)
    body = _case_json(view.case) if view.case else _question_json(view.question)
    candidates = [_candidate_json(candidate) for candidate in view.question.candidates]
    label = fields_of(view.label, "verdict", "answer", "relevant", "irrelevant", "source") if view.label else None
    print_result(body | {"candidates": candidates, "label": label}, _view_lines(view), as_json)


@noisy.command("dismiss")
@archive_option
@click.option("--job", "job_id", type=JOB_ID, help="Only cases of this job.")
@click.option("--custom-id", "custom_ids", multiple=True, help="Only this question of the job; may be repeated.")
@reason_option
@click.option("--older-than", "days", type=click.IntRange(0), metavar="DAYS", help="Only cases logged before that.")
@yes_option
@json_option
def dismiss_noisy(
    archive: str,
    job_id: int | str | None,
    custom_ids: tuple[str, ...],
    reason: NoisyReason | None,
    days: int | None,
    yes: bool,
    as_json: bool,
) -> None:
    """Dismiss open noisy cases: they are not found again, and no longer keep their job from `retention`."""
    if job_id is None and reason is None and days is None and not custom_ids:
        confirm(f"dismiss all open noisy cases of {archive}?", yes)
    before = None if days is None else datetime.now(UTC) - timedelta(days=days)
    with connected() as client:
        job = None if job_id is None else job_number(job_id, "answer")
        number = client.reviews.dismiss(
            archive, job_id=job, custom_ids=list(custom_ids) or None, reason=reason, before=before
        )
    print_result({"dismissed": number}, [f"{archive}: {number} noisy cases dismissed"], as_json)


@noisy.command("export")
@click.argument("file", type=click.Path(path_type=Path))
@archive_option
@click.option(
    "--state",
    type=EnumChoice(NoisyState),
    default=NoisyState.OPEN,
    show_default=True,
    help="Only cases in this state.",
)
@reason_option
@click.option("--config", type=click.Path(path_type=Path), help="Also write the labeling configuration (XML) here.")
@click.option(
    "--presign",
    "presign_hours",
    type=click.IntRange(1, MAX_PRESIGN_HOURS),
    metavar="HOURS",
    help="Sign the pictures' addresses for so long, instead of s3:// addresses that Label Studio signs.",
)
def export_noisy(
    file: Path,
    archive: str,
    state: NoisyState,
    reason: NoisyReason | None,
    config: Path | None,
    presign_hours: int | None,
) -> None:
    """Write noisy cases as Label Studio tasks, with references to the pictures."""
    if config is not None and os.path.realpath(config) == os.path.realpath(file):
        raise UsageError(
            f"{file} cannot hold both the tasks and the labeling configuration; give --config another name"
        )
    expires_s = presign_hours * 3600 if presign_hours else None
    with connected() as client:
        tasks = client.reviews.export_tasks(archive, state=state, reason=reason, expires_s=expires_s)
        client.reviews.save_tasks(file, tasks, config)
    echo(f"{file}: {len(tasks)} tasks")
    if config is not None:
        echo(f"{config}: paste it into the project's labeling interface, Code")


@noisy.command("import")
@click.argument("file", type=click.Path(path_type=Path))
@skip_option
@json_option
def import_noisy(file: Path, skip_invalid: bool, as_json: bool) -> None:
    """Store the reviewers' labels from Label Studio's JSON export; the cases of skipped tasks are dismissed."""
    with connected() as client, advising(skip_invalid, "stored", "stores"):
        imported = client.reviews.import_tasks(file, skip_invalid=skip_invalid)
        _print_stored(client, file, imported.stored, as_json, imported.unannotated)


def _print_stored(client: Client, file: Path, stored: StoredFeedback, as_json: bool, unannotated: int = 0) -> None:
    print_lines(file, stored.errors, "refused")
    body = asdict(stored)
    refused = [{name: error[name] for name in ("line", "code", "message")} for error in body.pop("errors")]
    lines = _stored_lines(client, file, stored, unannotated)
    print_result(body | {"waiting": unannotated, "refused": refused}, lines, as_json)


def _stored_lines(client: Client, file: Path, stored: StoredFeedback, unannotated: int) -> Iterator[str]:
    unchanged = f", {stored.unchanged} unchanged" if stored.unchanged else ""
    left_out = f", {len(stored.errors)} refused" if stored.errors else ""
    yield f"{file}: {stored.stored} labels ({stored.right} right, {stored.wrong} wrong){unchanged}{left_out}"
    if stored.open_cases:
        state, reason = NoisyState.OPEN, NoisyReason.SAID_WRONG
        lists = [
            f"`ragllava noisy list --archive {name} --reason {reason} --state {state}`"
            for name in client.archives.names()
            if client.reviews.list(name, state=state, reason=reason, limit=1)
        ]
        yield f"{stored.open_cases} are labelled wrong without a right answer; {' and '.join(lists)} shows them"
    if stored.dismissed:
        yield f"{stored.dismissed} skipped by the reviewer are dismissed"
    if unannotated:
        yield f"{unannotated} tasks have no annotation yet"


def _view_lines(view: QuestionView) -> Iterator[str | Table]:
    question, case = view.question, view.case
    yield f"question  {question.text}"
    status = question.status or "open"
    confidence = f"  (confidence {question.confidence:.2f})" if question.confidence is not None else ""
    yield f"answer    none: {status}" if question.answer is None else f"answer    {question.answer}{confidence}"
    yield f"noisy     {case.state if case else 'no'}"
    if case is not None:
        yield from (f"  {reason}: {case.details.get(reason, '-')}" for reason in case.reasons)
    if view.label:
        yield f"label     {_label_line(view.label, question)}"
    columns = ("kept", "relevance", "retrieval rank", "image", "caption")
    yield make_table(columns, map(_candidate_cells, question.candidates), box=None)


def _case_cells(case: NoisyView) -> tuple[object, ...]:
    question = case.question
    return question.job_id, question.custom_id, case.state, ", ".join(case.reasons), question.text, question.answer


def _candidate_cells(candidate: Candidate) -> tuple[object, ...]:
    image, kept = candidate.image, None if candidate.evidence_no is None else candidate.evidence_no + 1
    relevance = "not reranked" if candidate.relevance is None else f"{candidate.relevance:.4f}"
    return kept, relevance, candidate.retrieval_rank + 1, image.source, image.caption or ""


def _label_line(label: Label, question: AnsweredQuestion) -> str:
    names = {candidate.image.image_id: candidate.image.source for candidate in question.candidates}
    parts = [f"{label.verdict.value} ({label.source})"]
    if label.answer is not None:
        parts.append(f"right answer: {label.answer}")
    for name, ids in (("relevant", label.relevant), ("irrelevant", label.irrelevant)):
        if ids:
            parts.append(f"{name}: " + ", ".join(names.get(image_id, f"image {image_id}") for image_id in ids))
    return "; ".join(parts)


def _case_json(case: NoisyView) -> dict[str, Any]:
    return _question_json(case.question) | fields_of(case, "state", "reasons", "details", "created_at", "updated_at")


def _question_json(question: AnsweredQuestion) -> dict[str, Any]:
    names = {"job": question.job_id, "custom_id": question.custom_id, "question": question.text}
    return names | fields_of(question, "status", "answer", "confidence")


def _candidate_json(candidate: Candidate) -> dict[str, Any]:
    scores = fields_of(candidate, "retrieval_score", "relevance", "origin", "caption_score")
    ranks = {"retrieval_rank": candidate.retrieval_rank + 1, "kept": candidate.evidence_no is not None}
    return fields_of(candidate.image, "image_id", "source", "caption") | scores | ranks
