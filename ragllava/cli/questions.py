"""`ragllava submit`, `ask`, `results` and `report`."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from ragllava.cli.options import (
    JOB_ID,
    NumberRange,
    answer_options,
    archive_option,
    as_answer_options,
    connected,
    json_option,
    print_json,
    print_lines,
)
from ragllava.errors import InvalidInput


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
    from ragllava.cli.following import exit_after, follow, queued_line
    from ragllava.cli.progress import outcome_line

    with connected() as client:
        options = as_answer_options(client, top_k, top_n, threshold, bare_prompt)
        try:
            queued = client.questions.submit(file, archive, options, skip_invalid=skip_invalid, idempotency_key=key)
        except InvalidInput as error:
            if not skip_invalid and any(line.line for line in error.errors):
                error.add_note("nothing was submitted; --skip-invalid submits the valid lines, if there are any")
            raise
        print_lines(file, queued.errors, "invalid")
        job = follow(client, queued.job_id, f"questions to {archive}", "query", wait=wait, as_json=as_json)
    if as_json:
        print_json(job.as_json() | {"is_new": queued.is_new})
    elif wait:
        click.echo(outcome_line(job))
        click.echo(f"answers: ragllava results {job.job_id} -o answers.jsonl")
    else:
        click.echo(queued_line(job, "queued" if queued.is_new else "was submitted before under this key"))
    exit_after(job, wait=wait)


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

    with connected() as client:
        options = as_answer_options(client, top_k, top_n, threshold, bare_prompt)
        warn_without_worker(client, "query")
        row = client.questions.ask(question, archive, options, timeout_s=timeout_s)
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
        saved = client.questions.save_results(job_id, output)
        job = client.jobs.get(job_id)
    click.echo(f"{output}: {saved.lines} of {job.progress.total} lines")
    if saved.errors:
        click.echo(f"{output}.errors.jsonl: {saved.errors} lines that failed")
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
    with connected() as client:
        client.questions.save_report(job_id, output)
    click.echo(f"{output}: open it in a browser")
