"""Alembic runs this file for every command; the connection comes from `migrations.upgrade` and its sisters."""

from __future__ import annotations

from typing import Any

from alembic import context
from sqlalchemy import text

from ragllava.stores.schema import metadata
from ragllava.stores.schema_revision import stated_floor


def note_floor(*, heads: set[str], **_facts: Any) -> None:
    """After each step, in its transaction: say which programs the tables suit.

    A migration that `expands` only adds what programs of the revision before do not miss. Those can go on.
    """
    script = context.script.get_revision(next(iter(heads), None))
    while script is not None and getattr(script.module, "expands", False):
        script = context.script.get_revision(script.down_revision)
    stated = "NULL" if script is None else f"'{stated_floor(script.revision)}'"
    context.get_bind().execute(text(f"COMMENT ON TABLE alembic_version IS {stated}"))


context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    transaction_per_migration=True,
    on_version_apply=note_floor,
)
with context.begin_transaction():
    context.run_migrations()
