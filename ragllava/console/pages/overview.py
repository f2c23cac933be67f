"""Overview: is it well, what runs, what waits, what failed."""

from __future__ import annotations

from ragllava.api.route import NoBody, NoQuery
from ragllava.client import AccessRole
from ragllava.console.page import ROOT, Context, Pages, Visit

pages = Pages("Overview")


@pages.get(ROOT, needs=AccessRole.READ, template="overview.html", title="Overview", menu="Overview")
def show_overview(visit: Visit[NoQuery, NoBody]) -> Context:
    """What runs, and whether it is well."""
    return {"jobs": visit.client.jobs.list(only_open=True, limit=20)}
