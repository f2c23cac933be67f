"""What keeps the machinery going: open inputs, turns, workers, isolated faults."""

from __future__ import annotations

import posixpath
import re
import unicodedata
from urllib.parse import unquote

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

_OPEN_SHARD = sa.text("state IN ('pending', 'queued', 'running')")
# Columns that name the owner of many rows, and number them. A new owner is in no statistics, so the planner would
# expect a single row of it, and plan for that, until the next ANALYZE; and numbers beyond those of older jobs would look
# rare. Without statistics it always expects the same part of the table.
_WITHOUT_STATISTICS = {
    "questions": ("job_id", "question_no", "place"),
    "answers": ("job_id", "question_no"),
    "candidates": ("job_id", "question_no"),
    "files": ("job_id", "file_no"),
    "reindexed": ("job_id", "item_no"),
    "shards": ("job_id",),
    "labels": ("job_id", "question_no"),
    "noisy_cases": ("job_id", "question_no"),
    "bound_objects": ("binding_id",),
}


def upgrade() -> None:
    """Each part of the machinery has a function of its own."""
    _upgrade_scale()
    _upgrade_isolate()
    _upgrade_turns()


def downgrade() -> None:
    """Undo the parts in the reverse order."""
    _downgrade_turns()
    _downgrade_isolate()
    _downgrade_scale()


def _upgrade_scale() -> None:
    """Jobs of a million inputs: plans that do not depend on fresh statistics, and counts that are kept."""
    can_clear = op.get_bind().scalar(sa.text("SELECT to_regproc('pg_clear_attribute_stats') IS NOT NULL"))
    for table, columns in _WITHOUT_STATISTICS.items():
        for column in columns:
            op.execute(f"ALTER TABLE {table} ALTER COLUMN {column} SET STATISTICS 0")
            if can_clear:  # since PostgreSQL 18
                op.execute(f"SELECT pg_clear_attribute_stats(current_schema()::text, '{table}', '{column}', false)")
    op.add_column("jobs", sa.Column("counts", postgresql.JSONB()))
    op.execute("UPDATE jobs SET counts = result -> 'counts' WHERE jsonb_typeof(result -> 'counts') = 'object'")
    op.create_index(
        "ix_jobs_without_result",
        "jobs",
        ["id"],
        postgresql_where=sa.text("finished_at IS NOT NULL AND result IS NULL"),
    )
    op.create_index("ix_shards_open", "shards", ["state", "job_id", "lo"], postgresql_where=_OPEN_SHARD)
    op.add_column("shards", sa.Column("open_inputs", sa.Integer()))


def _downgrade_scale() -> None:
    op.drop_column("shards", "open_inputs")
    op.drop_index("ix_shards_open", "shards")
    op.drop_index("ix_jobs_without_result", "jobs")
    op.drop_column("jobs", "counts")
    for table, columns in _WITHOUT_STATISTICS.items():
        for column in columns:
            op.execute(f"ALTER TABLE {table} ALTER COLUMN {column} SET STATISTICS -1")


# Isolated faults, and the rows of caption files in the database

_ROWS_AT_ONCE = 10_000


