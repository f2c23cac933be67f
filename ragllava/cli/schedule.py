"""`ragllava schedule …` and `ragllava maintenance`: maintenance that begins by the clock, or now."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import asdict
from datetime import datetime
from typing import TYPE_CHECKING, Any, TypeVar

import click

from ragllava.cli.options import connected, json_option, print_json, print_table
from ragllava.records import Role, ScheduleAction, Selection, TaskName

if TYPE_CHECKING:
    from ragllava.stages.maintenance.schedules import Fired
    from ragllava.stores.maintenance.schedules import ScheduleView

F = TypeVar("F", bound=Callable[..., Any])

_TASKS = [action.value for action in ScheduleAction if action.value in list(TaskName)]

one_archive_option = click.option("--archive", metavar="NAME", help="Only this archive.  [default: all]")
delete_option = click.option("--delete", is_flag=True, help="sweep: remove what was found, and not only report it.")


@click.group()
def schedule() -> None:
    """What begins by the clock."""


@schedule.command("list")
@json_option
def list_schedules(as_json: bool) -> None:
    """All schedules, with their next time, last run and what came of it."""
    from rich.table import Table

    from ragllava.stores.database import in_transaction
    from ragllava.stores.maintenance import schedules

    with connected() as client:
        found = in_transaction(client.engine, schedules.list_schedules)
    if as_json:
        print_json([asdict(one) for one in found])
        return
    if not found:
        click.echo('no schedule yet; `ragllava schedule add sweep --cron "0 3 * * 0"` makes one')
        return
    table = Table("name", "does", "cron", "next", "last run", "came to", box=None)
    for one in found:
        due = "paused" if one.paused else _local(one.next_due, one)
        last = _local(one.last_run.fired_at, one) if one.last_run else "-"
        table.add_row(one.name, _does(one), one.cron, due, last, _came_to(one))
    print_table(table)


@schedule.command()
@click.argument("action", type=click.Choice([action.value for action in ScheduleAction]))
@click.option("--cron", required=True, metavar="LINE", help='Minute hour day month weekday, as "0 3 * * *".')
@click.option("--timezone", default="UTC", show_default=True, metavar="ZONE", help="As Europe/Berlin.")
@one_archive_option
@click.option("--name", metavar="NAME", help="What it is called.  [default: action and archive]")
@delete_option
@click.option("--role", type=click.Choice([role.value for role in Role]), help="retrain: which model is trained.")
@click.option("--labels", type=click.IntRange(1), help="retrain: only with so many newly labelled questions.")
@click.option(
    "--only", type=click.Choice([one.value for one in Selection]), help="reindex: which images.  [default: missing]"
)
@click.option("--retriever", metavar="MODEL/TAG", help="reindex: by another retriever, or its folder.")
@json_option
def add(  # noqa: PLR0917 - one argument for each option
    action: str,
    cron: str,
    timezone: str,
    archive: str | None,
    name: str | None,
    delete: bool,
    role: str | None,
    labels: int | None,
    only: str | None,
    retriever: str | None,
    as_json: bool,
) -> None:
    """Let an action begin at every time that a cron line names.

    Times that pass while nothing runs are made up for once. The system must be up: its tick looks what is due.
    """
    from ragllava.stages.maintenance.schedules import ScheduleRequest, add_schedule
    from ragllava.training.scheduled import STARTERS

    given = {"delete": delete or None, "role": role, "labels": labels, "only": only, "retriever": retriever}
    options = {option: value for option, value in given.items() if value is not None}
    request = ScheduleRequest(ScheduleAction(action), cron, archive, timezone, name, options)
    with connected() as client:
        made = add_schedule(client.engine, request, STARTERS)
    if as_json:
        print_json(asdict(made))
    else:
        click.echo(f"schedule {made.name}: {_does(made)}, for the first time {_local(made.next_due, made)}")


@schedule.command()
@click.argument("name")
def pause(name: str) -> None:
    """Let the times of a schedule pass by."""
    from ragllava.stages.maintenance import schedules

    with connected() as client:
        schedules.pause(client.engine, name)
    click.echo(f"schedule {name} is paused; `ragllava schedule resume {name}` lets it go on")


@schedule.command()
@click.argument("name")
def resume(name: str) -> None:
    """Let a paused schedule go on; what passed meanwhile is not made up for."""
    from ragllava.stages.maintenance import schedules

    with connected() as client:
        resumed = schedules.resume(client.engine, name)
    click.echo(f"schedule {name} goes on, next {_local(resumed.next_due, resumed)}")


@schedule.command()
@click.argument("name")
def remove(name: str) -> None:
    """Forget a schedule; what it began goes on."""
    from ragllava.stages.maintenance import schedules

    with connected() as client:
        schedules.remove(client.engine, name)
    click.echo(f"schedule {name} is gone")


@schedule.command()
@click.argument("name")
@json_option
def run(name: str, as_json: bool) -> None:
    """Begin what a schedule does, now; its next time stays."""
    from ragllava.stages.maintenance.schedules import run_now
    from ragllava.training.scheduled import STARTERS
    from workers.app import dispatch_now

    with connected() as client:
        fired = run_now(client.engine, client.settings, name, STARTERS)
        dispatch_now(client.engine, client.settings)
    if as_json:
        print_json(asdict(fired))
    else:
        click.echo(_fired(fired))
    sys.exit(0 if fired.job_id is not None else 1)


@click.command()
@click.argument("action", type=click.Choice(_TASKS))
@one_archive_option
@delete_option
@click.option("--no-wait", is_flag=True, help="Return when the job is queued.")
@json_option
def maintenance(action: str, archive: str | None, delete: bool, no_wait: bool, as_json: bool) -> None:
    """Do one piece of maintenance now, as a job of low priority, and print its report."""
    from rich.console import Console

    from ragllava.cli.progress import outcome_line, task_lines, wait_or_leave, warn_without_worker
    from ragllava.client import is_success
    from ragllava.stages.maintenance.stage import submit_task
    from workers.app import dispatch_now

    with connected() as client:
        options = {"delete": True} if delete else {}
        job_id = submit_task(client.engine, TaskName(action), archive, options)
        dispatch_now(client.engine, client.settings)
        warn_without_worker(client, "ingest")
        job = client.job(job_id) if no_wait else wait_or_leave(client, job_id, action, Console(stderr=as_json))
    if as_json:
        print_json(job.as_json())
    elif no_wait:
        click.echo(f"job {job_id} queued; `ragllava jobs show {job_id}` tells what came of it")
    else:
        click.echo("\n".join([outcome_line(job), *task_lines(job)]))
    sys.exit(0 if no_wait or is_success(job.state) else 1)


def _does(one: ScheduleView) -> str:
    """`retrain of holidays (labels 50, role reranker)`."""
    options = ", ".join(f"{name} {value}" for name, value in sorted(one.options.items()))
    return one.action.value + (f" of {one.archive}" if one.archive else "") + (f" ({options})" if options else "")


def _local(moment: datetime, one: ScheduleView) -> str:
    """A time as the schedule's zone has it."""
    from ragllava.stages.maintenance.schedules import find_zone

    return f"{moment.astimezone(find_zone(one.timezone)):%Y-%m-%d %H:%M:%S} {one.timezone}"


def _came_to(one: ScheduleView) -> str:
    last = one.last_run
    if last is None:
        return "-"
    return f"job {last.job_id} {last.job_state}" if last.job_id is not None else f"no job: {last.note or 'gone'}"


def _fired(fired: Fired) -> str:
    if fired.job_id is None:
        return f"schedule {fired.name} began nothing: {fired.note}"
    return f"job {fired.job_id} queued; `ragllava jobs show {fired.job_id}` tells what came of it"
