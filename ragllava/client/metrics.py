"""The metrics of the system, for whoever shows them."""

from __future__ import annotations

import shutil
import time
from collections.abc import Sequence
from functools import partial

from ragllava.client.connections import Namespace
from ragllava.errors import RagllavaError
from ragllava.jobs import figures
from ragllava.jobs.figures import METRICS, Metric, Reading, Sample
from ragllava.stores.access.tenancy import Scope, acting
from ragllava.stores.database import read_quickly

_STATEMENT_S = 2.0
_SEES_ALL = Scope(None, "ragllava metrics")

_UP = Metric(
    name="ragllava_up",
    type="gauge",
    meaning="1 if the database answered, else 0; then the metrics from there are absent.",
    statement="",
)
_SCRAPE = Metric(
    name="ragllava_scrape_seconds",
    type="gauge",
    meaning="How long the database took for these metrics.",
    statement="",
)
_DISK_FREE = Metric(
    name="ragllava_disk_free_bytes",
    type="gauge",
    meaning="Free room on the disk of `RAGLLAVA_HOME` of the machine that serves the metrics.",
    statement="",
)
_DISK_SIZE = Metric(name="ragllava_disk_size_bytes", type="gauge", meaning="Size of that disk.", statement="")
ALL_METRICS: tuple[Metric, ...] = (_UP, _SCRAPE, *METRICS, _DISK_FREE, _DISK_SIZE)


class Metrics(Namespace):
    """What Prometheus asks for."""

    def read(self) -> list[Reading]:
        """All metrics as they are now. Raises nothing when the database is away: `ragllava_up` says it."""
        began = time.monotonic()
        try:
            rows: Sequence[Reading] = self._of_database()
            up = 1.0
        except RagllavaError:
            rows, up = (), 0.0
        taken_s = time.monotonic() - began
        usage = shutil.disk_usage(self._connections.settings.existing_home)
        return [
            _single(_UP, up),
            _single(_SCRAPE, taken_s),
            *rows,
            _single(_DISK_FREE, usage.free),
            _single(_DISK_SIZE, usage.total),
        ]

    def _of_database(self) -> list[Reading]:
        """Raises RagllavaError."""
        connections = self._connections
        with acting(_SEES_ALL):
            read = partial(figures.read, settings=connections.settings)
            return read_quickly(connections.engine, _STATEMENT_S, read)


def _single(metric: Metric, number: float) -> Reading:
    return Reading(metric, [Sample((), number)])
