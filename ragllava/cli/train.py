"""`ragllava train`: a training job from the labelled questions of an archive."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import fields
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import click

from ragllava.cli.options import NumberRange, connected, json_option, print_json, print_table
from ragllava.errors import UsageError
from ragllava.training.finetune.presets import PRESETS, TrainingSettings

if TYPE_CHECKING:
    from ragllava.client import Client
    from ragllava.training.request import TrainingPlan, TrainingRequest

_SETTINGS = ", ".join(field.name for field in fields(TrainingSettings))


@click.command()
@click.argument("role", type=click.Choice(["reranker", "generator"]))
@click.option(
    "--archive",
    "archives",
    required=True,
    multiple=True,
    metavar="NAME",
    help="The archive to train for; given again, others that are replayed, and must not get worse.",
)
@click.option(
    "--since",
    type=click.DateTime(["%Y-%m-%d", "%Y-%m-%dT%H:%M:%S"]),
    help="Of the first archive, only what was labelled then or later (UTC).",
)
@click.option("--dry-run", is_flag=True, help="Only say what it would train on.")
@click.option(
    "--preset", metavar="NAME", help=f"Settings of the fine-tuning: {', '.join(PRESETS)}.  [default: the profile's]"
)
@click.option(
    "--set",
    "changes",
    multiple=True,
    metavar="NAME=VALUE",
    help=f"Change one of the preset's settings; may be repeated: {_SETTINGS}.",
)
@click.option(
    "--negatives",
    type=NumberRange(0, 100),
    help="Hard negatives for each relevant image (reranker).  [default: 1.0]",
)
@click.option(
    "--negatives-from",
    "top_k",
    metavar="K",
    type=click.IntRange(1, 1000),
    help="Take them from the first K candidates.  [default: RAGLLAVA_TOP_K]",
)
@click.option(
    "--bare-share",
    type=NumberRange(0, 1),
    help="Share of the pairs that are learned without their caption (reranker).  [default: 0.0]",
)
@click.option(
    "--precision",
    type=NumberRange(0, 1, min_open=True, max_open=True),
    help="Choose a threshold that promises this precision (reranker), not the adaptive one.",
)
@click.option(
    "--promote/--no-promote",
    default=True,
    show_default=True,
    help="Make a version that passes the gate champion at once, or leave it a challenger.",
)
@click.option("--follow", is_flag=True, help="Wait for the job, with a progress bar.")
@json_option
def train(  # noqa: PLR0917 - one argument for each option
    role: str,
    archives: tuple[str, ...],
    since: datetime | None,
    dry_run: bool,
    preset: str | None,
    changes: tuple[str, ...],
    negatives: float | None,
    top_k: int | None,
    bare_share: float | None,
    precision: float | None,
    promote: bool,
    follow: bool,
    as_json: bool,
) -> None:
    """Train the reranker or the generator on labelled questions, and let the gate decide about what comes of it."""
    from ragllava.records import Role
    from ragllava.training.request import TrainingRequest, default_preset

    if role == "generator":
        _refuse_for_generators({"--negatives": negatives, "--bare-share": bare_share})
    with connected() as client:
        request = TrainingRequest(
            role=Role(role),
            archives=archives,
            preset=preset or default_preset(client.settings.profile),
            overrides=dict(map(_change, changes)),
            since=since.replace(tzinfo=UTC) if since else None,
            promote=promote,
            negatives=1.0 if negatives is None else negatives,
            precision=precision,
            top_k=top_k,
            bare_share=bare_share or 0.0,
        )
        if dry_run:
            _show_plan(client.plan_training(request), as_json)
        else:
            _submit(client, request, follow, as_json)


def _refuse_for_generators(given: Mapping[str, object]) -> None:
    """Raise UsageError if an option is given (not None) that changes only what a reranker learns."""
    first = next((option for option, value in given.items() if value is not None), None)
    if first is not None:
        raise UsageError(f"{first} changes nothing for a generator; leave it out")


def _submit(client: Client, request: TrainingRequest, follow: bool, as_json: bool) -> None:
    from rich.console import Console

    from ragllava.cli.progress import outcome_line, training_line, wait_or_leave, warn_without_worker
    from ragllava.client import is_success

    job_id = client.train(request)
    if follow or not as_json:
        click.echo(f"job {job_id} queued; `ragllava jobs show {job_id}` tells how far it is", err=as_json)
    warn_without_worker(client, "train")
    if follow:
        job = wait_or_leave(client, job_id, f"training {request.role.value}", Console(stderr=as_json))
    else:
        job = client.job(job_id)
    if as_json:
        print_json(job.as_json())
    elif follow:
        click.echo(outcome_line(job))
        click.echo(training_line(job))
    sys.exit(0 if not follow or is_success(job.state) else 1)


def _show_plan(plan: TrainingPlan, as_json: bool) -> None:
    if as_json:
        print_json(plan.as_json())
    else:
        _print_plan(plan)
    if plan.note is not None:
        click.echo(f"ragllava: {plan.note}", err=True)
    if plan.shortage is not None:
        click.echo(f"ragllava: {plan.shortage}", err=True)
        sys.exit(1)


def _print_plan(plan: TrainingPlan) -> None:
    from rich.table import Table

    columns = ("labelled", "questions", "positives", "negatives", "set_aside", "calibration", "held_out")
    titles = ("labelled", "trained on", "positives", "negatives", "set aside", "calibration", "held out")
    table = Table("archive", *titles, box=None)
    for share in plan.snapshot.shares:
        figures = share.figures()
        table.add_row(share.archive, *(str(figures[column]) for column in columns))
    print_table(table)
    click.echo(
        f"{plan.request.role.value}, preset {plan.request.preset}: {len(plan.snapshot.examples)} examples, "
        f"{plan.steps} steps; snapshot {plan.snapshot.snapshot_id[:12]}"
    )


def _change(text: str) -> tuple[str, Any]:
    name, sign, value = text.partition("=")
    if not sign:
        raise click.BadParameter(f"{text!r}: write NAME=VALUE", param_hint="--set")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value
