"""Events for pages that renew themselves: when there is news, for as long as the browser is signed in."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from typing import Any

from starlette.responses import Response

from ragllava.api.following import Sight, follow
from ragllava.client import JobView, acting
from ragllava.console.page import Visit


async def follow_while_signed_in(visit: Visit[Any, Any], look: Callable[[], Sight]) -> Response:
    """The events of what `look` sees, with the rights that the sign-in has at each look."""

    async def looked() -> Sight | None:
        access = visit.client.access
        principal = await visit.run(access.signed_in, visit.secret or "", is_use=False)
        if principal is None:
            return None
        with acting(access.scope_of(principal)):
            return await visit.run(look)

    return await follow(visit, looked)


def sight_of(jobs: list[JobView], *others: object) -> Sight:
    """Of several jobs, and of what else tells whether a page has changed. The page fetches itself what it shows."""
    states = [(job.job_id, job.state.value, job.progress.done, job.progress.total) for job in jobs]
    digest = hashlib.sha256(repr((states, others)).encode()).hexdigest()
    return Sight(digest[:32], json.dumps({"jobs": len(jobs)}))
