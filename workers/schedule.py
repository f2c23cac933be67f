"""The tick, which reaps, dispatches, processes events, starts what is due, and finishes jobs.

Each maintenance worker ticks from a thread of its own, by a clock that only counts forward: no step of the machine's
clock, no full broker and no long submission holds the ticks up.
"""

from __future__ import annotations

import logging
import threading
import time

from ragllava.errors import ServiceUnavailable
from ragllava.jobs.ending import end_jobs, expire_due_jobs
from ragllava.jobs.isolation import Isolation
from ragllava.stages.answer.asked_pictures import let_pictures_go
from ragllava.stages.answer.slow_reads import SlowReads
from ragllava.stages.batches.process import process_batches
from ragllava.stages.buckets.received import drain_list
from ragllava.stages.buckets.sync import process_events
from ragllava.stages.erasing.steps import Eraser
from ragllava.stages.maintenance.schedules import fire_due
from ragllava.stages.notices.deliver import process_notices
from ragllava.stages.results.finalize import publish_missing_results
from ragllava.stages.webhooks.deliver import deliver_due
from ragllava.stores.database import in_transaction
from ragllava.stores.jobs import requests, workers
from ragllava.stores.maintenance import ticks, totals
from ragllava.training.request import submit_due_trainings
from ragllava.training.scheduled import STARTERS
from workers.app import DISPATCH, TICK, app, dispatch_now
from workers.runtime import runtime

log = logging.getLogger(__name__)

TICK_STEPS = (
    "deadlines",
    "dispatch",
    "trainings",
    "schedules",
    "events of the Redis list",
    "events",
    "ends of jobs",
    "totals",
    "silent workers",
    "results",
    "batches",
    "removals",
    "requests",
    "lent pictures",
    "webhooks",
    "notices",
)
_REQUESTS_KEPT_S = 3_600.0

_finishing = threading.Lock()
# Passes at once: each has its own events, so one that meets a slow bucket does not hold up the events of the others.
_processing = threading.BoundedSemaphore(3)
_delivering = threading.Lock()
# Each for itself: inboxes with slow hosts do not hold up batches.
_slow_batches, _slow_inboxes = SlowReads(), SlowReads()


def start_ticking() -> None:
    """Tick from now on, as long as this process runs."""
    threading.Thread(target=_keep_ticking, name="tick", daemon=True).start()


def _keep_ticking() -> None:
    period_s = runtime().settings.tick_s
    while True:
        started = time.monotonic()
        try:
            run_tick()
        except Exception as error:  # the next tick tries it again; `ragllava doctor` sees that none has ended
            log.exception(str(error), extra={"action": "tick_failed"})
        time.sleep(max(0.0, period_s - (time.monotonic() - started)))


@app.task(name=DISPATCH)
def dispatch_task() -> None:
    """What a tick begins with, for the HTTP API, whose own role does not see all jobs."""
    dispatch_now(runtime().engine, runtime().settings)


@app.task(name=TICK)
def tick() -> None:
    """A tick that was asked for by message."""
    run_tick()


def run_tick() -> None:
    """Any number of ticks may run at once: every step is safe to repeat, and one that fails holds up no other."""
    process = runtime()
    steps = Isolation(process.engine, "tick", TICK_STEPS)
    steps.run("deadlines", expire_due_jobs, process.engine)
    steps.run("dispatch", dispatch_now, process.engine, process.settings)
    # Each may take minutes (thousands of objects; a large result), and the next tick must not wait for it.
    if _processing.acquire(blocking=False):
        threading.Thread(target=_process_events, name="process events", daemon=True).start()
    if _finishing.acquire(blocking=False):
        threading.Thread(target=_finish_jobs, name="finish jobs", daemon=True).start()
    if _delivering.acquire(blocking=False):
        threading.Thread(target=_deliver, name="webhooks", daemon=True).start()
    steps.run("trainings", submit_due_trainings, process.engine, process.settings)
    if steps.run("schedules", fire_due, process.engine, process.settings, STARTERS):
        steps.run("dispatch", dispatch_now, process.engine, process.settings)
    in_transaction(process.engine, ticks.note_tick, process.settings.lease_s)


def _process_events() -> None:
    """Turn change events into ingest jobs; a later tick does what an unavailable service prevents."""
    try:
        process = runtime()
        steps = Isolation(process.engine, "tick", TICK_STEPS)
        steps.run("events of the Redis list", drain_list, process.engine, process.settings)
        objects = process.resources.objects
        processed = steps.run("events", process_events, process.engine, process.settings, objects, _slow_inboxes)
        if processed is not None and processed.changes.job_ids:
            dispatch_now(process.engine, process.settings)
    except ServiceUnavailable as error:
        log.warning(str(error), extra={"action": "events_not_processed"})
    finally:
        _processing.release()


def _finish_jobs() -> None:
    """Write the results of ended jobs, do what is due for batches, and continue removals that were interrupted."""
    try:
        process = runtime()
        steps = Isolation(process.engine, "tick", TICK_STEPS)
        steps.run("ends of jobs", end_jobs, process.engine)
        steps.run("totals", in_transaction, process.engine, totals.compact)
        steps.run("silent workers", in_transaction, process.engine, workers.remove_silent)
        steps.run("results", publish_missing_results, process.engine, process.resources.objects)
        objects = process.resources.objects
        if steps.run("batches", process_batches, process.engine, process.settings, objects, _slow_batches):
            dispatch_now(process.engine, process.settings)
        steps.run("removals", Eraser(process.engine, process.resources.objects).continue_all)
        steps.run("requests", in_transaction, process.engine, requests.delete_old, _REQUESTS_KEPT_S)
        steps.run("lent pictures", let_pictures_go, process.engine, process.resources.objects)
    except ServiceUnavailable as error:
        log.warning(str(error), extra={"action": "jobs_not_finished"})
    finally:
        _finishing.release()


def _deliver() -> None:
    """Tell webhooks of ended jobs, and people what the rules say; a host that does not answer holds nothing else up."""
    try:
        process = runtime()
        steps = Isolation(process.engine, "tick", TICK_STEPS)
        steps.run("webhooks", deliver_due, process.engine, process.settings)
        steps.run("notices", process_notices, process.engine, process.settings)
    except ServiceUnavailable as error:
        log.warning(str(error), extra={"action": "webhooks_not_sent"})
    finally:
        _delivering.release()
