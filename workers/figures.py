"""What only a worker process knows of itself, for Prometheus: memory, processor time, how busy it is.

`ragllava serve` shows the whole system from the database. The process that runs the shards serves these figures, and
only in a worker of one slot: of several children each would count for itself under one address.
"""

from __future__ import annotations

import logging
from contextlib import AbstractContextManager

from prometheus_client import CollectorRegistry, Gauge, ProcessCollector, Summary, start_http_server

from ragllava.settings import Settings, how_to_serve_metrics

log = logging.getLogger(__name__)

_registry = CollectorRegistry()
ProcessCollector(registry=_registry)
_worker = Gauge("ragllava_worker_info", "1 for the worker of this process.", ["worker"], registry=_registry)
_running = Gauge("ragllava_worker_shards_running", "Shards that this process works on now.", registry=_registry)
_worked = Summary(
    "ragllava_worker_shard_seconds", "Shards that this process has worked on, and how long.", registry=_registry
)


def serve(name: str, slots: int, settings: Settings) -> bool:
    """Serve the figures of this process as those of the worker `name`, until it ends; returns whether it does.

    A worker works without them: nothing is served for the port 0, for several slots, at an address beyond this machine
    that the settings do not allow, and if the port is taken.
    """
    host, port = settings.worker_metrics_host, settings.worker_metrics_port
    if not port:
        return False
    if (obstacle := _obstacle(slots, settings)) is None:
        try:
            start_http_server(port, host, _registry)
        except OSError as error:
            obstacle = str(error.strerror)
    if obstacle is not None:
        log.warning(f"no figures at {host}:{port}: {obstacle}", extra={"action": "no_figures", "worker": name})
        return False
    _worker.labels(name).set(1)
    log.info(f"serves figures at http://{host}:{port}/metrics", extra={"action": "figures_started", "worker": name})
    return True


def _obstacle(slots: int, settings: Settings) -> str | None:
    """Why the figures may not be served; None if they may."""
    if slots != 1:
        return f"{slots} children would share it"
    remedy = how_to_serve_metrics(settings, "worker_metrics_host")
    return None if remedy is None else f"they need no key; {remedy}"


def at_work() -> AbstractContextManager[None]:
    """This process looks at a shard during the block."""
    return _running.track_inprogress()


def note_shard(worked_s: float) -> None:
    """This process has had a shard for so long."""
    _worked.observe(worked_s)
