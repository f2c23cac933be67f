"""`ragllava archive bind`, `unbind` and `scan`: archives that buckets feed."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Unpack

import click

from ragllava.cli.options import (
    AnswerFlags,
    answer_options,
    as_answer_options,
    as_time,
    connected,
    json_option,
    print_result,
)

if TYPE_CHECKING:
    from ragllava.client import BindingView, ScanReport


@click.command()
@click.argument("name")
@click.argument("address", metavar="s3://BUCKET/PREFIX/")
@click.option("--inbox", is_flag=True, help="Answer question files that are put there, from the archive.")
@click.option("--outbox", metavar="s3://BUCKET/PREFIX/", help="Write the results of an inbox there.")
@click.option("--strict", is_flag=True, help="Refuse a file of an inbox if any of its lines is invalid.")
@answer_options
@json_option
def bind(
    name: str,
    address: str,
    inbox: bool,
    outbox: str | None,
    strict: bool,
    as_json: bool,
    **flags: Unpack[AnswerFlags],
) -> None:
    """Keep archive NAME equal to a part of a bucket, and ingest what is there already.

    Later changes arrive as events of the bucket; `ragllava archive scan` finds them without events.
    """
    from ragllava.client import BindingRole
    from ragllava.errors import UsageError
    from ragllava.json_records import to_json

    source_of = click.get_current_context().get_parameter_source
    answering = any(source_of(option) is click.core.ParameterSource.COMMANDLINE for option in flags)
    if not inbox and (outbox or strict or answering):
        raise UsageError("--outbox, --strict and the options of answers are for an inbox: add --inbox")
    with connected() as client:
        options: dict[str, Any] = {"outbox": outbox, "skip_invalid": not strict} if inbox else {}
        if answering:
            options["answer"] = to_json(as_answer_options(client, **flags))
        role = BindingRole.INBOX if inbox else BindingRole.PICTURES
        binding = client.archives.bind(name, address, role, options)
        reports = [report for report in client.archives.scan(name) if report.address == binding.address]
    effect = "question files are answered from" if inbox else "pictures go to"
    line = f"{binding.address} is bound: its {effect} the archive {binding.archive}"
    body = {"address": binding.address, "role": role, "scan": reports}
    print_result(body, [line, *_report_lines(reports)], as_json)


@click.command()
@click.argument("name")
@click.argument("address", metavar="s3://BUCKET/PREFIX/")
def unbind(name: str, address: str) -> None:
    """Stop following a part of a bucket in archive NAME; its images stay."""
    with connected() as client:
        binding = client.archives.unbind(name, address)
    click.echo(f"{binding.address} is no longer bound; its images stay in the archive {binding.archive}")


@click.command()
@click.argument("name")
@json_option
def scan(name: str, as_json: bool) -> None:
    """Compare the buckets bound to archive NAME with what is stored of them, and repair the differences.

    Exit code 1 when objects could not be read.
    """
    with connected() as client:
        reports = client.archives.scan(name)
    print_result(reports, _report_lines(reports), as_json)
    sys.exit(1 if any(report.failed for report in reports) else 0)


def binding_line(view: BindingView) -> str:
    """One binding, for `ragllava archive show`."""
    binding = view.binding
    role = f"inbox, outbox {binding.options['outbox']}" if "outbox" in binding.options else "pictures"
    return (
        f"bound to {binding.address} ({role}): {view.objects} objects, {view.pictures} pictures, "
        f"{view.waiting} waiting, {view.refused} refused, last scan {as_time(view.scanned_at)}"
    )


_TITLES = {
    "added": "new",
    "replaced": "changed",
    "restored": "without their image, ingested again",
    "gone": "gone",
    "captions": "with another caption",
    "waiting": "to be read again in a moment",
    "refused": "refused before, not tried again until they change",
    "failed": "that could not be read",
}
_WITH_REASONS = ("refused", "failed")


def _report_lines(reports: Sequence[ScanReport]) -> Iterator[str]:
    for report in reports:
        changes = report.as_json()
        jobs = f"; job {', '.join(map(str, report.changes.job_ids))} ingests them" if report.changes.job_ids else ""
        state = "differences" if report.found_differences else "nothing new"
        yield f"{report.address}: {report.listed} objects, {state}{jobs}"
        for name, title in _TITLES.items():
            if changes[name]["number"]:
                yield f"  {changes[name]['number']} {title}"
                yield from _name_lines(changes[name], changes[name]["first"] if name in _WITH_REASONS else {})


def _name_lines(names: Mapping[str, Any], reasons: Mapping[str, str]) -> Iterator[str]:
    for name in names["first"]:
        yield f"    {name}" + (f": {reasons[name]}" if name in reasons else "")
    if names["number"] > len(names["first"]):
        yield f"    … and {names['number'] - len(names['first'])} more"
