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
from ragllava.errors import DeviceLost, ModelUnavailable, SettingsError
from ragllava.jobs.runner import ShardContext, Stage, run_shard
from ragllava.records import JobKind
from ragllava.settings import Settings, load_settings
from ragllava.stages.answer.stage import answer_stage
from ragllava.stages.ingest.stage import ingest_stage
from ragllava.stages.maintenance.stage import maintenance_stage
from ragllava.stages.reindex.stage import reindex_stage
from ragllava.stages.resources import Resources
from ragllava.stores.database import in_transaction, make_engine
from ragllava.stores.jobs import workers
from ragllava.stores.learning import registry
from workers.app import MESSAGE_VERSION, dispatch_now

log = logging.getLogger(__name__)


def _train(context: ShardContext[Resources]) -> None:
    from ragllava.training.job import train_stage  # loads what only training needs

    train_stage(context)


STAGES: dict[JobKind, Stage[Resources]] = {
    JobKind.INGEST: ingest_stage,
    JobKind.ANSWER: answer_stage,
    JobKind.TRAIN: _train,
    JobKind.REINDEX: reindex_stage,
    JobKind.MAINTENANCE: maintenance_stage,
}


@dataclass(frozen=True)
class Runtime:
    """One process's connections and models."""

    settings: Settings
    engine: Engine
    resources: Resources


@functools.cache
def runtime() -> Runtime:
    """This process's runtime, made at the first call."""
    settings = load_settings()
    engine = make_engine(settings.require_database(), pool_size=3, name=f"worker {os.getpid()}")
    return Runtime(settings, engine, Resources(settings))


@signals.worker_process_init.connect
def _load_models(sender: str | None = None, **_facts: Any) -> None:
    """Before the first shard: load the models that this worker's queues need, score one pair, report ready.

    Celery swallows what a signal handler raises, so a worker that can never serve ends itself, with the reason as
    its last line.
    """
    try:
        _get_ready(str(sender))
    except (SettingsError, ModelUnavailable) as error:
        log.critical(str(error), extra={"action": "worker_unusable", "worker": sender})
        os.kill(os.getppid(), signal.SIGTERM)


def _get_ready(name: str) -> None:
    here = runtime()
    queues = {w.name: w.queues for w in in_transaction(here.engine, workers.list_workers)}.get(name, [])
    if queues == ["train"]:
        os.nice(here.settings.train_niceness)
    answers = "query" in queues
    versions = here.resources.warm_up(answers=answers, embeds=answers or "ingest" in queues)
    if answers:
        bases = here.resources.base_versions()
        profile = here.resources.models.profile.name
        in_transaction(here.engine, registry.ensure_champions, profile, bases)
    # A train worker loads nothing before its first shard, which may never come.
    versions = versions or {"ragllava": __version__}
    in_transaction(here.engine, workers.report_ready, name, versions)
    log.info("models loaded", extra={"action": "worker_ready", "worker": name, **versions})
    dispatch_now(here.engine, here.settings)


def run_message(shard_id: int, message_version: int, worker: str) -> None:
    """Do what a message hints at, then let the next shards be dispatched."""
    here = runtime()
    if message_version != MESSAGE_VERSION:
        log.warning(
            "message of another version dropped; the sweep will send it again",
            extra={"action": "message_dropped", "shard": shard_id, "version": message_version},
        )
        return
    try:
        run_shard(shard_id, worker, here.settings, here.engine, here.resources, STAGES)
    except DeviceLost:
        # A broken CUDA context never heals: only a new process helps. The shard is recorded as failed already.
        log.critical("device lost, this process ends", extra={"action": "device_lost", "shard": shard_id})
        os._exit(70)
    dispatch_now(here.engine, here.settings)
