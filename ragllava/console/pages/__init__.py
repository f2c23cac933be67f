"""The pages of the console: one module for each, and here the list of all, in the order of the navigation."""

from __future__ import annotations

from ragllava.console.page import Page
from ragllava.console.pages import (
    archives,
    ask,
    audit,
    help,
    jobs,
    keys,
    learning,
    maintenance,
    overview,
    pictures,
    review,
    schedules,
    sign_in,
    submit,
)

ALL_PAGES: tuple[Page, ...] = (
    *sign_in.pages.listed,
    *overview.pages.listed,
    *ask.pages.listed,
    *archives.pages.listed,
    *pictures.pages.listed,
    *submit.pages.listed,
    *jobs.pages.listed,
    *review.pages.listed,
    *learning.pages.listed,
    *schedules.pages.listed,
    *maintenance.pages.listed,
    *keys.pages.listed,
    *audit.pages.listed,
    *help.pages.listed,
)
