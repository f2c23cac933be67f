"""`ragllava train`: a training job from the labelled questions of an archive."""

from __future__ import annotations

import json
import sys
from dataclasses import fields
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import click

from ragllava.cli.options import (
    EnumChoice,
    NumberRange,
    connected,
    json_option,
    make_table,
    name_option,
    print_result,
    refuse_given,
)
from ragllava.cli.terminal import echo
from ragllava.records import Role
from ragllava.training.finetune.presets import PRESETS, TrainingSettings

if TYPE_CHECKING:
    from ragllava.client import Client, TrainingPlan, TrainingRequest

_SETTINGS = ", ".join(field.name for field in fields(TrainingSettings))


@click.command()
@click.argument("role", type=EnumChoice(Role))
@click.option(
    "--archive",
    "archives",
    required=True,
    multiple=True,
    metavar="NAME",
    help="The archive to train for; repeated, archives that are trained on as well and must not get worse. All other "
    "archives with labels follow, unless --only is given.",
)
@click.option("--only", is_flag=True, help="Leave out archives that are not named.")
@click.option(
    "--since",
    type=click.DateTime(["%Y-%m-%d", "%Y-%m-%dT%H:%M:%S"]),
    help="Of the first archive, use only labels of this time or later (UTC).",
)
@click.option("--dry-run", is_flag=True, help="Only show what it would train on.")
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
    help="Share of the training pairs without a caption (reranker).  [default: 0.0]",
)
@click.option(
    "--precision",
    type=NumberRange(0, 1, min_open=True, max_open=True),
    help="Fit a threshold for this precision instead of the adaptive one (reranker).",
)
@click.option(
    "--promote/--no-promote",
    default=True,
    show_default=True,
    help="Promote a version that passes the gate, or leave it a challenger.",
)
@name_option
@click.option("--follow", is_flag=True, help="Wait for the job, with a progress bar.")
@json_option
def train(  # noqa: PLR0917 - one argument for each option
    role: Role,
    archives: tuple[str, ...],
    only: bool,
    since: datetime | None,
    dry_run: bool,
    preset: str | None,
    changes: tuple[str, ...],
    negatives: float | None,
    top_k: int | None,
    bare_share: float | None,
    precision: float | None,
    promote: bool,
    name: str | None,
    follow: bool,
    as_json: bool,
) -> None:
    """Train the reranker or the generator on labelled questions; the gate decides whether the result is promoted."""
    from ragllava.client import TrainingRequest

    if role is Role.GENERATOR:
        refuse_given({"--negatives": negatives, "--bare-share": bare_share}, "on a generator; leave it out")
    with connected() as client:
        others = () if only else client.models.labelled_archives(role)
        request = TrainingRequest(
            role=role,
            archives=(*archives, *(name for name in others if name not in archives)),
            preset=preset or client.models.default_preset(),
            overrides=dict(map(_change, changes)),
            since=since.replace(tzinfo=UTC) if since else None,
            promote=promote,
            negatives=1.0 if negatives is None else negatives,
            precision=precision,
            top_k=top_k,
            bare_share=bare_share or 0.0,
        )
        if dry_run:
            _show_plan(client.models.plan_training(request), as_json)
        else:
            _submit(client, request, name, wait=follow, as_json=as_json)


def _submit(client: Client, request: TrainingRequest, name: str | None, *, wait: bool, as_json: bool) -> None:
    from ragllava.cli.progress import follow

    job_id = client.models.train(request, name=name)
    if wait:
        echo(f"job {job_id} queued; `ragllava jobs show {job_id}` shows its progress", err=as_json)
    follow(client, job_id, f"training {request.role}", wait=wait, as_json=as_json)


def _show_plan(plan: TrainingPlan, as_json: bool) -> None:
    columns = ("labelled", "questions", "positives", "negatives", "set_aside", "calibration", "held_out")
    titles = ("archive", "labelled", "trained on", "positives", "negatives", "set aside", "calibration", "held out")
    rows = [(share.archive, *(share.figures()[column] for column in columns)) for share in plan.snapshot.shares]
    summary = (
        f"{plan.request.role.value}, preset {plan.request.preset}: {len(plan.snapshot.examples)} examples, "
        f"{plan.steps} steps; snapshot {plan.snapshot.snapshot_id[:12]}"
    )
    print_result(plan, [make_table(titles, rows, box=None), summary, *_provable(plan)], as_json)
    if plan.note is not None:
        echo(f"ragllava: {plan.note}", err=True)
    if plan.shortage is not None:
        echo(f"ragllava: {plan.shortage}", err=True)
        sys.exit(1)


def _provable(plan: TrainingPlan) -> list[str]:
    """The gain that the hold-out can prove, in one sentence."""
    if plan.provable_gain is None:
        return []
    gain = "F1" if plan.request.role is Role.RERANKER else "right answers"
    tried = f", after {plan.tried} versions that were tried before" if plan.tried else ""
    return [
        f"the held-out questions of {plan.request.archives[0]} prove a gain of about {100 * plan.provable_gain:.0f} "
        f"points ({gain}) in four of five trainings{tried}; a smaller one needs more labels"
    ]


def _change(text: str) -> tuple[str, Any]:
    name, sign, value = text.partition("=")
    if not sign:
        raise click.BadParameter(f"{text!r}: write NAME=VALUE", param_hint="--set")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value
