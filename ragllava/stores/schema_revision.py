"""Whether the tables of a database are those of this version: compared once by every client, before its first query."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Engine, event

from ragllava.errors import SchemaMismatch
from ragllava.stores.schema import REVISION

_READ = "SELECT to_regclass('alembic_version') IS NOT NULL"


def require_schema(engine: Engine) -> None:
    """Compare the revision at the first connection of this engine; does not connect.

    That connection raises SchemaMismatch when the database has other tables.
    """
    is_checked = False

    def on_connect(driver: Any, _record: Any) -> None:
        nonlocal is_checked
        if is_checked:
            return
        with driver.cursor() as cursor:
            [exists] = cursor.execute(_READ).fetchone()
            row = cursor.execute("SELECT version_num FROM alembic_version").fetchone() if exists else None
        driver.rollback()  # the connection is given out without a transaction
        problem = schema_problem(row[0] if row else None)
        if problem is not None:
            raise SchemaMismatch(problem)
        is_checked = True

    event.listen(engine, "connect", on_connect)


def schema_problem(revision: str | None) -> str | None:
    """One sentence when a database at this revision cannot be used by this version, and what to do; else None."""
    if revision == REVISION:
        return None
    if revision is None:
        return "the database has no tables yet; run `ragllava migrate` or `ragllava up`"
    if revision < REVISION:  # they are numbers of four digits
        return (
            f"the database is at revision {revision}, older than this version of RagLLaVA needs ({REVISION}); "
            "stop the workers, run `ragllava migrate`, and start them again"
        )
    return (
        f"the database is at revision {revision}, newer than this version of RagLLaVA knows ({REVISION}); "
        "install the version that migrated it, here and for the workers"
    )
