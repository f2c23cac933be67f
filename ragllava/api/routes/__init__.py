"""The routes of the HTTP API: one module for each kind of thing, and here the list of all."""

from __future__ import annotations

from ragllava.api.route import Route
from ragllava.api.routes import health, openai_answers, openai_batches, openai_files, openai_models

ALL_ROUTES: tuple[Route, ...] = (
    *health.routes.listed,
    *openai_models.routes.listed,
    *openai_files.routes.listed,
    *openai_batches.routes.listed,
    *openai_answers.routes.listed,
)
