"""Browsers that are signed in to the console, and links that sign in once; who may read keys and the audit."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import ARRAY, JSONB

revision = "0013"
down_revision = "0012"
branch_labels = None
depends_on = None

_SECURED = ("api_keys", "audit")


def upgrade() -> None:
    """The policies name roles, so `ragllava migrate` makes them when it makes the roles."""
    op.create_table(
        "sign_ins",
        sa.Column("sha256", sa.Text(), nullable=False),
        sa.Column("owner", sa.Text(), nullable=False),
        sa.Column("key_id", sa.BigInteger()),
        sa.Column("role", sa.Text(), nullable=False),
        sa.Column("archives", ARRAY(sa.BigInteger())),
        sa.Column("limits", JSONB(), nullable=False, server_default=sa.text("'{}'")),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False, server_default=sa.func.now()),
        sa.Column("seen_at", sa.DateTime(timezone=True), nullable=False, server_default=sa.func.now()),
        sa.Column("ends_at", sa.DateTime(timezone=True)),
        sa.PrimaryKeyConstraint("sha256", name="pk_sign_ins"),
        sa.ForeignKeyConstraint(["key_id"], ["api_keys.id"], name="fk_sign_ins_key_id", ondelete="CASCADE"),
        postgresql_with={"fillfactor": "70"},
    )
    op.create_index("ix_sign_ins_key_id", "sign_ins", ["key_id"])
    op.create_table(
        "sign_in_links",
        sa.Column("sha256", sa.Text(), nullable=False),
        sa.Column("owner", sa.Text(), nullable=False),
        sa.Column("ends_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("sha256", name="pk_sign_in_links"),
    )
    for table in _SECURED:
        op.execute(f"ALTER TABLE {table} ENABLE ROW LEVEL SECURITY")


def downgrade() -> None:
    """Browsers have to sign in again."""
    for table in _SECURED:
        op.execute(f"DROP POLICY IF EXISTS plain ON {table}")
        for command in ("select", "insert", "update", "delete"):
            op.execute(f"DROP POLICY IF EXISTS tenant_{command} ON {table}")
        op.execute(f"ALTER TABLE {table} DISABLE ROW LEVEL SECURITY")
    op.drop_table("sign_in_links")
    op.drop_table("sign_ins")
