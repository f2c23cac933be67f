"""Alembic runs this file for every command; the connection comes from `migrations.upgrade` and its sisters."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from alembic import context
from alembic.runtime.migration import MigrationContext, MigrationInfo
from sqlalchemy import text

from ragllava.stores.schema import metadata
from ragllava.stores.schema_revision import stated_floor


def note_floor(ctx: MigrationContext, step: MigrationInfo, heads: Collection[Any], run_args: Mapping[str, Any]) -> None:
    """After each step, in its transaction: say which programs the tables suit.

    A migration that `expands` only adds what programs of the revision before do not miss. Those can go on.
    """
    floor: Any = next(iter(heads), None)
    while floor is not None and getattr(context.script.get_revision(floor).module, "expands", False):
        floor = context.script.get_revision(floor).down_revision
    stated = "NULL" if floor is None else f"'{stated_floor(floor)}'"
    context.get_bind().execute(text(f"COMMENT ON TABLE alembic_version IS {stated}"))


context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    transaction_per_migration=True,
    on_version_apply=note_floor,
)
with context.begin_transaction():
    context.run_migrations()
