"""What to do when something is red on the overview."""

from __future__ import annotations

from ragllava.api.route import NoBody, NoQuery
from ragllava.client import AccessRole
from ragllava.console.page import ROOT, Context, Pages, Visit

pages = Pages("Overview")


@pages.get(f"{ROOT}/help", needs=AccessRole.READ, template="help.html", title="What to do")
def show_help(visit: Visit[NoQuery, NoBody]) -> Context:
    """One section for each kind of finding."""
    return {}
