"""The settings and connections of a client, which all its groups of methods share."""

from __future__ import annotations

import getpass
import os
import socket
from collections.abc import Callable, Iterable
from functools import cached_property, wraps
from pathlib import Path
from types import TracebackType
from typing import Concatenate, ParamSpec, Self, TypeVar

from sqlalchemy import Connection, Engine

from ragllava.imaging.sandbox import DecoderPool, make_decoder
from ragllava.settings import Settings, load_settings
from ragllava.stores.access.tenancy import secure
from ragllava.stores.archives.archive import get_archive
from ragllava.stores.database import in_transaction, make_engine
from ragllava.stores.jobs.job_ends import JobBoard, JobEnds
from ragllava.stores.objects import ObjectStore
from ragllava.stores.schema_revision import require_schema

P = ParamSpec("P")
T = TypeVar("T")


class Connections:
    """The settings of one system, and the connections that they lead to. A context manager that closes them."""

    def __init__(
        self,
        settings: Settings | None = None,
        *,
        name: str = "ragllava client",
        pool_size: int = 3,
        for_tenants: bool = False,
    ) -> None:
        """Without `settings`, those of the environment. Connects at the first call. Raises SettingsError.

        The database shows its sessions under `name`, of which it keeps up to `pool_size`. With `for_tenants` the role
        is that of the HTTP API: a call sees the archives of the `acting` principal, and nothing without one.
        """
        self.settings = load_settings() if settings is None else settings
        self._name, self._pool_size = name, pool_size
        self.for_tenants = for_tenants

    @cached_property
    def engine(self) -> Engine:
        """The connection pool of the database. Its first use raises SchemaMismatch for tables of another version."""
        url = self.settings.require_api_database() if self.for_tenants else self.settings.require_database()
        engine = make_engine(url, pool_size=self._pool_size, name=self._name, owner=this_user())
        if self.for_tenants:
            secure(engine)
        require_schema(engine)
        return engine

    @cached_property
    def objects(self) -> ObjectStore:
        """The S3 store."""
        return ObjectStore(self.settings)

    @cached_property
    def job_ends(self) -> JobEnds:
        """Notifications of the ends of jobs."""
        return JobEnds(self.engine)

    @cached_property
    def job_board(self) -> JobBoard:
        """Notifications of the ends of many jobs at once."""
        return JobBoard(self.engine)

    @cached_property
    def decoder(self) -> DecoderPool:
        """One child process that decodes pictures."""
        return make_decoder(self.settings, processes=1)

    def close(self) -> None:
        """Close the connections and end the child process, if there are any."""
        if "decoder" in self.__dict__:
            self.decoder.close()
        if "job_board" in self.__dict__:
            self.job_board.close()
        if "job_ends" in self.__dict__:
            self.job_ends.close()
        if "engine" in self.__dict__:  # else asking for it here would make one
            self.engine.dispose()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()


def listed_paths(paths: str | Path | Iterable[str | Path]) -> list[Path]:
    """One path or several, as paths."""
    return [Path(paths)] if isinstance(paths, str | Path) else [Path(path) for path in paths]


def this_user() -> str:
    """`user@machine`, the owner of the jobs that this process queues."""
    try:
        user = getpass.getuser()
    except (OSError, KeyError):  # a container may run under a number without a name
        user = str(os.getuid())
    return f"{user}@{socket.gethostname()}"


class Namespace:
    """A group of a client's methods. A method `list` comes last in its class, where it hides the type from no other."""

    def __init__(self, connections: Connections) -> None:
        """The connections belong to the client, which closes them."""
        self._connections = connections

    def _do(self, work: Callable[Concatenate[Connection, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        """`work(connection, *args, **kwargs)` in one transaction."""
        return in_transaction(self._connections.engine, work, *args, **kwargs)

    def _queue(self, submit: Callable[Concatenate[Connection, Settings, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        """`submit(connection, settings, *args, **kwargs)` in one transaction; then dispatches what is ready."""
        result = self._do(submit, self._connections.settings, *args, **kwargs)
        self._dispatch()
        return result

    def _of_archive(
        self, name: str, work: Callable[Concatenate[Connection, int, P], T], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """`work(connection, archive_id, *args, **kwargs)` in one transaction. Raises UsageError for an unknown name."""

        def with_id(connection: Connection) -> T:
            return work(connection, get_archive(connection, name).archive_id, *args, **kwargs)

        return self._do(with_id)

    def _dispatch(self) -> None:
        """Send what is ready to the workers; what the queue does not take is sent at the next tick."""
        from workers.app import DISPATCH, dispatch_now, request_work

        if self._connections.for_tenants:  # it sees the jobs of a few archives, and dispatch weighs those of all
            request_work(self._connections.settings, DISPATCH)
        else:
            dispatch_now(self._connections.engine, self._connections.settings)

    def _tick(self) -> None:
        """Ask for a tick, which does what is due beside dispatch."""
        from workers.app import TICK, request_work

        request_work(self._connections.settings, TICK)


def forwarded(work: Callable[Concatenate[Connection, P], T]) -> Callable[Concatenate[Namespace, P], T]:
    """A method that is `work(connection, ...)` in one transaction, with the arguments and the contract of `work`."""

    @wraps(work)
    def method(self: Namespace, /, *args: P.args, **kwargs: P.kwargs) -> T:
        return self._do(work, *args, **kwargs)

    return method
