"""What a worker's child process keeps between shards: settings, one engine, stores and models.

Made once in the process that runs the tasks, after fork or spawn (docs/reliability.md D7, D10).
"""

from __future__ import annotations

import functools
import logging
import os
import signal
from dataclasses import dataclass
from typing import Any

from celery import signals
from sqlalchemy import Engine

from ragllava import __version__
from ragllava.errors import DeviceLost, ModelUnavailable, SchemaMismatch, SettingsError
from ragllava.jobs.kinds import KINDS
from ragllava.jobs.runner import run_shard
from ragllava.settings import Settings, load_settings
from ragllava.stages.resources import Resources
from ragllava.stores.database import in_transaction, make_engine
from ragllava.stores.jobs import workers
from ragllava.stores.learning import registry
from ragllava.stores.schema_revision import require_schema
from workers.app import MESSAGE_VERSION, dispatch_now

log = logging.getLogger(__name__)


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
    engine = make_engine(settings.require_database(), pool_size=3, name=f"worker {os.getpid()}", owner="workers")
    require_schema(engine)
    return Runtime(settings, engine, Resources(settings))


@signals.worker_process_init.connect
def _load_models(sender: str | None = None, **_facts: Any) -> None:
    """Before the first shard: load the models that this worker's queues need, score one pair, report ready.

    Celery ignores errors of a signal handler, so a worker that can never serve ends itself, with the reason as its
    last line.
    """
    try:
        _get_ready(str(sender))
    except (SettingsError, ModelUnavailable, SchemaMismatch) as error:
        log.critical(str(error), extra={"action": "worker_unusable", "worker": sender})
        os.kill(os.getppid(), signal.SIGTERM)


def _get_ready(name: str) -> None:
    process = runtime()
    queues = {row.name: row.queues for row in in_transaction(process.engine, workers.list_workers)}.get(name, [])
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
    dispatch_now(process.engine, process.settings)


def run_message(shard_id: int, message_version: int, worker: str) -> None:
    """Run the shard that a message names, then dispatch the next shards."""
    process = runtime()
    if message_version != MESSAGE_VERSION:
        log.warning(
            "message of another version dropped; it is sent again when its shard is reaped",
            extra={"action": "message_dropped", "shard": shard_id, "version": message_version},
        )
        return
    try:
        run_shard(shard_id, worker, process.settings, process.engine, process.resources)
    except DeviceLost:
        # A broken CUDA context cannot be repaired: only a new process helps. The shard is recorded as failed already.
        log.critical("device lost, this process ends", extra={"action": "device_lost", "shard": shard_id})
        os._exit(70)
    dispatch_now(process.engine, process.settings)
