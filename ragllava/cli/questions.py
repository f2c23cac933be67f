"""`ragllava submit`, `ask`, `results` and `report`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Unpack

import click

from ragllava.cli.options import (
    STANDARD_STREAM,
    AnswerFlags,
    NumberRange,
    advising,
    answer_job_argument,
    answer_options,
    archive_option,
    as_answer_options,
    connected,
    force_option,
    input_file,
    json_option,
    name_option,
    print_lines,
    print_result,
    priority_option,
    wait_option,
)
from ragllava.cli.terminal import echo
from ragllava.records import PRIORITIES

if TYPE_CHECKING:
    from ragllava.client import AnswerOptions, Client, JobView


@click.command()
@click.argument("file", type=click.Path(path_type=Path, allow_dash=True))
@archive_option
@answer_options
@click.option("--skip-invalid", is_flag=True, help="Submit the valid lines; the others end as failed.")
@click.option("--after-ingest", is_flag=True, help="First wait until no job adds pictures to the archive.")
@click.option("--key", metavar="TEXT", help="Idempotency key: the same key and file make one job.")
@name_option
@priority_option
@click.option(
    "--estimate", "only_estimate", is_flag=True, help="Only show how long the job would take; submit nothing."
)
@click.option(
    "--deadline",
    metavar="TIME|DURATION",
    help="What is not answered by then ends as expired: 2h, 1h30m, 18:00 or 2027-01-31T18:00.",
)
@click.option(
    "--max-gpu-seconds",
    type=NumberRange(min=0, min_open=True),
    help="What is not answered when workers were busy with the job for so long, together, ends as expired.",
)
@wait_option
@json_option
def submit(
    file: Path,
    archive: str,
    *,
    skip_invalid: bool,
    after_ingest: bool,
    key: str | None,
    name: str | None,
    priority: str,
    only_estimate: bool,
    deadline: str | None,
    max_gpu_seconds: float | None,
    wait: bool,
    as_json: bool,
    **flags: Unpack[AnswerFlags],
) -> None:
    """Queue a file of questions: JSONL (custom_id, question; or OpenAI Batch lines), JSON, CSV, Excel or Parquet.

    With - as FILE, the questions are read from standard input. The results repeat further columns of the file.
    """
    from ragllava.cli.progress import follow, wait_for_ingest, warn_about_archive

    with connected() as client:
        options = as_answer_options(client, **flags)
        if after_ingest:
            wait_for_ingest(client, archive)
        warn_about_archive(client, archive)
        if only_estimate:
            _print_estimate(client, file, archive, options, priority, as_json)
            return
        with advising(skip_invalid, "submitted", "submits"):
            content = input_file(file)
            queued = client.questions.submit(
                content,
                archive,
                options,
                skip_invalid=skip_invalid,
                idempotency_key=key,
                name=name,
                priority=PRIORITIES[priority],
                deadline=deadline,
                max_gpu_seconds=max_gpu_seconds,
            )
        for note in queued.notes:
            echo(f"{file}: {note}", err=True)
        print_lines(file, queued.errors, "invalid")
        state = "queued" if queued.is_new else "was submitted before under this key"
        title = f"questions to {archive}"
        follow(client, queued.job_id, title, wait=wait, as_json=as_json, state=state, is_new=queued.is_new)


def _print_estimate(
    client: Client, file: Path, archive: str, options: AnswerOptions, priority: str, as_json: bool
) -> None:
    from ragllava.client.reporting import estimate_lines

    checked = client.questions.estimate(input_file(file), archive, options, priority=PRIORITIES[priority])
    print_lines(file, checked.errors, "invalid")
    print_result(checked.estimate, estimate_lines(checked.estimate), as_json)


@click.command()
@click.argument("question", default="")
@archive_option
@click.option(
    "--picture",
    type=click.Path(path_type=Path),
    help="Ask with this picture: pictures like it are looked at first. QUESTION may be left out.",
)
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
    picture: Path | None,
    timeout_s: float,
    as_json: bool,
    **flags: Unpack[AnswerFlags],
) -> None:
    """Ask one question now; it overtakes every bulk job."""
    from ragllava.cli.progress import warn_about_archive, warn_about_workers
    from ragllava.records import AnswerStatus

    with connected() as client:
        options = as_answer_options(client, **flags)
        warn_about_workers(client, "query")
        warn_about_archive(client, archive)
        row = client.questions.ask(question, archive, options, picture=picture, timeout_s=timeout_s)
    answered = row.status == AnswerStatus.ANSWERED
    first = f"{row.answer}  (confidence {row.confidence:.2f})" if answered else f"{row.status}: {row.error or row.note}"
    evidence = [f"  {c.relevance:.3f}  {c.image.full_name}  {c.image.caption or ''}" for c in row.evidence]
    print_result(row, [first, *evidence], as_json)
    if answered and row.note and not as_json:
        echo(f"note: {row.note}", err=True)
    sys.exit(0 if row.status in (AnswerStatus.ANSWERED, AnswerStatus.NO_EVIDENCE) else 1)


@click.command()
@answer_job_argument
@click.option(
    "-o",
    "--output",
    required=True,
    type=click.Path(path_type=Path, allow_dash=True),
    help=".jsonl, .csv or .parquet; - for JSONL to standard output",
)
@click.option("--with-metadata", is_flag=True, help="Add the metadata of the pictures that answers are based on.")
@force_option
def results(job_id: int, output: Path, with_metadata: bool, force: bool) -> None:
    """Write a job's answers: one line for every input line, and the failed ones to <output>.errors.jsonl."""
    with connected() as client:
        if output == STANDARD_STREAM:
            client.questions.print_results(job_id, sys.stdout.buffer, with_metadata=with_metadata)
            return
        saved = client.questions.save_results(job_id, output, with_metadata=with_metadata, replace_any=force)
        job = client.jobs.get(job_id)
    echo(f"{output}: {saved.lines} of {job.progress.total} lines of {_named(job)}")
    if saved.errors:
        echo(f"{output}.errors.jsonl: {saved.errors} lines that failed")
    if not job.is_final:
        echo(f"job {job_id} is still {job.state.value}: the other lines have no answer yet", err=True)


@click.command()
@answer_job_argument
@click.option(
    "-o",
    "--output",
    default=Path("report.html"),
    show_default=True,
    type=click.Path(path_type=Path),
    help="Write the page here.",
)
@click.option("--all-pages", is_flag=True, help="Further pages for a job of more than 2,000 questions.")
@force_option
def report(job_id: int, output: Path, all_pages: bool, force: bool) -> None:
    """Write a job's answers as a self-contained HTML page, with pictures and relevance bars.

    The page has the first 2,000 questions. With --all-pages, the next ones are on report-2.html, and so on.
    """
    with connected() as client:
        client.questions.save_report(job_id, output, all_pages=all_pages, replace_any=force)
        job = client.jobs.get(job_id)
    echo(f"{output}: {_named(job)}; open it in a browser")


def _named(job: JobView) -> str:
    title = f" ({job.title})" if job.title else ""
    return f"job {job.job_id}{title}, archive {job.archive}"
