"""What happens by the clock: the tick that sweeps, dispatches, folds events, begins what is due, and finishes jobs."""

from __future__ import annotations

import logging
import threading

from ragllava.errors import ServiceUnavailable
from ragllava.stages.buckets.received import drain_list
from ragllava.stages.buckets.sync import process_events
from ragllava.stages.maintenance.schedules import fire_due
from ragllava.stages.results.finalize import publish_missing_results
from ragllava.training.request import submit_due_trainings
from ragllava.training.scheduled import STARTERS
from workers.app import app, dispatch_now
from workers.runtime import runtime

log = logging.getLogger(__name__)

_finishing = threading.Lock()
_folding = threading.Lock()


@app.task(name="ragllava.tick", queue="maint")
def tick() -> None:
    """Any number of ticks may run at once; every step of it is safe to repeat."""
    here = runtime()
    dispatch_now(here.engine, here.settings)
    # Looking at thousands of objects takes a while, too.
    if _folding.acquire(blocking=False):
        threading.Thread(target=_process_events, name="fold", daemon=True).start()
    # Writing a large result or building a graph takes minutes, and the next sweep must not wait for it.
    if _finishing.acquire(blocking=False):
        threading.Thread(target=_finish_jobs, name="finish", daemon=True).start()
    submit_due_trainings(here.engine, here.settings)
    if fire_due(here.engine, here.settings, STARTERS):
        dispatch_now(here.engine, here.settings)


def _process_events() -> None:
    """Hints to ingest jobs. What a service that is away keeps from being done is done at a later tick."""
    try:
        here = runtime()
        drain_list(here.engine, here.settings)
        if process_events(here.engine, here.settings, here.resources.objects).changes.job_ids:
            dispatch_now(here.engine, here.settings)
    except ServiceUnavailable as error:
        log.warning(str(error), extra={"action": "fold_failed"})
    finally:
        _folding.release()


def _finish_jobs() -> None:
    try:
        here = runtime()
        publish_missing_results(here.engine, here.resources.objects)
    finally:
        _finishing.release()