def _upgrade_isolate() -> None:
    op.create_table(
        "faults",
        sa.Column("room", sa.Text()),
        sa.Column("subject", sa.Text()),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("attempts", sa.Integer(), nullable=False),
        *(
            sa.Column(name, sa.DateTime(timezone=True), nullable=False, server_default=sa.func.now())
            for name in ("since", "failed_at", "not_before")
        ),
        sa.PrimaryKeyConstraint("room", "subject", name="pk_faults"),
    )
    op.add_column("change_events", sa.Column("reason", sa.Text()))
    op.create_table(
        "listed_captions",
        sa.Column("binding_id", sa.BigInteger(), autoincrement=False),
        sa.Column("name", sa.Text(collation="C")),
        sa.Column("file", sa.Text(collation="C")),
        sa.Column("base_name", sa.Text(collation="C"), nullable=False),
        sa.Column("caption", sa.Text()),
        sa.Column("metadata", postgresql.JSONB()),
        sa.PrimaryKeyConstraint("binding_id", "name", "file", name="pk_listed_captions"),
        sa.ForeignKeyConstraint(
            ["binding_id"], ["bindings.id"], ondelete="CASCADE", name="fk_listed_captions_binding_id"
        ),
    )
    op.create_index("ix_listed_captions_base_name", "listed_captions", ["binding_id", "base_name"])
    op.add_column("bound_objects", sa.Column("name", sa.Text(collation="C")))
    op.add_column("bound_objects", sa.Column("base_name", sa.Text(collation="C")))
    op.add_column(
        "bound_objects", sa.Column("caption_due", sa.Boolean(), nullable=False, server_default=sa.text("false"))
    )
    _name_pictures(op.get_bind())
    op.create_index(
        "ix_bound_objects_base_name",
        "bound_objects",
        ["binding_id", "base_name"],
        postgresql_where=sa.text("base_name IS NOT NULL"),
    )
    op.create_index(
        "ix_bound_objects_caption_due",
        "bound_objects",
        ["binding_id", "key"],
        postgresql_where=sa.text("caption_due"),
    )
    # Caption files are read again, now into the database.
    op.execute("UPDATE bound_objects SET etag = '' WHERE kind = 'captions'")
    op.execute(
        "INSERT INTO change_events (bucket, key) SELECT bucket, key FROM bound_objects "
        "JOIN bindings ON bindings.id = binding_id WHERE kind = 'captions' ON CONFLICT DO NOTHING"
    )


def _name_pictures(connection: sa.Connection) -> None:
    """Write the names of recorded pictures, in pages."""
    page = sa.text(
        "SELECT binding_id, key, substr(key, length(prefix) + 1) AS name FROM bound_objects "
        "JOIN bindings ON bindings.id = binding_id "
        "WHERE kind = 'picture' AND (binding_id, key) > (:binding_id, :key) ORDER BY binding_id, key LIMIT :most"
    )
    write = sa.text(
        "UPDATE bound_objects SET name = given.name, base_name = given.base_name "
        "FROM unnest(CAST(:ids AS bigint[]), CAST(:keys AS text[]), CAST(:names AS text[]), CAST(:bases AS text[])) "
        "AS given (binding_id, key, name, base_name) "
        "WHERE bound_objects.binding_id = given.binding_id AND bound_objects.key = given.key"
    )
    last: tuple[int, str] = (0, "")
    while rows := connection.execute(page, {"binding_id": last[0], "key": last[1], "most": _ROWS_AT_ONCE}).all():
        names = [posixpath.normpath(row.name.strip().replace("\\", "/")).lstrip("/") for row in rows]
        values = {
            "ids": [row.binding_id for row in rows],
            "keys": [row.key for row in rows],
            "names": names,
            "bases": [_name_group(name) for name in names],
        }
        connection.execute(write, values)
        last = (rows[-1].binding_id, rows[-1].key)


def _name_group(name: str) -> str:
    """As picture_names.name_group of this version."""
    folded = unicodedata.normalize("NFC", unicodedata.normalize("NFC", unquote(name)).casefold())
    last = posixpath.basename(folded)
    stem, extension = posixpath.splitext(last)
    return stem if stem and re.fullmatch(r"\.(?:[a-z]{3,4}|jp2|j2k)", extension) else last


def _downgrade_isolate() -> None:
    for name in ("ix_bound_objects_caption_due", "ix_bound_objects_base_name"):
        op.drop_index(name, "bound_objects")
    for name in ("caption_due", "base_name", "name"):
        op.drop_column("bound_objects", name)
    op.drop_table("listed_captions")
    op.drop_column("change_events", "reason")
    op.drop_table("faults")


def _upgrade_turns() -> None:
    """What a worker cannot do, and when the last tick ended."""
    refused = sa.Column("refused", postgresql.JSONB(), nullable=False, server_default=sa.text("'{}'::jsonb"))
    op.add_column("workers", refused)
    op.create_table(
        "ticks",
        sa.Column("name", sa.Text()),
        sa.Column("ended_at", sa.DateTime(timezone=True), nullable=False, server_default=sa.func.now()),
        sa.PrimaryKeyConstraint("name", name="pk_ticks"),
        postgresql_with={"fillfactor": "70"},
    )


def _downgrade_turns() -> None:
    op.drop_table("ticks")
    op.drop_column("workers", "refused")
