"""Free ports of 127.0.0.1 for the servers of one home."""

from __future__ import annotations

import itertools
import random
import socket
from contextlib import ExitStack

from ragllava.errors import SettingsError

API_PORT = 8600  # of the HTTP API and the console, unless another is asked for or it is taken

# Below the range from which Linux takes the ports of outgoing connections (32768 and up), so that a connection rarely
# occupies one of our ports while our services do not run; twins lie below it too.
_PORT_RANGE = range(15_000, 22_000)


class Ports:
    """Chooses ports, and reserves them until they are released or this process ends.

    A server listens on its port only seconds after the choice. Without a reservation, two homes that start at the same
    time would choose the same port. A reservation is an abstract Unix socket with the number in its name: the kernel
    gives the name to one process and takes it back when that process ends.
    """

    def __init__(self) -> None:
        """Nothing is reserved yet."""
        self._reserved: dict[int, socket.socket] = {}

    def choose(self, kept: list[int], count: int, twin: int = 0) -> list[int]:
        """`count` free ports: the kept ones if all are still free, else new ones.

        With `twin`, the port that many numbers above each is free and reserved too. Raises SettingsError when too few
        are free.
        """
        if len(kept) == count and self._reserve(kept, twin):
            return kept
        shuffled = random.sample(_PORT_RANGE, len(_PORT_RANGE))
        chosen = list(itertools.islice((port for port in shuffled if self._reserve([port], twin)), count))
        if len(chosen) < count:
            raise SettingsError(f"no free TCP port between {_PORT_RANGE.start} and {_PORT_RANGE.stop} on 127.0.0.1")
        return chosen

    def release(self) -> None:
        """Let others choose these ports; harmless when repeated."""
        for held in self._reserved.values():
            held.close()
        self._reserved.clear()

    def _reserve(self, ports: list[int], twin: int) -> bool:
        """Whether all are free; else none is reserved."""
        with ExitStack() as undo:
            for port in sorted({*ports, *(number + twin for number in ports)}):
                held = undo.enter_context(socket.socket(socket.AF_UNIX))
                try:
                    held.bind(f"\0ragllava-port-{port}")
                except OSError:
                    return False
                if not _is_free(port):
                    return False
                self._reserved[port] = held
                undo.callback(self._reserved.pop, port)
            undo.pop_all()
        return True


def _is_free(port: int) -> bool:
    try:
        # It reuses addresses, as servers do: else a port whose last connection has just closed would look taken.
        with socket.create_server(("127.0.0.1", port)):
            return True
    except OSError:
        return False
