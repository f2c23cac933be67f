"""What happens by the clock: the tick that sweeps, dispatches, begins what is due, and finishes jobs."""

from __future__ import annotations

import threading

from ragllava.stages.finalize import publish_missing_results
from ragllava.stages.schedules import fire_due
from ragllava.training.request import submit_due_trainings
from ragllava.training.scheduled import STARTERS
from workers.app import app, dispatch_now
from workers.runtime import runtime

_finishing = threading.Lock()


@app.task(name="ragllava.tick", queue="maint")
def tick() -> None:
    """Any number of ticks may run at once; every step of it is safe to repeat."""
    here = runtime()
    dispatch_now(here.engine, here.settings)
    # Writing a large result or building a graph takes minutes, and the next sweep must not wait for it.
    if _finishing.acquire(blocking=False):
        threading.Thread(target=_finish_jobs, name="finish", daemon=True).start()
    submit_due_trainings(here.engine, here.settings)
    if fire_due(here.engine, here.settings, STARTERS):
        dispatch_now(here.engine, here.settings)


def _finish_jobs() -> None:
    try:
        here = runtime()
        publish_missing_results(here.engine, here.resources.objects)
    finally:
        _finishing.release()
