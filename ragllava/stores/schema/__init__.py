"""All tables, declared once (SQLAlchemy Core). `migrations/` builds the same; a test compares the two."""

from __future__ import annotations

from ragllava.stores.schema.archive_tables import archives, blobs, embeddings, images, indexes
from ragllava.stores.schema.base import metadata
from ragllava.stores.schema.event_tables import (
    bindings,
    bound_objects,
    change_event_totals,
    change_events,
    schedule_runs,
    schedules,
)
from ragllava.stores.schema.job_tables import (
    answers,
    candidates,
    files,
    jobs,
    maintenance_tasks,
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
    "change_event_totals",
    "change_events",
    "embeddings",
    "files",
    "images",
    "indexes",
    "jobs",
    "labels",
    "maintenance_tasks",
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
