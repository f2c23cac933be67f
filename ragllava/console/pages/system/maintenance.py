"""Maintenance tasks: start one, and what the last ones reported; what was erased."""

from __future__ import annotations

from ragllava.api.route import Body, NoBody, NoQuery
from ragllava.api.routes.native.schedules import NewTask, run_maintenance
from ragllava.api.routes.native.shared import Line
from ragllava.client import AccessRole, JobKind, TaskName
from ragllava.console.page import ROOT, Context, Done, Pages, Visit

pages = Pages("Maintenance")

MAINTENANCE = f"{ROOT}/maintenance"
_JOBS = 30
_ERASURES = 30

# What a person reads beside the name.
SENTENCES = {
    TaskName.SCAN: "compares bound buckets with what the archives know of them",
    TaskName.GAPS: "names every picture that no question can find, and why",
    TaskName.FIND_NOISY: "checks stored answers again, and logs those that are doubtful",
    TaskName.GC: "finds objects that nothing refers to; with “delete” it removes them",
    TaskName.RETENTION: "drops what is older than the settings keep",
    TaskName.BACKUP: "saves the database and all objects where the settings say",
    TaskName.VACUUM: "vacuums the tables with many changes, and measures the recall of the graphs",
}


class TaskForm(Body):
    """A task, of one archive or of the whole system; `delete` is an option of `gc`."""

    task: TaskName
    archive: Line | None = None
    delete: bool = False


@pages.get(MAINTENANCE, needs=AccessRole.READ, template="maintenance.html", title="Maintenance", menu="Maintenance")
def show_maintenance(visit: Visit[NoQuery, NoBody]) -> Context:
    """The last tasks with their reports, and erasures."""
    return {
        "jobs": visit.client.jobs.list(limit=_JOBS, kind=JobKind.MAINTENANCE),
        "erasures": visit.client.system.erasures()[:_ERASURES],
        "held": visit.client.archives.held_removals(),
        "sentences": SENTENCES,
        "archives": visit.client.archives.names(),
        "may_run": visit.may(AccessRole.ADMIN),
        "sees_all": visit.principal.archives is None,
    }


@pages.post(MAINTENANCE, needs=AccessRole.ADMIN, body=TaskForm, archive_in="body:archive")
def start_task(visit: Visit[NoQuery, TaskForm]) -> Done:
    """Run a maintenance task now, as a job of low priority."""
    form = visit.body
    options = {"delete": True} if form.delete else {}
    queued = run_maintenance(visit.with_body(NewTask(task=form.task, archive=form.archive, options=options)))
    return Done(f"Job {queued.job} runs the task {form.task.value}.", f"{ROOT}/jobs/{queued.job}")
