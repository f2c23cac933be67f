"""One word for each thing: maintenance tasks, change events, and the rank and score of retrieval.

Names of tables, columns and constraints change, and so do values that are names. What people wrote stays as it is: a
schedule that was called `sweep` keeps that name. Reports of ended tasks and files in the object store stay as they are.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

_TABLES = {"chores": "maintenance_tasks", "hints": "change_events", "hint_totals": "change_event_totals"}
_COLUMNS = {"clip_rank": "retrieval_rank", "clip_score": "retrieval_score"}  # of candidates
_KINDS = {"chore": "maintenance"}  # of jobs
_ACTIONS = {"mine": "find-noisy", "sweep": "gc"}  # of maintenance tasks and schedules


def upgrade() -> None:
    """Rename tables, columns, their constraints, and the names in rows."""
    for old, new in _TABLES.items():
        _rename_table(old, new)
    for old, new in _COLUMNS.items():
        _rename_column("candidates", old, new)
    _rename_values(_TABLES["chores"], _KINDS, _ACTIONS)


def downgrade() -> None:
    """The former names; no row is lost."""
    _rename_values(_TABLES["chores"], _turned(_KINDS), _turned(_ACTIONS))
    for old, new in _COLUMNS.items():
        _rename_column("candidates", new, old)
    for old, new in _TABLES.items():
        _rename_table(new, old)


def _turned(names: dict[str, str]) -> dict[str, str]:
    return {new: old for old, new in names.items()}


def _rename_table(old: str, new: str) -> None:
    op.rename_table(old, new)
    # Indexes have the names of their constraints.
    _rename_constraints(new, old, new)


def _rename_column(table: str, old: str, new: str) -> None:
    op.alter_column(table, old, new_column_name=new)
    _rename_constraints(table, old, new)


def _rename_constraints(table: str, old: str, new: str) -> None:
    """Every constraint whose name has the old word in it; from PostgreSQL 18 on, NOT NULL is one as well."""
    names = op.get_bind().scalars(
        sa.text("SELECT conname FROM pg_constraint WHERE conrelid = to_regclass(:table) ORDER BY conname"),
        {"table": table},
    )
    for name in names.all():
        if old in name:
            op.execute(f'ALTER TABLE {table} RENAME CONSTRAINT "{name}" TO "{name.replace(old, new, 1)}"')


def _rename_values(tasks: str, kinds: dict[str, str], actions: dict[str, str]) -> None:
    for old, new in kinds.items():
        _update("UPDATE jobs SET kind = :new WHERE kind = :old", old, new)
        _update(f"UPDATE jobs SET result = {_with_name('result', 'kind')} WHERE result ->> 'kind' = :old", old, new)
    [kind] = kinds.values()
    for old, new in actions.items():
        _update(f"UPDATE {tasks} SET action = :new WHERE action = :old", old, new)
        _update("UPDATE schedules SET action = :new WHERE action = :old", old, new)
        _update(
            f"UPDATE jobs SET spec = {_with_name('spec', 'action')} WHERE kind = '{kind}' AND spec ->> 'action' = :old",
            old,
            new,
        )


def _with_name(column: str, key: str) -> str:
    return f"{column} || jsonb_build_object('{key}', CAST(:new AS text))"


def _update(statement: str, old: str, new: str) -> None:
    op.get_bind().execute(sa.text(statement), {"old": old, "new": new})
