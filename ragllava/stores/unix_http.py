"""HTTP over a Unix socket, for urllib3."""

from __future__ import annotations

import socket
from typing import Any

from urllib3 import PoolManager
from urllib3.connection import HTTPConnection
from urllib3.connectionpool import HTTPConnectionPool
from urllib3.exceptions import ConnectTimeoutError, NewConnectionError


class UnixPoolManager(PoolManager):
    """Sends every request to the server at one socket, whatever host its URL names."""

    def __init__(self, path: str, **options: Any) -> None:
        """`options` are those of a PoolManager."""
        super().__init__(**options)

        class Connection(HTTPConnection):
            """A connection to this socket."""

            def _new_conn(self) -> socket.socket:
                return _connected(self, path)

        class Pool(HTTPConnectionPool):
            """Keeps such connections open for the next requests."""

            ConnectionCls = Connection

        self.pool_classes_by_scheme = {"http": Pool}


def _connected(connection: HTTPConnection, path: str) -> socket.socket:
    """A new socket, with the timeout for connecting; urllib3 sets the other ones."""
    made = socket.socket(socket.AF_UNIX)
    try:
        if isinstance(connection.timeout, int | float):
            made.settimeout(connection.timeout)
        made.connect(path)
    except TimeoutError as error:
        made.close()
        raise ConnectTimeoutError(connection, f"{path} does not answer") from error
    except OSError as error:
        made.close()
        raise NewConnectionError(connection, f"{path}: {error.strerror or error}") from error
    return made
