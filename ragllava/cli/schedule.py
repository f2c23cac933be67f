"""`ragllava schedule …` and `ragllava maintenance`: maintenance at set times, or now."""

from __future__ import annotations

import sys
from datetime import datetime
from typing import TYPE_CHECKING

import click

from ragllava.cli.options import (
    Commands,
    EnumChoice,
    connected,
    json_option,
    name_option,
    no_wait_option,
    print_result,
    print_rows,
)
from ragllava.cli.terminal import echo
from ragllava.records import Role, ScheduleAction, Selection, TaskName

if TYPE_CHECKING:
    from ragllava.client import ScheduleView

one_archive_option = click.option("--archive", metavar="NAME", help="Only this archive.  [default: all]")
delete_option = click.option("--delete", is_flag=True, help="gc: delete the objects instead of only reporting them.")


@click.group(cls=Commands)
def schedule() -> None:
    """Manage schedules."""


@schedule.command("list")
@json_option
def list_schedules(as_json: bool) -> None:
    """All schedules, with their next time, last run and its result."""

    def cells(view: ScheduleView) -> tuple[object, ...]:
        due = "paused" if view.paused else _local(view.next_due, view)
        last = _local(view.last_run.fired_at, view) if view.last_run else None
        return view.name, _action(view), view.cron, due, last, _result(view)

    none = 'no schedule yet; `ragllava schedule add gc --cron "0 3 * * 0"` adds one'
    with connected() as client:
        schedules = client.schedules.list()
    columns = ("name", "does", "cron", "next", "last run", "result")
    print_rows(schedules, columns, map(cells, schedules), as_json, none=none)


@schedule.command()
@click.argument("action", type=EnumChoice(ScheduleAction))
@click.option("--cron", required=True, metavar="LINE", help='Minute hour day month weekday, as "0 3 * * *".')
@click.option("--timezone", default="UTC", show_default=True, metavar="ZONE", help="As Europe/Berlin.")
@one_archive_option
@click.option("--name", metavar="NAME", help="The name of the schedule.  [default: action and archive]")
@delete_option
@click.option("--role", type=EnumChoice(Role), help="retrain: which model is trained.")
@click.option(
    "--labels", type=click.IntRange(1), help="retrain: only with so many newly labelled questions.  [default: 100]"
)
@click.option("--only", type=EnumChoice(Selection), help="reindex: which images.  [default: missing]")
@click.option("--retriever", metavar="MODEL/TAG", help="reindex: by another retriever, or its folder.")
@json_option
def add(
    *,
    action: ScheduleAction,
    cron: str,
    timezone: str,
    archive: str | None,
    name: str | None,
    as_json: bool,
    **of_action: bool | int | str | None,
) -> None:
    """Start an action at every time that a cron line names.

    Times that pass while the system is down are made up for once, when it is up again.
    """
    from ragllava.client import ScheduleRequest

    options = {option: value for option, value in of_action.items() if value not in {None, False}}
    with connected() as client:
        view = client.schedules.add(ScheduleRequest(action, cron, archive, timezone, name, options))
    line = f"schedule {view.name}: {_action(view)}, for the first time {_local(view.next_due, view)}"
    print_result(view, [line], as_json)


@schedule.command()
@click.argument("name")
def pause(name: str) -> None:
    """Stop starting a schedule."""
    with connected() as client:
        client.schedules.pause(name)
    echo(f"schedule {name} is paused; `ragllava schedule resume {name}` resumes it")


@schedule.command()
@click.argument("name")
def resume(name: str) -> None:
    """Resume a paused schedule; times during the pause are not made up for."""
    with connected() as client:
        view = client.schedules.resume(name)
    echo(f"schedule {name} is resumed, next {_local(view.next_due, view)}")


@schedule.command()
@click.argument("name")
def remove(name: str) -> None:
    """Delete a schedule; jobs that it started keep running."""
    with connected() as client:
        client.schedules.remove(name)
    echo(f"schedule {name} is deleted")


@schedule.command()
@click.argument("name")
@json_option
def run(name: str, as_json: bool) -> None:
    """Start the job of a schedule now; its next time stays."""
    with connected() as client:
        fired = client.schedules.run(name)
    line = f"job {fired.job_id} queued; `ragllava jobs show {fired.job_id}` shows its progress"
    if fired.job_id is None:
        line = f"schedule {fired.name} started no job: {fired.note}"
    print_result(fired, [line], as_json)
    sys.exit(0 if fired.job_id is not None else 1)


@click.command()
@click.argument("task", type=EnumChoice(TaskName))
@one_archive_option
@delete_option
@name_option
@no_wait_option
@json_option
def maintenance(
    *, task: TaskName, archive: str | None, delete: bool, name: str | None, no_wait: bool, as_json: bool
) -> None:
    """Run a maintenance task now, as a job of low priority, and print its report."""
    from ragllava.cli.progress import follow

    with connected() as client:
        job_id = client.schedules.run_task(task, archive, {"delete": True} if delete else {}, name=name)
        follow(client, job_id, task.value, wait=not no_wait, as_json=as_json)


def _action(view: ScheduleView) -> str:
    """`retrain of holidays (labels 100, role reranker)`."""
    options = ", ".join(f"{name} {value}" for name, value in sorted(view.options.items()))
    return view.action.value + (f" of {view.archive}" if view.archive else "") + (f" ({options})" if options else "")


def _local(moment: datetime, view: ScheduleView) -> str:
    """A time in the zone of the schedule."""
    from ragllava.client import local_time

    return f"{local_time(moment, view):%Y-%m-%d %H:%M:%S} {view.timezone}"


def _result(view: ScheduleView) -> str:
    last = view.last_run
    if last is None:
        return "-"
    return f"job {last.job_id} {last.job_state}" if last.job_id is not None else f"no job: {last.note or 'gone'}"
