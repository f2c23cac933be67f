"""The tick, which reaps, dispatches, processes events, starts what is due, and finishes jobs.

Each maintenance worker ticks from a thread of its own, by a clock that only counts forward: no step of the machine's
clock, no full broker and no long submission holds the ticks up.
"""

from __future__ import annotations

import logging
import threading
import time

from ragllava.errors import ServiceUnavailable
from ragllava.jobs.ending import end_jobs
from ragllava.stages.buckets.received import drain_list
from ragllava.stages.buckets.sync import process_events
from ragllava.stages.erasing.steps import Eraser
from ragllava.stages.maintenance.schedules import fire_due
from ragllava.stages.results.finalize import publish_missing_results
from ragllava.stores.database import in_transaction
from ragllava.stores.jobs import workers
from ragllava.stores.maintenance import ticks
from ragllava.training.request import submit_due_trainings
from ragllava.training.scheduled import STARTERS
from workers.app import app, dispatch_now
from workers.runtime import runtime

log = logging.getLogger(__name__)

_finishing = threading.Lock()
_processing = threading.Lock()


def start_ticking() -> None:
    """Tick from now on, as long as this process runs."""
    threading.Thread(target=_keep_ticking, name="tick", daemon=True).start()


def _keep_ticking() -> None:
    period_s = runtime().settings.tick_s
    while True:
        started = time.monotonic()
        try:
            tick()
        except Exception as error:  # the next tick tries it again; `ragllava doctor` sees that none has ended
            log.exception(str(error), extra={"action": "tick_failed"})
        time.sleep(max(0.0, period_s - (time.monotonic() - started)))


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
    in_transaction(process.engine, ticks.note_tick)


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
