"""Alembic runs this file for every command; the connection comes from `migrations.upgrade` and its sisters."""

from __future__ import annotations

from alembic import context

from ragllava.stores.schema import metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    transaction_per_migration=True,
)
with context.begin_transaction():
    context.run_migrations()
