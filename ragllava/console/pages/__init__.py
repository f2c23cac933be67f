"""The pages of the console: one module for each, and here the list of all, in the order of the navigation."""

from __future__ import annotations

from ragllava.console.page import Page
from ragllava.console.pages.archives import archive, archives, indexes, pictures, sources
from ragllava.console.pages.learning import learning, review
from ragllava.console.pages.system import audit, help, keys, maintenance, overview, schedules, sign_in
from ragllava.console.pages.work import ask, jobs, submit

_MODULES = (
    sign_in,
    overview,
    ask,
    archives,
    archive,
    sources,
    indexes,
    pictures,
    submit,
    jobs,
    review,
    learning,
    schedules,
    maintenance,
    keys,
    audit,
    help,
)

ALL_PAGES: tuple[Page, ...] = tuple(page for module in _MODULES for page in module.pages.listed)
