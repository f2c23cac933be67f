"""`ragllava receiver`: the HTTP server that object stores post their events to."""

from __future__ import annotations

import logging

import click

log = logging.getLogger(__name__)


@click.command()
@click.option("--host", default="127.0.0.1", show_default=True, help="The address to listen on.")
@click.option("--port", default=8700, show_default=True, type=click.IntRange(1, 65_535), help="The port to listen on.")
@click.option("--socket", metavar="PATH", help="A Unix socket to listen on, in place of a port.")
def receiver(host: str, port: int, socket: str | None) -> None:
    """Take events of buckets at POST /events, until Ctrl-C; `ragllava up` starts one automatically.

    Accepts the messages of MinIO, of AWS S3 and of SeaweedFS's filer. They must carry RAGLLAVA_EVENTS_TOKEN as a
    Bearer token. GET /healthz shows whether the database can be used.
    """
    import uvicorn

    from ragllava.api.receiver import THREADS, make_app, needed_settings
    from ragllava.api.serving import server_config
    from ragllava.client import Client
    from ragllava.logs import configure_logging
    from ragllava.settings import load_settings

    configure_logging()
    settings = needed_settings(load_settings())
    with Client(settings, name="ragllava receiver", pool_size=THREADS) as client:
        app = make_app(client.engine, settings)
        log.info(f"takes events at {socket or f'{host}:{port}'}", extra={"action": "receiver_started"})
        uvicorn.Server(server_config(app, host, port, socket)).run()
