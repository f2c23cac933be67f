"""`ragllava serve`: the HTTP API and the console."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import click

from ragllava.errors import UsageError
from ragllava.local.ports import API_PORT

if TYPE_CHECKING:
    from ragllava.client import Client

log = logging.getLogger(__name__)


@click.command()
@click.option("--host", default="127.0.0.1", show_default=True, help="The address to listen on.")
@click.option(
    "--port", default=API_PORT, show_default=True, type=click.IntRange(1, 65_535), help="The port to listen on."
)
def serve(host: str, port: int) -> None:
    """Serve the HTTP API and the console, until Ctrl-C; `ragllava up` starts one automatically.

    OpenAI's SDK uses it with base_url=http://HOST:PORT/v1 and a key of `ragllava keys create`. It listens beyond this
    machine only if a key exists, or a provider of tokens is set. It speaks no TLS: put a proxy in front of it.

    Metrics for Prometheus are at http://127.0.0.1:8601/metrics (RAGLLAVA_METRICS_HOST, RAGLLAVA_METRICS_PORT).
    """
    from ragllava import tracing
    from ragllava.api.app import POOL
    from ragllava.api.metrics import require_allowed, serving_metrics
    from ragllava.api.serving import ApiServer
    from ragllava.client import Client
    from ragllava.console.site import make_site
    from ragllava.logs import configure_logging
    from ragllava.settings import load_settings

    settings = load_settings()
    require_allowed(settings)
    configure_logging()
    tracing.begin("ragllava serve")
    with Client(settings, name="ragllava serve", pool_size=POOL, for_tenants=True) as client:
        _require_keys_beyond_loopback(client, host)
        log.info(f"serves the HTTP API and the console at {host}:{port}", extra={"action": "api_started"})
        with serving_metrics(settings, client.metrics.read):
            ApiServer(make_site(client), host, port).run()
    tracing.end()


def _require_keys_beyond_loopback(client: Client, host: str) -> None:
    """Also connects, so that a database that cannot be used is reported at once."""
    from ragllava.settings import is_loopback

    if not client.access.has_callers() and not is_loopback(host):
        raise UsageError(
            f"no key exists, so the server does not listen on {host}: make one with `ragllava keys create NAME`"
        )
