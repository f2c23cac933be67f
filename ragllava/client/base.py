"""What all parts of the client share: the connections, transactions, the word to the workers."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import Concatenate, ParamSpec, TypeVar

from sqlalchemy import Connection, Engine

from ragllava.settings import Settings
from ragllava.stores.database import in_transaction, make_engine
from ragllava.stores.jobs.job_ends import JobEnds
from ragllava.stores.objects import ObjectStore

P = ParamSpec("P")
T = TypeVar("T")


class BaseClient:
    """The settings of one system, and the connections that they lead to."""

    def __init__(self, settings: Settings) -> None:
        """Connects at the first call."""
        self.settings = settings

    @cached_property
    def engine(self) -> Engine:
        """The connection pool; `close` it when done."""
        return make_engine(self.settings.require_database(), name="ragllava client")

    @cached_property
    def objects(self) -> ObjectStore:
        """The S3 store."""
        return ObjectStore(self.settings)

    @cached_property
    def _job_ends(self) -> JobEnds:
        """Tells those who wait for a job."""
        return JobEnds(self.engine)

    def close(self) -> None:
        """Close the connections, if there are any."""
        if "_job_ends" in self.__dict__:
            self._job_ends.close()
        if "engine" in self.__dict__:  # else asking for it here would make one
            self.engine.dispose()

    def _do(self, work: Callable[Concatenate[Connection, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        return in_transaction(self.engine, work, *args, **kwargs)

    def _dispatch(self) -> None:
        from workers.app import dispatch_now

        dispatch_now(self.engine, self.settings)
