"""How the groups of a client's methods remove things."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from ragllava.client.connections import Connections
from ragllava.errors import UsageError
from ragllava.stages.erasing.remove import Remover, this_account


@contextmanager
def remover(connections: Connections) -> Iterator[Remover]:
    """What removes things in the name of this account. Removals that were interrupted are finished first, so calling
    an interrupted one again finishes it, and then says that there is no such thing any more."""
    made = Remover(connections.engine, connections.settings, connections.objects, this_account())
    finished = made.finish_interrupted()
    try:
        yield made
    except UsageError as error:
        if finished:
            error.add_note("a removal that was interrupted before is finished now")
        raise
