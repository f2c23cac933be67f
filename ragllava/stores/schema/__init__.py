"""All tables, declared once (SQLAlchemy Core). `migrations/` builds the same; a test compares the two."""

from __future__ import annotations

from ragllava.stores.schema.archive_tables import archives, blobs, embeddings, images, indexes
from ragllava.stores.schema.base import metadata
from ragllava.stores.schema.event_tables import bindings, bound_objects, hint_totals, hints, schedule_runs, schedules
from ragllava.stores.schema.job_tables import (
    answers,
    candidates,
    chores,
    files,
    jobs,
    questions,
    reindexed,
    shards,
    trainings,
    workers,
)
from ragllava.stores.schema.model_tables import labels, model_versions, noisy_cases, promotions

__all__ = [
    "answers",
    "archives",
    "bindings",
    "blobs",
    "bound_objects",
    "candidates",
    "chores",
    "embeddings",
    "files",
    "hint_totals",
    "hints",
    "images",
    "indexes",
    "jobs",
    "labels",
    "metadata",
    "model_versions",
    "noisy_cases",
    "promotions",
    "questions",
    "reindexed",
    "schedule_runs",
    "schedules",
    "shards",
    "trainings",
    "workers",
]
