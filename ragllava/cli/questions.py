"""`ragllava submit`, `ask`, `results` and `report`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import click

from ragllava.cli.options import (
    JOB_ID,
    SHOWN_LINES,
    NumberRange,
    answer_options,
    archive_option,
    as_answer_options,
    connected,
    json_option,
    print_json,
)
from ragllava.errors import InvalidInput, LineError


@click.command()
@click.argument("file", type=click.Path(path_type=Path))
@archive_option
@answer_options
@click.option("--skip-invalid", is_flag=True, help="Submit the valid lines; the others end as failed.")
@click.option("--key", metavar="TEXT", help="Idempotency key: the same key and file make one job.")
@click.option("--wait", is_flag=True, help="Wait for the job, with a progress bar.")
@json_option
def submit(  # noqa: PLR0917 - one argument for each option
    file: Path,
    archive: str,
    top_k: int | None,
    top_n: int | None,
    threshold: float | None,
    bare_prompt: bool,
    skip_invalid: bool,
    key: str | None,
    wait: bool,
    as_json: bool,
) -> None:
    """Queue a file of questions: JSONL (custom_id, question; or OpenAI Batch lines), CSV or Parquet."""
    from rich.console import Console

    from ragllava.cli.progress import inputs, outcome_line, wait_or_leave, warn_without_worker
    from ragllava.client import is_success
    from ragllava.stages.answer.submit import Submission

    with connected() as client:
        options = as_answer_options(client, top_k, top_n, threshold, bare_prompt)
        how = Submission(archive, options, skip_invalid, idempotency_key=key)
        try:
            queued = client.submit(file, how)
        except InvalidInput as error:
            if not skip_invalid and any(line.line for line in error.errors):
                error.add_note("nothing was submitted; --skip-invalid submits the valid lines, if there are any")
            raise
        _print_skipped(file, queued.errors)
        warn_without_worker(client, "query")
        if wait:
            job = wait_or_leave(client, queued.job_id, f"questions to {archive}", Console(stderr=as_json))
        else:
            job = client.job(queued.job_id)
    if as_json:
        print_json(job.as_json() | {"is_new": queued.is_new})
    elif wait:
        click.echo(outcome_line(job))
        click.echo(f"answers: ragllava results {job.job_id} -o answers.jsonl")
    else:
        what = "queued" if queued.is_new else "was submitted before under this key"
        click.echo(f"job {job.job_id} {what}: {inputs(job)}; `ragllava jobs show {job.job_id}` tells how far it is")
    sys.exit(0 if not wait or is_success(job.state) else 1)


@click.command()
@click.argument("question")
@archive_option
@answer_options
@click.option(
    "--timeout",
    "timeout_s",
    default=600.0,
    show_default=True,
    type=NumberRange(min=0, min_open=True),
    help="Seconds to wait for the answer.",
)
@json_option
def ask(  # noqa: PLR0917 - one argument for each option
    question: str,
    archive: str,
    top_k: int | None,
    top_n: int | None,
    threshold: float | None,
    bare_prompt: bool,
    timeout_s: float,
    as_json: bool,
) -> None:
    """Ask one question now; it overtakes every bulk job."""
    from ragllava.cli.progress import warn_without_worker
    from ragllava.records import AnswerStatus
    from ragllava.stages.answer.submit import Submission

    with connected() as client:
        options = as_answer_options(client, top_k, top_n, threshold, bare_prompt)
        warn_without_worker(client, "query")
        row = client.ask(question, Submission(archive, options), timeout_s)
    if as_json:
        print_json(row.as_json())
    else:
        if row.status == AnswerStatus.ANSWERED:
            click.echo(f"{row.answer}  (confidence {row.confidence:.2f})")
        else:
            click.echo(f"{row.status.value}: {row.error or row.note}")
        for candidate in row.evidence:
            image = candidate.image
            click.echo(f"  {candidate.relevance:.3f}  {image.source}  {image.caption or ''}")
    sys.exit(0 if row.status in (AnswerStatus.ANSWERED, AnswerStatus.NO_EVIDENCE) else 1)


@click.command()
@click.argument("job_id", type=JOB_ID)
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), help=".jsonl, .csv or .parquet")
def results(job_id: int, output: Path) -> None:
    """Write a job's answers: one line for every input line, and the failed ones to <output>.errors.jsonl."""
    with connected() as client:
        lines, errors = client.save_results(job_id, output)
        job = client.job(job_id)
    click.echo(f"{output}: {lines} of {job.progress.total} lines")
    if errors:
        click.echo(f"{output}.errors.jsonl: {errors} lines that failed")
    if not job.is_final:
        click.echo(f"job {job_id} is still {job.state.value}: the other lines have no answer yet", err=True)


@click.command()
@click.argument("job_id", type=JOB_ID)
@click.option(
    "-o",
    "--output",
    default=Path("report.html"),
    show_default=True,
    type=click.Path(path_type=Path),
    help="Write the page here.",
)
def report(job_id: int, output: Path) -> None:
    """Write a job's answers as one self-contained HTML page, with pictures and relevance bars."""
    from ragllava.cli.reporting import save_report

    with connected() as client:
        save_report(client, job_id, output)
    click.echo(f"{output}: open it in a browser")


def _print_skipped(file: Path, errors: Sequence[LineError]) -> None:
    for error in errors[:SHOWN_LINES]:
        click.echo(f"{file}, line {error.line}: {error.message} [{error.code}]", err=True)
    if len(errors) > SHOWN_LINES:
        click.echo(f"… and {len(errors) - SHOWN_LINES} more invalid lines", err=True)
