"""The rights of the HTTP API's role, which owns nothing, and the policies of row-level security.

A row is visible if its archive is one of those that the transaction has stated (stores/access/tenancy.py). Rows without
an archive concern all archives, and so does what they belong to: only who may see all archives sees them. The words of
images have no policy: their index could not be used behind one, because its operator is not leakproof. They lead to
images, which have one.
"""

from __future__ import annotations

from sqlalchemy import Connection, text

from ragllava.stores.access.tenancy import ADMIN, ALL, ARCHIVES, YES
from ragllava.stores.sessions import OWNER

# Read once for each statement, not for each row: a subquery without a reference to the row.
_STATED = f"(SELECT current_setting('{ARCHIVES}', true))"
_IDS = (
    f"(SELECT (CASE WHEN left(current_setting('{ARCHIVES}', true), 1) = '{{'"
    f" THEN current_setting('{ARCHIVES}', true) ELSE '{{}}' END)::bigint[])"
)
_SEES_ALL = f"{_STATED} = '{ALL}'"
_IS_OWN = f"owner = (SELECT current_setting('{OWNER}', true))"
_ADMINISTERS_ALL = f"{_SEES_ALL} AND (SELECT current_setting('{ADMIN}', true)) = '{YES}'"


def _of_archive(column: str) -> str:
    return f"{_SEES_ALL} OR {column} = ANY ({_IDS}::bigint[])"


def _of(table: str, condition: str) -> str:
    """Visible with a row of another table, which its own policy hides or shows."""
    return f"EXISTS (SELECT FROM {table} WHERE {condition})"


_BY_ARCHIVE = (
    "images",
    "word_counts",
    "indexes",
    "jobs",
    "labels",
    "noisy_cases",
    "reviews",
    "bindings",
    "schedules",
    "erasures",
    "held_removals",
    "batches",
    "webhooks",
    "notices",
)
_BY_JOB = (
    "shards",
    "files",
    "questions",
    "answers",
    "candidates",
    "trainings",
    "training_steps",
    "maintenance_tasks",
    "reindexed",
    "requests",
)
_BY_BINDING = ("bound_objects", "listed_captions")

POLICIES: dict[str, str] = {
    "archives": _of_archive("id"),
    **{table: _of_archive("archive_id") for table in _BY_ARCHIVE},
    **{table: _of("jobs", f"jobs.id = {table}.job_id") for table in _BY_JOB},
    **{table: _of("bindings", f"bindings.id = {table}.binding_id") for table in _BY_BINDING},
    "schedule_runs": _of("schedules", "schedules.id = schedule_runs.schedule_id"),
    "deliveries": _of("webhooks", "webhooks.id = deliveries.webhook_id"),
    "mailings": _of("notices", "notices.id = mailings.notice_id"),
    "embeddings": _of("indexes", "indexes.id = embeddings.index_id"),
    # An empty list would be contained in every other one.
    "uploads": f"{_SEES_ALL} OR (archives <@ {_IDS} AND cardinality(archives) > 0)",
}

# Of tables of the whole system, by what a transaction does. Whoever calls is looked up in the keys, and noted in the
# audit.
COMMAND_POLICIES: dict[str, dict[str, str]] = {
    "api_keys": {"select": "true", "insert": _ADMINISTERS_ALL, "update": _ADMINISTERS_ALL},
    "asked_pictures": {"select": _IS_OWN, "insert": _IS_OWN, "update": _IS_OWN},
    "audit": {"select": _ADMINISTERS_ALL, "insert": "true"},
    "totals": {"select": _SEES_ALL, "insert": "true"},
}

_ALL_RIGHTS = "SELECT, INSERT, UPDATE, DELETE"
# Besides the tables with policies. Nothing of these belongs to one archive.
_RIGHTS = {
    "alembic_version": "SELECT",
    "api_keys": "SELECT, INSERT, UPDATE (revoked_at)",
    "api_usage": "SELECT, INSERT, UPDATE",
    "asked_pictures": "SELECT, INSERT, UPDATE",
    "audit": "SELECT, INSERT",
    "blobs": "SELECT, INSERT, UPDATE",
    "change_event_totals": "SELECT",
    "change_events": "SELECT",
    "faults": "SELECT",
    "image_words": "SELECT, INSERT, UPDATE, DELETE",
    "model_versions": "SELECT, INSERT, UPDATE",
    "promotions": "SELECT, INSERT, DELETE",
    "sign_in_links": "SELECT, DELETE",
    "sign_ins": "SELECT, INSERT, UPDATE, DELETE",
    "ticks": "SELECT",
    "totals": "SELECT, INSERT",
    "vocabulary": "SELECT, INSERT",
    "workers": "SELECT, UPDATE",
}
_ONLY_READ = ("embeddings",)  # the workers write vectors


def secure_tables(connection: Connection, application: str, api: str | None) -> None:
    """Make the policies of the plain role, which sees everything, and those of the HTTP API's role, with its rights.

    `connection` belongs to the owner of the tables. Call it after every migration.
    """
    quote = connection.dialect.identifier_preparer.quote
    for table, condition in POLICIES.items():
        _make_policy(connection, table, "plain", quote(application), "true")
        if api is not None:
            rights = "SELECT" if table in _ONLY_READ else _ALL_RIGHTS
            connection.execute(text(f"GRANT {rights} ON {table} TO {quote(api)}"))
            _make_policy(connection, table, "tenant", quote(api), condition)
    for table, conditions in COMMAND_POLICIES.items():
        _make_policy(connection, table, "plain", quote(application), "true")
        for command, condition in conditions.items() if api is not None else ():
            _make_policy(connection, table, f"tenant_{command}", quote(str(api)), condition, command)
    if api is None:
        return
    for table, rights in _RIGHTS.items():
        connection.execute(text(f"GRANT {rights} ON {table} TO {quote(api)}"))
    connection.execute(text(f"GRANT USAGE ON SCHEMA public TO {quote(api)}"))
    connection.execute(text(f"GRANT USAGE, SELECT ON ALL SEQUENCES IN SCHEMA public TO {quote(api)}"))


def _make_policy(
    connection: Connection, table: str, name: str, role: str, condition: str, command: str = "all"
) -> None:
    """Make it or replace that of an earlier version; one that is there already costs no lock on the table."""
    made = f"{role}: {condition}"
    if connection.scalar(_DESCRIPTION, {"name": name, "table": table}) == made:
        return
    connection.execute(text(f"DROP POLICY IF EXISTS {name} ON {table}"))
    seen = f" USING ({condition})" if command != "insert" else ""
    written = f" WITH CHECK ({condition})" if command in ("all", "insert", "update") else ""
    create = f"CREATE POLICY {name} ON {table} FOR {command.upper()} TO {role}{seen}{written}"
    comment = f"COMMENT ON POLICY {name} ON {table} IS '{made.replace(chr(39), chr(39) * 2)}'"
    for statement in (create, comment):
        connection.execute(text(statement.replace(":", r"\:")))


_DESCRIPTION = text("""
    SELECT obj_description(oid, 'pg_policy') FROM pg_policy
    WHERE polname = :name AND polrelid = CAST(:table AS regclass)
""")
