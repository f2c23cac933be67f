"""`ragllava feedback` and `ragllava noisy …`: what was wrong, who says so, and the exchange with reviewers."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ragllava.cli.options import JOB_ID, SHOWN_LINES, archive_option, connected, json_option, print_json, print_table
from ragllava.errors import InvalidInput, LineError, UsageError
from ragllava.records import NoisyReason, NoisyState

if TYPE_CHECKING:
    from ragllava.client import Client
    from ragllava.records import Candidate, Label
    from ragllava.stages.feedback.labels import StoredFeedback
    from ragllava.stores.jobs.answered import AnsweredQuestion
    from ragllava.stores.learning.noisy import NoisyView

MAX_PRESIGN_HOURS = 168  # more than a week no S3 store signs

reason_option = click.option(
    "--reason", type=click.Choice([reason.value for reason in NoisyReason]), help="Only cases with this reason."
)
skip_option = click.option("--skip-invalid", is_flag=True, help="Store the valid lines, and tell the others.")


@click.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--job", "job_id", type=JOB_ID, help="The job of all lines that name none.")
@click.option(
    "--source",
    type=click.Choice(["person", "gold"]),
    default="person",
    show_default=True,
    help="Who says so: a person, or a gold standard.",
)
@skip_option
@json_option
def feedback(file: Path, job_id: int | None, source: str, skip_invalid: bool, as_json: bool) -> None:
    """Say which answers are right or wrong: JSONL or CSV.

    The columns are job, custom_id, verdict (right or wrong), answer (the right one), relevant and irrelevant (images
    by their source; in CSV with `;` between them). A verdict `right` alone means: this answer, from these images.
    """
    with connected() as client:
        try:
            stored = client.feedback(file, job_id=job_id, source=source, skip_invalid=skip_invalid)
        except InvalidInput as error:
            _advise(error, skip_invalid)
            raise
        doubted = _said_wrong(client) if stored.open_cases else []
    _tell(file, stored, as_json, doubted)


@click.group("noisy")
def noisy() -> None:
    """Questions whose candidates or answer look wrong, or were said to be."""


@noisy.command("list")
@archive_option
@click.option("--state", type=click.Choice([state.value for state in NoisyState]), help="Only cases in this state.")
@reason_option
@click.option("--limit", default=50, show_default=True, type=click.IntRange(1), help="At most so many.")
@json_option
def list_noisy(archive: str, state: str | None, reason: str | None, limit: int, as_json: bool) -> None:
    """The noisy cases of an archive, those of the newest job first."""
    from rich.table import Table
    from rich.text import Text

    with connected() as client:
        cases = client.noisy_cases(archive, state=_state(state), reason=_reason(reason), limit=limit)
    if as_json:
        print_json([_case_json(case) for case in cases])
        return
    if not cases:
        click.echo("no such noisy case" if state or reason else f"{archive} has no noisy case")
        return
    table = Table("job", "custom_id", "state", "reasons", "question", "answer", box=None)
    for case in cases:
        question = case.question
        reasons = ", ".join(found.value for found in case.reasons)
        cells = (question.custom_id, case.state.value, reasons, question.text, question.answer or "-")
        table.add_row(str(question.job_id), *map(Text, cells))
    print_table(table)
    if len(cases) == limit:
        click.echo(f"the first {limit}; --limit shows more", err=True)


@noisy.command("show")
@click.argument("job_id", type=JOB_ID)
@click.argument("custom_id")
@json_option
def show_noisy(job_id: int, custom_id: str, as_json: bool) -> None:
    """One question: its candidates, its answer, the reasons to doubt it, and what was said about it."""
    with connected() as client:
        found = client.look_into(job_id, custom_id)
    question, case, label = found.question, found.case, found.label
    if as_json:
        body = _case_json(case) if case else _question_json(question)
        print_json(body | {"candidates": [_candidate_json(candidate) for candidate in question.candidates],
                           "label": _label_json(label) if label else None})  # fmt: skip
        return
    click.echo(f"question  {question.text}")
    status = question.status.value if question.status else "open"
    sure = f"  (confidence {question.confidence:.2f})" if question.confidence is not None else ""
    click.echo(f"answer    {question.answer}{sure}" if question.answer is not None else f"answer    none: {status}")
    click.echo(f"noisy     {case.state.value}" if case else "noisy     no")
    for reason in case.reasons if case else ():
        click.echo(f"  {reason.value}: {case.details.get(reason.value, '-') if case else ''}")
    if label:
        click.echo(f"label     {_label_line(label, question)}")
    _print_candidates(question.candidates)


@noisy.command("export")
@click.argument("file", type=click.Path(path_type=Path))
@archive_option
@click.option(
    "--state",
    type=click.Choice([state.value for state in NoisyState]),
    default=NoisyState.OPEN.value,
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
    help="Sign the pictures' addresses for so long, instead of s3:// addresses that Label Studio signs itself.",
)
def export_noisy(
    file: Path, archive: str, state: str, reason: str | None, config: Path | None, presign_hours: int | None
) -> None:
    """Write noisy cases as Label Studio tasks, with references to the pictures."""
    from ragllava.stages.feedback.label_studio import LABELING_CONFIG, as_task
    from ragllava.stages.results.results import output_file

    if config is not None and os.path.realpath(config) == os.path.realpath(file):
        raise UsageError(
            f"{file} cannot hold both the tasks and the labeling configuration; give --config another name"
        )
    expires_s = presign_hours * 3600 if presign_hours else None
    with connected() as client:
        cases = client.noisy_cases(archive, state=_state(state), reason=_reason(reason))
        tasks = [as_task(case, lambda image: client.picture_address(image, expires_s)) for case in cases]
    with ExitStack() as files:  # neither appears without the other
        part = files.enter_context(output_file(file))
        part.write_text(json.dumps(tasks, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        if config is not None:
            files.enter_context(output_file(config)).write_text(LABELING_CONFIG, encoding="utf-8")
    click.echo(f"{file}: {len(tasks)} tasks")
    if config is not None:
        click.echo(f"{config}: paste it into the project's labeling interface, Code")


@noisy.command("import")
@click.argument("file", type=click.Path(path_type=Path))
@skip_option
@json_option
def import_noisy(file: Path, skip_invalid: bool, as_json: bool) -> None:
    """Store what reviewers said, from Label Studio's JSON export; skipped tasks are dismissed."""
    with connected() as client:
        try:
            stored, waiting = client.review(file, skip_invalid=skip_invalid)
        except InvalidInput as error:
            _advise(error, skip_invalid)
            raise
        doubted = _said_wrong(client) if stored.open_cases else []
    _tell(file, stored, as_json, doubted, waiting)


