"""The routes of the HTTP API: one module for each kind of thing, and here the list of all."""

from __future__ import annotations

from ragllava.api.route import Route
from ragllava.api.routes import health, models

ALL_ROUTES: tuple[Route, ...] = (
    *health.routes.listed,
    *models.routes.listed,
)
