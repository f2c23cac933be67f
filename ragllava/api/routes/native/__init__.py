"""The routes of RagLLaVA's own API: whatever the command line can do with archives, jobs, labels and schedules."""

from __future__ import annotations

from ragllava.api.route import Route
from ragllava.api.routes.native import (
    archives,
    buckets,
    indexes,
    jobs,
    learning,
    mailings,
    pictures,
    results,
    reviews,
    schedules,
    webhooks,
)

NATIVE_ROUTES: tuple[Route, ...] = (
    *archives.routes.listed,
    *pictures.routes.listed,
    *buckets.routes.listed,
    *indexes.routes.listed,
    *jobs.routes.listed,
    *results.routes.listed,
    *reviews.routes.listed,
    *learning.routes.listed,
    *schedules.routes.listed,
    *webhooks.routes.listed,
    *mailings.routes.listed,
)
