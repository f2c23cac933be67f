"""What happens by the clock: the tick that sweeps, dispatches, and writes the result files of ended jobs."""

from __future__ import annotations

from ragllava.stages.finalize import publish_missing_results
from workers.app import app, dispatch_now
from workers.runtime import runtime


@app.task(name="ragllava.tick", queue="maint")
def tick() -> None:
    """Any number of ticks may run at once; every step of it is safe to repeat."""
    here = runtime()
    dispatch_now(here.engine, here.settings)
    publish_missing_results(here.engine, here.resources.objects)
