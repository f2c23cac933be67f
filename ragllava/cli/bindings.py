"""`ragllava archive bind`, `unbind` and `scan`: archives that are fed by buckets."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click

from ragllava.cli.options import answer_options, as_answer_options, as_time, connected, json_option, print_json

if TYPE_CHECKING:
    from ragllava.stages.buckets.sync import ScanReport
    from ragllava.stores.buckets.bindings import BindingView


@click.command()
@click.argument("name")
@click.argument("address", metavar="s3://BUCKET/PREFIX/")
@click.option("--inbox", is_flag=True, help="Question files are put there, to be answered from the archive.")
@click.option("--outbox", metavar="s3://BUCKET/PREFIX/", help="Of an inbox: where its results are written.")
@click.option("--strict", is_flag=True, help="Of an inbox: refuse a file with an invalid line as a whole.")
@answer_options
@json_option
def bind(  # noqa: PLR0917 - one argument for each option
    name: str,
    address: str,
    inbox: bool,
    outbox: str | None,
    strict: bool,
    top_k: int | None,
    top_n: int | None,
    threshold: float | None,
    bare_prompt: bool,
    as_json: bool,
) -> None:
    """Keep archive NAME as a part of a bucket is, and take in what is there already.

    Objects that come, change or go are followed by their events, and by `ragllava archive scan`, which needs none.
    """
    from ragllava.errors import UsageError
    from ragllava.json_records import to_json
    from ragllava.stores.buckets.bindings import BindingRole

    given = click.get_current_context().get_parameter_source
    answering = [option for option in _ANSWERING if given(option) is click.core.ParameterSource.COMMANDLINE]
    if not inbox and (outbox or strict or answering):
        raise UsageError("--outbox, --strict and the options of answers are for an inbox: add --inbox")
    with connected() as client:
        options: dict[str, Any] = {}
        if inbox:
            options = {"outbox": outbox, "skip_invalid": not strict}
        if answering:
            options["answer"] = to_json(as_answer_options(client, top_k, top_n, threshold, bare_prompt))
        role = BindingRole.INBOX if inbox else BindingRole.PICTURES
        binding = client.bind(name, address, role, options)
        reports = [report for report in client.scan(name) if report.address == binding.address]
    if as_json:
        print_json({"address": binding.address, "role": role.value, "scan": [found.as_json() for found in reports]})
        return
    what = "question files are answered from" if inbox else "pictures go to"
    click.echo(f"{binding.address} is bound: its {what} the archive {binding.archive}")
    _print_reports(reports)


_ANSWERING = ("top_k", "top_n", "threshold", "bare_prompt")


@click.command()
@click.argument("name")
@click.argument("address", metavar="s3://BUCKET/PREFIX/")
def unbind(name: str, address: str) -> None:
    """Let archive NAME follow a part of a bucket no longer; its images stay."""
    with connected() as client:
        binding = client.unbind(name, address)
    click.echo(f"{binding.address} is not bound any more; what it brought stays in the archive {binding.archive}")


@click.command()
@click.argument("name")
@json_option
def scan(name: str, as_json: bool) -> None:
    """Compare the buckets that archive NAME is bound to with what is known of them, and repair the difference.

    Exit code 1 when objects could not be looked at.
    """
    with connected() as client:
        reports = client.scan(name)
    if as_json:
        print_json([report.as_json() for report in reports])
    else:
        _print_reports(reports)
    sys.exit(1 if any(report.failed for report in reports) else 0)


def print_bindings(found: Sequence[BindingView]) -> None:
    """One line for each binding, for `ragllava archive show`."""
    for view in found:
        binding = view.binding
        what = f"inbox, outbox {binding.options['outbox']}" if "outbox" in binding.options else "pictures"
        click.echo(
            f"bound to {binding.address} ({what}): {view.objects} objects, {view.pictures} pictures, "
            f"{view.waiting} waiting, {view.refused} refused, last scan {as_time(view.scanned_at)}"
        )


_TITLES = {
    "added": "new",
    "replaced": "changed",
    "restored": "without their image, ingested again",
    "gone": "gone",
    "captions": "with another caption",
    "waiting": "looked at again in a moment",
}
_REASONS = {"refused": "refused before, not tried again until they change", "failed": "could not be looked at"}


def _print_reports(reports: Sequence[ScanReport]) -> None:
    for report in reports:
        found = report.as_json()
        jobs = f"; job {', '.join(map(str, report.changes.job_ids))} ingests them" if report.changes.job_ids else ""
        state = "differences" if report.found_differences else "nothing new"
        click.echo(f"{report.address}: {report.listed} objects, {state}{jobs}")
        for name, title in _TITLES.items():
            _print_names(title, found[name], {})
        for name, title in _REASONS.items():
            _print_names(title, found[name], found[name]["first"])


def _print_names(title: str, found: Mapping[str, Any], reasons: Mapping[str, str]) -> None:
    if not found["number"]:
        return
    click.echo(f"  {found['number']} {title}")
    for name in found["first"]:
        click.echo(f"    {name}" + (f": {reasons[name]}" if name in reasons else ""))
    if found["number"] > len(found["first"]):
        click.echo(f"    … and {found['number'] - len(found['first'])} more")
