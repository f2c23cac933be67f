"""Overview: is it well, what runs, what waits, what failed."""

from __future__ import annotations

from datetime import UTC, datetime

from starlette.responses import Response

from ragllava.api.following import Sight
from ragllava.api.route import NoBody, NoQuery
from ragllava.client import AccessRole, JobState, Severity
from ragllava.console.following import follow_while_signed_in, sight_of
from ragllava.console.page import ROOT, Context, Pages, Visit
from ragllava.console.pages.work.jobs import job_lines

pages = Pages("Overview")

_OPEN_JOBS = 20
_FAILED_JOBS = 5


@pages.get(ROOT, needs=AccessRole.READ, template="overview.html", title="Overview", menu="Overview")
def show_overview(visit: Visit[NoQuery, NoBody]) -> Context:
    """What runs, and whether it is well."""
    return _state(visit)


@pages.part(f"{ROOT}/overview/state", needs=AccessRole.READ, template="_overview.html")
def show_state(visit: Visit[NoQuery, NoBody]) -> Context:
    """The part of the overview that changes by itself."""
    return _state(visit)


@pages.events(f"{ROOT}/overview/events", needs=AccessRole.READ)
async def follow_overview(visit: Visit[NoQuery, NoBody]) -> Response:
    """An event when jobs or queues have changed; services and workers are looked at by each renewal."""

    def look() -> Sight:
        client = visit.client
        return sight_of(client.jobs.list(only_open=True, limit=_OPEN_JOBS), *client.health.queues())

    return await follow_while_signed_in(visit, look)


def _state(visit: Visit[NoQuery, NoBody]) -> Context:
    client = visit.client
    failed = [
        job
        for state in (JobState.FAILED, JobState.COMPLETED_WITH_ERRORS)
        for job in client.jobs.list(limit=_FAILED_JOBS, state=state)
    ]
    sees_system = visit.may(AccessRole.ADMIN, of_all=True)
    checks = client.health.checks() if sees_system else []
    return {
        "jobs": job_lines(client.jobs.list(only_open=True, limit=_OPEN_JOBS)),
        "failed": sorted(failed, key=lambda job: -job.job_id)[:_FAILED_JOBS],
        "queues": client.health.queues(),
        "sees_system": sees_system,
        "checks": sorted(checks, key=lambda check: -list(Severity).index(check.severity)),
        "troubles": [check for check in checks if check.severity is not Severity.GOOD],
        "is_bad": any(check.severity is Severity.BAD for check in checks),
        "workers": client.system.workers() if sees_system else [],
        "at": datetime.now(UTC),
    }
