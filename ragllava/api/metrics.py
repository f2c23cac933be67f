"""`/metrics` for Prometheus, on a port of its own: it needs no key, so it listens on this machine only.

One exporter reads the database for the whole system. What only a worker process knows, it serves itself
(workers/figures.py).
"""

from __future__ import annotations

import logging
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager

import uvicorn
from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import Metric as Family
from prometheus_client.registry import Collector
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from ragllava.api.serving import server_config
from ragllava.client import Reading
from ragllava.errors import UsageError
from ragllava.settings import Settings, how_to_serve_metrics

log = logging.getLogger(__name__)

KEPT_S = 3.0  # scrapes within this time share one reading of the database
_STOP_S = 5.0

Read = Callable[[], Sequence[Reading]]


class Exporter(Collector):
    """The readings as families of Prometheus; asked for again and again, they are read once in KEPT_S seconds."""

    def __init__(self, read: Read, kept_s: float = KEPT_S) -> None:
        """`read` may take a second; it never runs twice at the same time."""
        self._read, self._kept_s = read, kept_s
        self._lock = threading.Lock()
        self._readings: Sequence[Reading] = ()
        self._read_at = float("-inf")

    def collect(self) -> Iterable[Family]:
        """All families."""
        with self._lock:
            if time.monotonic() - self._read_at >= self._kept_s:
                self._readings = self._read()
                self._read_at = time.monotonic()
            readings = self._readings
        return [_family(reading) for reading in readings]


def _family(reading: Reading) -> Family:
    metric = reading.metric
    if metric.type == "histogram":
        durations = HistogramMetricFamily(metric.name, metric.meaning, labels=metric.labels)
        for histogram in reading.histograms:
            durations.add_metric(histogram.labels, list(histogram.buckets), histogram.sum_s)
        return durations
    form = CounterMetricFamily if metric.type == "counter" else GaugeMetricFamily
    numbers = form(metric.name, metric.meaning, labels=metric.labels)
    for sample in reading.samples:
        numbers.add_metric(sample.labels, sample.number)
    return numbers


def make_metrics_app(read: Read, kept_s: float = KEPT_S) -> Starlette:
    """Serves GET /metrics in the text format, or in OpenMetrics for who accepts it."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(Exporter(read, kept_s))

    def metrics(request: Request) -> Response:
        encode, content_type = choose_encoder(request.headers.get("accept", ""))
        return Response(encode(registry), headers={"Content-Type": content_type})

    def root(_request: Request) -> Response:
        return PlainTextResponse("the metrics are at /metrics\n")

    return Starlette(routes=[Route("/metrics", metrics), Route("/", root)])


@contextmanager
def serving_metrics(settings: Settings, read: Read, kept_s: float = KEPT_S) -> Iterator[str | None]:
    """Serve the metrics in a thread during the block; the address, or None if the settings or another server on the
    port prevent it. Raises UsageError for an address beyond this machine that the settings do not allow."""
    if not settings.metrics_port:
        yield None
        return
    host, port = settings.metrics_host, settings.metrics_port
    require_allowed(settings)
    try:
        listening = _listen(host, port)
    except OSError as error:
        # The API is more important. A second server of the same machine would show the same figures.
        log.warning(f"no metrics are served at {host}:{port}: {error.strerror}", extra={"action": "no_metrics"})
        yield None
        return
    server = uvicorn.Server(server_config(make_metrics_app(read, kept_s), host, port))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, name="metrics", daemon=True)
    thread.start()
    log.info(f"serves metrics at http://{host}:{port}/metrics", extra={"action": "metrics_started"})
    try:
        yield f"http://{host}:{port}/metrics"
    finally:
        server.should_exit = True
        thread.join(_STOP_S)
        listening.close()


def require_allowed(settings: Settings) -> None:
    """Raises UsageError if the metrics would be served beyond this machine and no setting allows it."""
    remedy = how_to_serve_metrics(settings, "metrics_host")
    if remedy is not None:
        raise UsageError(f"the metrics need no key, so they are not served at {settings.metrics_host}: {remedy}")


def _listen(host: str, port: int) -> socket.socket:
    """Raises OSError."""
    family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    listening = socket.socket(family, kind, protocol)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
        listening.listen()  # who asks before the server has started waits for it
    except OSError:
        listening.close()
        raise
    return listening
