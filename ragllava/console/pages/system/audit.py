"""The audit: who changed what, through the HTTP API and the console."""

from __future__ import annotations

from typing import Annotated
from urllib.parse import urlencode

from pydantic import Field

from ragllava.api.route import NoBody, Query
from ragllava.client import AccessRole
from ragllava.console.page import ROOT, Context, Pages, Visit

pages = Pages("Audit")

AUDIT = f"{ROOT}/audit"
_LISTED = 100


class AuditQuery(Query):
    """Which calls; `before` is the id of the last one of the page before."""

    before: Annotated[int, Field(ge=1, le=2**63 - 1)] | None = None
    owner: Annotated[str, Field(max_length=500)] = ""


@pages.get(
    AUDIT, needs=AccessRole.ADMIN, of_all=True, query=AuditQuery, template="audit.html", title="Audit", menu="Audit"
)
def list_audit(visit: Visit[AuditQuery, NoBody]) -> Context:
    """Every change and every refusal of one, the newest first."""
    query = visit.query
    listed = visit.client.access.list_audit(limit=_LISTED + 1, before=query.before, owner=query.owner or None)
    shown = listed[:_LISTED]
    more = None
    if len(listed) > _LISTED:
        more = urlencode({"before": shown[-1].audit_id} | ({"owner": query.owner} if query.owner else {}))
    return {"entries": shown, "query": query, "more": more}
