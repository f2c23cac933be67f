"""What only a worker process knows of itself, for Prometheus: memory, processor time, how busy it is.

`ragllava serve` shows the whole system from the database. The process that runs the shards serves these figures at
127.0.0.1, and only in a worker of one slot: of several children each would count for itself under one address.
"""

from __future__ import annotations

import logging
from contextlib import AbstractContextManager

from prometheus_client import CollectorRegistry, Gauge, ProcessCollector, Summary, start_http_server

log = logging.getLogger(__name__)

HOST = "127.0.0.1"

_registry = CollectorRegistry()
ProcessCollector(registry=_registry)
_worker = Gauge("ragllava_worker_info", "1 for the worker of this process.", ["worker"], registry=_registry)
_running = Gauge("ragllava_worker_shards_running", "Shards that this process works on now.", registry=_registry)
_worked = Summary(
    "ragllava_worker_shard_seconds", "Shards that this process has worked on, and how long.", registry=_registry
)


def serve(name: str, slots: int, port: int) -> bool:
    """Serve the figures of this process as those of the worker `name`, until it ends; returns whether it does.

    A worker works without them: nothing is served for the port 0, for several slots, and if the port is taken.
    """
    if not port:
        return False
    if slots != 1:
        log.warning(f"no figures at port {port}: {slots} children would share it", extra={"action": "no_figures"})
        return False
    try:
        start_http_server(port, HOST, _registry)
    except OSError as error:
        log.warning(f"no figures at {HOST}:{port}: {error.strerror}", extra={"action": "no_figures", "worker": name})
        return False
    _worker.labels(name).set(1)
    log.info(f"serves figures at http://{HOST}:{port}/metrics", extra={"action": "figures_started", "worker": name})
    return True


def at_work() -> AbstractContextManager[None]:
    """This process looks at a shard during the block."""
    return _running.track_inprogress()


def note_shard(worked_s: float) -> None:
    """This process has had a shard for so long."""
    _worked.observe(worked_s)
