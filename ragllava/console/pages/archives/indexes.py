"""The indexes of an archive side by side, what their gates measured, and the switch between them."""

from __future__ import annotations

from typing import Any

from ragllava.api.route import Body, NoBody, NoQuery
from ragllava.client import AccessRole, IndexDetails, ReindexRequest, Selection
from ragllava.console.page import ROOT, Context, Done, Pages, Visit
from ragllava.console.pages.archives.archives import ARCHIVE

pages = Pages("Archives")

_SHOWN_DIFFERENCES = 50


class ReindexForm(Body):
    """Which pictures are embedded again. With `switch`, an index that passes its gate is used at once."""

    only: Selection = Selection.MISSING
    switch: bool = False


@pages.get(
    f"{ARCHIVE}/indexes", needs=AccessRole.READ, template="indexes.html", title="Indexes", archive_in="path:archive"
)
def show_indexes(visit: Visit[NoQuery, NoBody]) -> Context:
    """The indexes by age, the newest first."""
    name = visit.archive(visit.path("archive"))
    indexes = visit.client.archives.indexes.list(name)[::-1]
    return {
        "archive": name,
        "tab": "indexes",
        "indexes": [{"details": details, **_gate(details)} for details in indexes],
        "selections": list(Selection),
        "may_write": visit.may(AccessRole.WRITE),
        "may_switch": visit.may(AccessRole.ADMIN),
        "may_manage": visit.may(AccessRole.ADMIN, of_all=True),
    }


def _gate(details: IndexDetails) -> dict[str, Any]:
    """What the gate of an index measured; the questions that would end otherwise, the worse ones first."""
    gate = details.gate or {}
    answers = gate.get("answers") or {}
    differences = sorted(answers.get("differences", []), key=_change)
    return {"gate": gate, "answers": answers, "differences": differences[:_SHOWN_DIFFERENCES]}


def _change(difference: dict[str, Any]) -> float:
    return float(difference["new"]["relevance"]) - float(difference["old"]["relevance"])


@pages.post(f"{ARCHIVE}/reindex", needs=AccessRole.ADMIN, body=ReindexForm, archive_in="path:archive")
def reindex(visit: Visit[NoQuery, ReindexForm]) -> Done:
    """Embed pictures again, in a job."""
    name = visit.archive(visit.path("archive"))
    with visit.client.access.admitted(visit.principal):
        job = visit.client.archives.reindex(ReindexRequest(name, visit.body.only, switch=visit.body.switch))
    return Done(f"Job {job} embeds pictures of {name}.", f"{ROOT}/jobs/{job}")


@pages.post(f"{ROOT}/indexes/{{index_id}}/switch", needs=AccessRole.ADMIN, archive_in="path:index_id")
def switch(visit: Visit[NoQuery, NoBody]) -> Done:
    """Answer from another index, when a job has added what it lacks."""
    with visit.client.access.admitted(visit.principal):
        job = visit.client.archives.indexes.switch(visit.number("index_id"))
    return Done(f"Job {job} completes the index, and then answers come from it.", f"{ROOT}/jobs/{job}")
