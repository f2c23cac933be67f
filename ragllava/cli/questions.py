"""`ragllava submit`, `ask`, `results` and `report`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Unpack

import click

from ragllava.cli.options import (
    STANDARD_STREAM,
    AnswerFlags,
    NumberRange,
    advising,
    answer_options,
    archive_option,
    as_answer_options,
    connected,
    input_file,
    job_argument,
    json_option,
    print_lines,
    print_result,
    wait_option,
)
from ragllava.cli.terminal import echo
from ragllava.records import PRIORITIES


@click.command()
@click.argument("file", type=click.Path(path_type=Path, allow_dash=True))
@archive_option
@answer_options
@click.option("--skip-invalid", is_flag=True, help="Submit the valid lines; the others end as failed.")
@click.option("--key", metavar="TEXT", help="Idempotency key: the same key and file make one job.")
@click.option(
    "--priority",
    type=click.Choice(list(PRIORITIES)),
    default="normal",
    show_default=True,
    help="Jobs of higher priority are served first; jobs of equal priority take turns.",
)
@wait_option
@json_option
def submit(
    file: Path,
    archive: str,
    skip_invalid: bool,
    key: str | None,
    priority: str,
    wait: bool,
    as_json: bool,
    **flags: Unpack[AnswerFlags],
) -> None:
    """Queue a file of questions: JSONL (custom_id, question; or OpenAI Batch lines), JSON, CSV, Excel or Parquet.

    With - as FILE, the questions are read from standard input. The results repeat further columns of the file.
    """
    from ragllava.cli.progress import follow

    with connected() as client:
        options = as_answer_options(client, **flags)
        with advising(skip_invalid, "submitted", "submits"):
            content = input_file(file)
            queued = client.questions.submit(
                content,
                archive,
                options,
                skip_invalid=skip_invalid,
                idempotency_key=key,
                priority=PRIORITIES[priority],
            )
        for note in queued.notes:
            click.echo(f"{file}: {note}", err=True)
        print_lines(file, queued.errors, "invalid")
        state = "queued" if queued.is_new else "was submitted before under this key"
        title = f"questions to {archive}"
        follow(client, queued.job_id, title, wait=wait, as_json=as_json, state=state, is_new=queued.is_new)


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
def ask(
    question: str,
    archive: str,
    timeout_s: float,
    as_json: bool,
    **flags: Unpack[AnswerFlags],
) -> None:
    """Ask one question now; it overtakes every bulk job."""
    from ragllava.cli.progress import warn_without_worker
    from ragllava.records import AnswerStatus

    with connected() as client:
        options = as_answer_options(client, **flags)
        warn_without_worker(client, "query")
        row = client.questions.ask(question, archive, options, timeout_s=timeout_s)
    answered = row.status == AnswerStatus.ANSWERED
    first = f"{row.answer}  (confidence {row.confidence:.2f})" if answered else f"{row.status}: {row.error or row.note}"
    evidence = [f"  {c.relevance:.3f}  {c.image.source}  {c.image.caption or ''}" for c in row.evidence]
    print_result(row, [first, *evidence], as_json)
    sys.exit(0 if row.status in (AnswerStatus.ANSWERED, AnswerStatus.NO_EVIDENCE) else 1)


@click.command()
@job_argument
@click.option(
    "-o",
    "--output",
    required=True,
    type=click.Path(path_type=Path, allow_dash=True),
    help=".jsonl, .csv or .parquet; - for JSONL to standard output",
)
@click.option("--with-metadata", is_flag=True, help="Add the metadata of the pictures that answers are based on.")
def results(job_id: int, output: Path, with_metadata: bool) -> None:
    """Write a job's answers: one line for every input line, and the failed ones to <output>.errors.jsonl."""
    with connected() as client:
        if output == STANDARD_STREAM:
            client.questions.print_results(job_id, sys.stdout.buffer, with_metadata=with_metadata)
            return
        saved = client.questions.save_results(job_id, output, with_metadata=with_metadata)
        job = client.jobs.get(job_id)
    echo(f"{output}: {saved.lines} of {job.progress.total} lines")
    if saved.errors:
        echo(f"{output}.errors.jsonl: {saved.errors} lines that failed")
    if not job.is_final:
        echo(f"job {job_id} is still {job.state.value}: the other lines have no answer yet", err=True)


@click.command()
@job_argument
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
    with connected() as client:
        client.questions.save_report(job_id, output)
    echo(f"{output}: open it in a browser")
