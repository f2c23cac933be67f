"""The tick: the periodic task that reaps, dispatches, processes events, starts what is due, and finishes jobs."""

from __future__ import annotations

import logging
import threading

from ragllava.errors import ServiceUnavailable
from ragllava.jobs.ending import end_jobs
from ragllava.stages.buckets.received import drain_list
from ragllava.stages.buckets.sync import process_events
from ragllava.stages.erasing.steps import Eraser
from ragllava.stages.maintenance.schedules import fire_due
from ragllava.stages.results.finalize import publish_missing_results
from ragllava.stores.database import in_transaction
from ragllava.stores.jobs import workers
from ragllava.training.request import submit_due_trainings
from ragllava.training.scheduled import STARTERS
from workers.app import app, dispatch_now
from workers.runtime import runtime

log = logging.getLogger(__name__)

_finishing = threading.Lock()
_processing = threading.Lock()


@app.task(name="ragllava.tick", queue="maint")
def tick() -> None:
    """Any number of ticks may run at once: every step is safe to repeat."""
    process = runtime()
    dispatch_now(process.engine, process.settings)
    # Each may take minutes (thousands of objects; a large result), and the next tick must not wait for it.
    if _processing.acquire(blocking=False):
        threading.Thread(target=_process_events, name="process events", daemon=True).start()
    if _finishing.acquire(blocking=False):
        threading.Thread(target=_finish_jobs, name="finish jobs", daemon=True).start()
    submit_due_trainings(process.engine, process.settings)
    if fire_due(process.engine, process.settings, STARTERS):
        dispatch_now(process.engine, process.settings)


def _process_events() -> None:
    """Turn change events into ingest jobs; a later tick does what an unavailable service prevents."""
    try:
        process = runtime()
        drain_list(process.engine, process.settings)
        if process_events(process.engine, process.settings, process.resources.objects).changes.job_ids:
            dispatch_now(process.engine, process.settings)
    except ServiceUnavailable as error:
        log.warning(str(error), extra={"action": "events_not_processed"})
    finally:
        _processing.release()


def _finish_jobs() -> None:
    """Write the results of ended jobs, and continue removals that were interrupted."""
    try:
        end_jobs(runtime().engine)
        in_transaction(runtime().engine, workers.remove_silent)
        publish_missing_results(runtime().engine, runtime().resources.objects)
        Eraser(runtime().engine, runtime().resources.objects).continue_all()
    finally:
        _finishing.release()
