"""The boundary between archives, as the database enforces it: row-level security for the role of the HTTP API.

Each transaction of that role says which archives it may see, in a setting of the session that ends with the
transaction. Without one it sees nothing. The policies are in stores/access/policies.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

from psycopg import DataError
from psycopg.errors import InsufficientPrivilege
from sqlalchemy import Connection, Engine, event
from sqlalchemy.engine import ExceptionContext

from ragllava.errors import AccessDenied, UsageError
from ragllava.stores.database import TRANSACTIONS_ONLY
from ragllava.stores.sessions import OPEN_JOBS, OWNER

ARCHIVES = "ragllava.archives"
ADMIN = "ragllava.admin"
ALL = "all"
YES = "yes"


@dataclass(frozen=True, slots=True)
class Scope:
    """Which archives the transactions of a request may see (None: all), who owns the jobs that they create, and how
    many of these may be open (0: any number).

    An administrator of all archives also makes keys and reads the audit.
    """

    archives: frozenset[int] | None
    owner: str
    is_admin: bool = False
    open_jobs: int = 0

    @property
    def setting(self) -> str:
        """The value of the session's setting: `all`, or an array literal of ids."""
        return ALL if self.archives is None else "{" + ",".join(map(str, sorted(self.archives))) + "}"


_NOBODY = Scope(frozenset(), "")
_scope: ContextVar[Scope] = ContextVar("scope", default=_NOBODY)


@contextmanager
def acting(scope: Scope) -> Iterator[None]:
    """Transactions of a secured engine have this scope in the block, and in threads and tasks that start in it."""
    token = _scope.set(scope)
    try:
        yield
    finally:
        _scope.reset(token)


def acting_owner() -> str:
    """The owner in the scope of this request; empty outside of one."""
    return _scope.get().owner


def secure(engine: Engine) -> Engine:
    """Make every transaction of an engine state its scope; the engine belongs to the role of the HTTP API.

    What the database refuses to that role raises AccessDenied, and a value that it cannot store UsageError.
    """
    engine.update_execution_options(**{TRANSACTIONS_ONLY: True})
    event.listen(engine, "begin", _state_scope)
    event.listen(engine, "handle_error", _translate)
    return engine


def _state_scope(connection: Connection) -> None:
    scope = _scope.get()
    driver: Any = connection.connection.dbapi_connection
    is_admin = YES if scope.is_admin else ""
    values = (ARCHIVES, scope.setting, OWNER, scope.owner, ADMIN, is_admin, OPEN_JOBS, str(scope.open_jobs))
    driver.execute(f"SELECT {', '.join(['set_config(%s, %s, true)'] * 4)}", values)


def _translate(context: ExceptionContext) -> None:
    if isinstance(context.original_exception, InsufficientPrivilege):
        raise AccessDenied("the database does not allow this to the HTTP API") from context.original_exception
    if isinstance(context.original_exception, DataError):  # a text with NUL inside JSON, a number out of range
        raise UsageError("a value in the request cannot be stored: a NUL, or out of range") from (
            context.original_exception
        )
