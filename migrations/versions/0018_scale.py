"""How many workers a queue can use, for what starts and stops them."""

from __future__ import annotations

from alembic import op

revision = "0018"
down_revision = "0017"
branch_labels = None
depends_on = None
expands = True


def upgrade() -> None:
    """Nobody but its owner may call the function; `ragllava migrate` lets the role of RAGLLAVA_SCALE_DATABASE_URL."""
    # It runs with the rights of its owner, so the names that it uses must not be those of a caller's tables.
    op.execute("""
        CREATE FUNCTION ragllava_scale(queue_name text) RETURNS bigint
        LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog, public, pg_temp
        AS $$
        DECLARE
            queues CONSTANT jsonb := '{
                "answer": "query", "ingest": "ingest", "maintenance": "ingest", "reindex": "ingest",
                "request": "query", "train": "train"
            }';
        BEGIN
            IF NOT EXISTS (SELECT FROM jsonb_each_text(queues) WHERE value = queue_name) THEN
                RAISE EXCEPTION 'ragllava_scale: there is no queue %', coalesce(quote_literal(queue_name), 'NULL');
            END IF;
            RETURN (
                SELECT count(*) FROM shards JOIN jobs ON jobs.id = shards.job_id
                WHERE jobs.finished_at IS NULL
                    AND shards.state IN ('pending', 'queued', 'running') -- by the index of open shards
                    AND coalesce(shards.queue, queues ->> jobs.kind) = queue_name
                    AND (
                        shards.state = 'running'
                        OR (jobs.state <> 'paused' AND NOT (
                            shards.is_last AND EXISTS (
                                SELECT FROM shards sibling
                                WHERE sibling.job_id = shards.job_id AND sibling.id <> shards.id
                                    AND sibling.state IN ('pending', 'queued', 'running')
                            )
                        ))
                    )
            );
        END
        $$
    """)
    op.execute("COMMENT ON FUNCTION ragllava_scale IS 'Shards of a queue that wait for a worker or have one'")
    op.execute("REVOKE ALL ON FUNCTION ragllava_scale FROM PUBLIC")


def downgrade() -> None:
    """Nothing is lost."""
    op.execute("DROP FUNCTION ragllava_scale")
