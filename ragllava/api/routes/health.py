"""Whether the server can work: for load balancers and `ragllava up`, without a key."""

from __future__ import annotations

from ragllava.api.route import Answer, Call, NoBody, NoQuery, Routes

routes = Routes("Health")


class Health(Answer):
    """The server answers, and the database can be used."""

    status: str


@routes.get("/healthz", needs=None, answer=Health)
def show_health(call: Call[NoQuery, NoBody]) -> Health:
    """Whether the database can be used; 503 if not."""
    call.client.access.has_callers()
    return Health(status="ok")


class Life(Answer):
    """The server answers."""

    status: str


@routes.get("/livez", needs=None, answer=Life)
async def show_life(_call: Call[NoQuery, NoBody]) -> Life:
    """Whether this process answers, whatever the database does."""
    # No thread: all of them may wait for a silent database, and a process that is restarted then helps nobody.
    return Life(status="ok")
