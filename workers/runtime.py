"""What a worker's child process keeps between shards: settings, one engine, stores and models.

Made once in the process that runs the tasks, after fork or spawn (docs/reliability.md D7, D10).
"""

from __future__ import annotations

import functools
import itertools
import logging
import os
import threading
import time
from dataclasses import dataclass
from typing import Any

from billiard import current_process
from celery import signals
from sqlalchemy import Engine

from ragllava import __version__, tracing
from ragllava.errors import DeviceLost, RagllavaError, ServiceUnavailable
from ragllava.jobs import ending
from ragllava.jobs.kinds import KINDS
from ragllava.jobs.runner import run_shard
from ragllava.settings import Settings, load_settings
from ragllava.stages.resources import Resources
from ragllava.stores.database import in_transaction, make_engine
from ragllava.stores.jobs import workers
from ragllava.stores.learning import registry
from ragllava.stores.schema_revision import require_schema
from workers import figures
from workers.app import MESSAGE_VERSION, dispatch_now
from workers.presence import FAILURE_SIGNAL

log = logging.getLogger(__name__)

_LONGEST_DELAY_S = 30.0
_FIRST_STEP_BACK_S, _LONGEST_STEP_BACK_S = 0.05, 5.0

# Of the maintenance worker: a tick, three passes of events, the end of jobs, webhooks, a message. A smaller pool would
# open and close a connection at each tick. Threads that read slowly (`SlowReads`) need one for moments; the lock of a
# batch, or of a result, has a connection outside the pool.
_CONNECTIONS = 7


@dataclass(frozen=True)
class Runtime:
    """The connections and models of one process."""

    settings: Settings
    engine: Engine
    resources: Resources


@functools.cache
def runtime() -> Runtime:
    """The runtime of this process, made at the first call."""
    settings = load_settings()
    tracing.begin("ragllava worker")
    name = f"worker {os.getpid()}"
    engine = make_engine(settings.require_database(), pool_size=_CONNECTIONS, name=name, owner="workers")
    require_schema(engine)
    return Runtime(settings, engine, Resources(settings))


@signals.worker_process_init.connect
def _load_models(sender: str | None = None, **_facts: Any) -> None:
    """Before the first shard: load the models that this worker's queues need, score one pair, report ready.

    While a service is away, this is tried again, for ever. Celery ignores errors of a signal handler, so a worker that
    can never serve ends itself, with the reason as its last line and exit code 1.
    """
    if current_process().name == "MainProcess":  # of the pool `solo`: workers/presence.py
        return
    for attempt in itertools.count():
        try:
            versions = get_ready(str(sender))
            threading.Thread(target=_stay_ready, args=(str(sender), versions), name="ready", daemon=True).start()
            return
        except ServiceUnavailable as error:
            delay_s = min(_LONGEST_DELAY_S, 2.0 ** min(attempt, 10))
            log.warning(f"{error}; next attempt in {delay_s:g} s", extra={"action": "worker_waits", "worker": sender})
            time.sleep(delay_s)
        except Exception as error:
            log.critical(
                str(error) or type(error).__name__,
                exc_info=None if isinstance(error, RagllavaError) else error,
                extra={"action": "worker_unusable", "worker": sender},
            )
            os.kill(os.getppid(), FAILURE_SIGNAL)
            return


@signals.worker_process_shutdown.connect
def _send_traces(**_facts: Any) -> None:
    tracing.end()


def _stay_ready(name: str, versions: dict[str, str]) -> None:
    """Report the versions again when the row of this worker has lost them: it was removed, and its parent process,
    which made it again, may not have seen them."""
    process = runtime()
    while True:
        time.sleep(3 * process.settings.tick_s)
        try:
            in_transaction(process.engine, workers.report_ready, name, versions, only_missing=True)
        except Exception as error:  # noqa: BLE001 - the next attempt may succeed
            log.warning(str(error), extra={"action": "not_reported_ready", "worker": name})


def get_ready(name: str) -> dict[str, str]:
    """Load what the queues of this worker need, report ready, and return the versions of what was loaded.

    Raises ServiceUnavailable, ModelUnavailable, …
    """
    process = runtime()
    row = next((row for row in in_transaction(process.engine, workers.list_workers) if row.name == name), None)
    if row is None:
        raise ServiceUnavailable(f"the row of worker {name} is gone; its parent process makes it again")
    queues = row.queues
    if queues == ["train"]:
        os.nice(process.settings.train_niceness)
    else:
        for kind in KINDS.values():
            if kind.queue in queues:
                kind.load_stage()  # now, and not while the first shard waits
    answers = "query" in queues
    versions = process.resources.warm_up(answers=answers, embeds=answers or "ingest" in queues)
    if answers:
        profile = process.resources.models.profile.name
        in_transaction(process.engine, registry.ensure_champions, profile, process.resources.base_versions())
    # A train worker loads nothing before its first shard, which may never arrive.
    versions = versions | {"profile": process.resources.models.profile.name, "ragllava": __version__}
    in_transaction(process.engine, workers.report_ready, name, versions)
    log.info("models loaded", extra={"action": "worker_ready", "worker": name, **versions})
    figures.serve(name, row.slots, process.settings)
    dispatch_now(process.engine, process.settings)
    return versions


def run_message(shard_id: int, message_version: int, worker: str) -> None:
    """Run the shard that a message names, then dispatch the next shards."""
    process = runtime()
    if message_version != MESSAGE_VERSION:
        log.warning(
            "message of another version dropped; it is sent again when its shard is reaped",
            extra={"action": "message_dropped", "shard": shard_id, "version": message_version},
        )
        return
    passed_on = False
    try:
        started = time.monotonic()
        with figures.at_work():
            has_run = run_shard(shard_id, worker, process.settings, process.engine, process.resources)
        if has_run:
            figures.note_shard(time.monotonic() - started)
        else:
            passed_on = ending.pass_on(process.engine, shard_id, worker, process.settings)
            if not passed_on:  # a message that comes twice or late has changed nothing that could be dispatched
                return
    except DeviceLost:
        # A broken CUDA context cannot be repaired: only a new process helps. The shard is recorded as failed already.
        log.critical("device lost, this process ends", extra={"action": "device_lost", "shard": shard_id})
        os._exit(70)
    dispatch_now(process.engine, process.settings)
    _step_back(passed_on)


def _step_back(passed_on: bool) -> None:
    """Leave the next messages to other workers for a while if this one cannot do what it gets: longer each time."""
    global _passed_on  # noqa: PLW0603
    _passed_on = _passed_on + 1 if passed_on else 0
    if _passed_on:
        time.sleep(min(_LONGEST_STEP_BACK_S, _FIRST_STEP_BACK_S * 2.0 ** min(_passed_on, 10)))


_passed_on = 0  # messages in a row that this process passed on
