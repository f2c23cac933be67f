"""Schedules, maintenance tasks, removals, and what runs."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from ragllava.api.errors import InvalidRequest
from ragllava.api.route import Answer, Body, Call, NoBody, NoQuery, Routes
from ragllava.api.routes.native.buckets import QueuedJob
from ragllava.api.routes.native.shared import Json, JsonList, Line, json_list, json_of, text_in_path
from ragllava.client import AccessRole, ScheduleAction, ScheduleRequest, ScheduleView, TaskName

routes = Routes("Schedules")

_OF_ALL = (ScheduleAction.RETRAIN,)  # a champion serves all archives
_OPTIONS = Annotated[dict[Line, Any], Field(max_length=20)]


class NewSchedule(Body):
    """`cron` is minute, hour, day, month, weekday; `archive` null: all archives; `options` are those of the action."""

    action: ScheduleAction
    cron: Line
    archive: Line | None = None
    timezone: Line = "UTC"
    name: Line | None = None
    options: _OPTIONS = Field(default_factory=dict)


class ScheduleObject(Answer):
    """A schedule, its next time, and its last run."""

    object: Literal["schedule"] = "schedule"
    schedule: Json


class FiredObject(Answer):
    """A job, or a note that says why there is none."""

    object: Literal["fired"] = "fired"
    job: int | None
    note: str | None


class DeletedSchedule(Answer):
    """The schedule is gone; jobs that it started keep running."""

    object: Literal["schedule"] = "schedule"
    name: str
    deleted: Literal[True] = True


class NewTask(Body):
    """A maintenance task, of one archive or, null, of the whole system."""

    task: TaskName
    archive: Line | None = None
    options: _OPTIONS = Field(default_factory=dict)


class StatusObject(Answer):
    """What runs: workers, faults, and the seconds since the last tick of a maintenance worker."""

    object: Literal["status"] = "status"
    workers: list[Json]
    faults: list[Json]
    events: dict[str, int]
    last_tick_age_s: float | None


@routes.get("/v1/schedules", needs=AccessRole.READ, answer=JsonList)
def list_schedules(call: Call[NoQuery, NoBody]) -> JsonList:
    """The schedules that the caller may see, with their next time, last run and its result."""
    return json_list(call.client.schedules.list())


@routes.post(
    "/v1/schedules",
    needs=AccessRole.ADMIN,
    body=NewSchedule,
    answer=ScheduleObject,
    status=201,
    archive_in="body:archive",
)
def create_schedule(call: Call[NoQuery, NewSchedule]) -> ScheduleObject:
    """Start an action at every time that a cron line names."""
    body = call.body
    if body.archive is None or body.action in _OF_ALL:
        call.require_all_archives()
    if "retriever" in body.options:  # it may name a folder of the workers
        raise InvalidRequest("another retriever is chosen on the command line only", "options")
    archive = call.archive(body.archive) if body.archive is not None else None
    request = ScheduleRequest(body.action, body.cron, archive, body.timezone, body.name, body.options)
    return _object(call.client.schedules.add(request))


@routes.post("/v1/schedules/{name}/pause", needs=AccessRole.ADMIN, answer=ScheduleObject, archive_in="path:name")
def pause_schedule(call: Call[NoQuery, NoBody]) -> ScheduleObject:
    """Stop starting a schedule."""
    return _object(call.client.schedules.pause(text_in_path(call, "name")))


@routes.post("/v1/schedules/{name}/resume", needs=AccessRole.ADMIN, answer=ScheduleObject, archive_in="path:name")
def resume_schedule(call: Call[NoQuery, NoBody]) -> ScheduleObject:
    """Resume a paused schedule; times during the pause are not made up for."""
    return _object(call.client.schedules.resume(text_in_path(call, "name")))


@routes.post("/v1/schedules/{name}/run", needs=AccessRole.ADMIN, answer=FiredObject, archive_in="path:name")
def run_schedule(call: Call[NoQuery, NoBody]) -> FiredObject:
    """Start the job of a schedule now; its next time stays."""
    with call.client.access.admitted(call.principal):
        fired = call.client.schedules.run(text_in_path(call, "name"))
    return FiredObject(job=fired.job_id, note=fired.note)


@routes.delete("/v1/schedules/{name}", needs=AccessRole.ADMIN, answer=DeletedSchedule, archive_in="path:name")
def delete_schedule(call: Call[NoQuery, NoBody]) -> DeletedSchedule:
    """Delete a schedule; jobs that it started keep running."""
    name = text_in_path(call, "name")
    call.client.schedules.remove(name)
    return DeletedSchedule(name=name)


@routes.post(
    "/v1/maintenance", needs=AccessRole.ADMIN, body=NewTask, answer=QueuedJob, status=202, archive_in="body:archive"
)
def run_maintenance(call: Call[NoQuery, NewTask]) -> QueuedJob:
    """Run a maintenance task now, as a job of low priority."""
    body = call.body
    if body.archive is None:
        call.require_all_archives()
    archive = call.archive(body.archive) if body.archive is not None else None
    with call.client.access.admitted(call.principal):
        return QueuedJob(job=call.client.schedules.run_task(body.task, archive, body.options))


@routes.get("/v1/removals", needs=AccessRole.READ, answer=JsonList)
def list_removals(call: Call[NoQuery, NoBody]) -> JsonList:
    """What was erased, when and by whom; the newest first."""
    return json_list(call.client.system.erasures())


@routes.get("/v1/status", needs=AccessRole.ADMIN, answer=StatusObject, of_all=True)
def show_status(call: Call[NoQuery, NoBody]) -> StatusObject:
    """What runs, and what is wrong with it."""
    system = call.client.system
    return StatusObject(
        workers=list(map(json_of, system.workers())),
        faults=list(map(json_of, system.faults())),
        events=system.events(),
        last_tick_age_s=system.last_tick_age_s(),
    )


def _object(view: ScheduleView) -> ScheduleObject:
    return ScheduleObject(schedule=json_of(view))
