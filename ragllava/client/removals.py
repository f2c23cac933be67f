"""How the groups of a client's methods remove things."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from ragllava.client.connections import Connections
from ragllava.errors import UsageError
from ragllava.stages.erasing.remove import Remover, this_account
from ragllava.stores.access.tenancy import acting_owner


@contextmanager
def remover(connections: Connections) -> Iterator[Remover]:
    """What removes things in the name of this account; for tenants, what begins to and leaves the rest to the tick.

    Removals that were interrupted are finished first, so calling an interrupted one again finishes it, and then says
    that there is no such thing any more.
    """
    if connections.for_tenants:
        owner = acting_owner() or this_account()
        yield Remover(connections.engine, connections.settings, connections.objects, owner, only_begin=True)
        return
    made = Remover(connections.engine, connections.settings, connections.objects, this_account())
    finished = made.finish_interrupted()
    try:
        yield made
    except UsageError as error:
        if finished:
            error.add_note("a removal that was interrupted before is finished now")
        raise