def _advise(error: InvalidInput, skip_invalid: bool) -> None:
    if any(line.line for line in error.errors):
        advice = "no line is valid" if skip_invalid else "--skip-invalid stores the valid lines, if there are any"
        error.add_note(f"nothing was stored; {advice}")


def _said_wrong(client: Client) -> list[str]:
    """The archives with open cases that somebody called wrong."""
    from ragllava.stores.archives import archive
    from ragllava.stores.database import in_transaction

    names = [found.name for found in in_transaction(client.engine, archive.list_archives)]
    state, reason = NoisyState.OPEN, NoisyReason.SAID_WRONG
    return [name for name in names if client.noisy_cases(name, state=state, reason=reason, limit=1)]


def _tell(file: Path, stored: StoredFeedback, as_json: bool, doubted: Sequence[str], waiting: int = 0) -> None:
    """`doubted` are the archives whose open cases the advice names."""
    _print_errors(file, stored.errors)
    if as_json:
        print_json(
            {
                "right": stored.right,
                "wrong": stored.wrong,
                "unchanged": stored.unchanged,
                "open_cases": stored.open_cases,
                "dismissed": stored.dismissed,
                "waiting": waiting,
                "refused": [
                    {"line": error.line, "code": error.code, "message": error.message} for error in stored.errors
                ],
            }
        )
        return
    unchanged = f", {stored.unchanged} unchanged" if stored.unchanged else ""
    refused = f", {len(stored.errors)} refused" if stored.errors else ""
    click.echo(f"{file}: {stored.stored} labels ({stored.right} right, {stored.wrong} wrong){unchanged}{refused}")
    if stored.open_cases:
        lists = (f"`ragllava noisy list --archive {name} --reason said_wrong --state open`" for name in doubted)
        click.echo(f"{stored.open_cases} are called wrong without more; {' and '.join(lists)} shows them")
    if stored.dismissed:
        click.echo(f"{stored.dismissed} skipped by the reviewer are dismissed")
    if waiting:
        click.echo(f"{waiting} tasks have no annotation yet")


