"""Whether a program can use the tables of a database: compared once by every client, before its first query.

A program needs the tables of its own revision. Those of a newer one suit it as well if all migrations in between only
add what it does not miss: then the database states it, and programs of both versions can work beside each other.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Engine, event, text

from ragllava.errors import SchemaMismatch
from ragllava.stores.schema import REVISION

# NULL: there is no such table. The first migration gives the application its rights at its very end.
_MAY_READ = "SELECT has_table_privilege(to_regclass('alembic_version'), 'SELECT')"
_STANDING = """
    SELECT (SELECT version_num FROM alembic_version), obj_description(to_regclass('alembic_version'), 'pg_class')
"""
NO_RIGHTS = (
    "this database user has no rights on the tables: `ragllava migrate` or `ragllava up` gives them at its end; "
    "wait for it, or run it again"
)


@dataclass(frozen=True, slots=True)
class Standing:
    """The revision of a database (None: no tables), and the oldest revision whose programs can use it, if stated."""

    revision: str | None
    floor: str | None = None

    @property
    def problem(self) -> str | None:
        """One sentence when this version cannot use the database, and what to do; else None."""
        if self.revision == REVISION:
            return None
        if self.revision is None:
            return "the database has no tables yet; run `ragllava migrate` or `ragllava up`"
        if self.revision < REVISION:  # they are numbers of four digits
            return (
                f"the database is at revision {self.revision}, older than this version of RagLLaVA needs ({REVISION}); "
                "stop the workers, run `ragllava migrate`, and start them again"
            )
        if self.floor is not None and self.floor <= REVISION:
            return None
        return (
            f"the database is at revision {self.revision}, newer than this version of RagLLaVA knows ({REVISION}); "
            "install the version that migrated it, here and for the workers"
        )


def stated_floor(revision: str) -> str:
    """How a database says, in the comment of its table of versions, which programs can use it."""
    return f"programs since {revision}"


def standing_of(revision: str | None, comment: str | None) -> Standing:
    """What the row and the comment of the table of versions say; a comment of somebody else says nothing."""
    stated = re.fullmatch(stated_floor(r"(\d{4})"), comment or "")
    return Standing(revision, stated[1] if stated else None)


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
            [may_read] = cursor.execute(_MAY_READ).fetchone()
            row = cursor.execute(_STANDING).fetchone() if may_read else (None, None)
        driver.rollback()  # the connection is given out without a transaction
        problem = NO_RIGHTS if may_read is False else standing_of(*row).problem
        if problem is not None:
            raise SchemaMismatch(problem)
        is_checked = True

    event.listen(engine, "connect", on_connect)


def find_problem(connection: Connection) -> str | None:
    """`Standing.problem` of a database that had tables when this program started."""
    return read_standing(connection).problem


def read_standing(connection: Connection) -> Standing:
    """Of a database that has tables, for a role that may read them."""
    return standing_of(*connection.execute(text(_STANDING)).one())