def _print_errors(file: Path, errors: Sequence[LineError]) -> None:
    for error in errors[:SHOWN_LINES]:
        click.echo(f"{file}, line {error.line}: {error.message} [{error.code}]", err=True)
    if len(errors) > SHOWN_LINES:
        click.echo(f"… and {len(errors) - SHOWN_LINES} more refused lines", err=True)


def _print_candidates(candidates: Sequence[Candidate]) -> None:
    from rich.table import Table
    from rich.text import Text

    table = Table("kept", "relevance", "clip rank", "image", "caption", box=None)
    for candidate in candidates:
        kept = "-" if candidate.evidence_no is None else str(candidate.evidence_no + 1)
        cells = (candidate.image.source, candidate.image.caption or "")
        table.add_row(kept, f"{candidate.relevance:.4f}", str(candidate.retrieval_rank + 1), *map(Text, cells))
    print_table(table)


def _label_line(label: Label, question: AnsweredQuestion) -> str:
    names = {candidate.image.image_id: candidate.image.source for candidate in question.candidates}
    parts = [f"{label.verdict.value} ({label.source})"]
    if label.answer is not None:
        parts.append(f"right answer: {label.answer}")
    for what, ids in (("relevant", label.relevant), ("irrelevant", label.irrelevant)):
        if ids:
            parts.append(f"{what}: " + ", ".join(names.get(image_id, f"image {image_id}") for image_id in ids))
    return "; ".join(parts)


def _case_json(case: NoisyView) -> dict[str, Any]:
    return _question_json(case.question) | {
        "state": case.state.value,
        "reasons": [reason.value for reason in case.reasons],
        "details": case.details,
        "created_at": case.created_at,
        "updated_at": case.updated_at,
    }


def _question_json(question: AnsweredQuestion) -> dict[str, Any]:
    return {
        "job": question.job_id,
        "custom_id": question.custom_id,
        "question": question.text,
        "status": question.status.value if question.status else None,
        "answer": question.answer,
        "confidence": question.confidence,
    }


def _candidate_json(candidate: Candidate) -> dict[str, Any]:
    return {
        "image_id": candidate.image.image_id,
        "source": candidate.image.source,
        "caption": candidate.image.caption,
        "retrieval_rank": candidate.retrieval_rank + 1,
        "retrieval_score": candidate.retrieval_score,
        "relevance": candidate.relevance,
        "kept": candidate.evidence_no is not None,
    }


def _label_json(label: Label) -> dict[str, Any]:
    return {
        "verdict": label.verdict.value,
        "answer": label.answer,
        "relevant": list(label.relevant),
        "irrelevant": list(label.irrelevant),
        "source": label.source,
    }


def _state(name: str | None) -> NoisyState | None:
    return NoisyState(name) if name else None


def _reason(name: str | None) -> NoisyReason | None:
    return NoisyReason(name) if name else None
