"""The minio SDK, made from the settings: over TCP or a Unix socket."""

from __future__ import annotations

import os
from typing import Any

import certifi
from minio import Minio
from urllib3 import PoolManager, Retry, Timeout

from ragllava.errors import SettingsError
from ragllava.settings import Settings
from ragllava.stores.unix_http import UnixPoolManager


def make_client(settings: Settings) -> Minio:
    """The SDK for the object store; its signed addresses name the endpoint, also when it is reached at a socket.

    Raises SettingsError when the endpoint or a key is not set.
    """
    if settings.s3_endpoint is None or settings.s3_access_key is None or settings.s3_secret_key is None:
        raise SettingsError(
            "no object store: start the embedded services with `ragllava up`, or set RAGLLAVA_S3_ENDPOINT, "
            "RAGLLAVA_S3_ACCESS_KEY and RAGLLAVA_S3_SECRET_KEY"
        )
    try:
        return Minio(
            settings.s3_endpoint,
            access_key=settings.s3_access_key,
            secret_key=settings.s3_secret_key.get_secret_value(),
            secure=settings.s3_secure,
            region=settings.s3_region,
            http_client=_connection_pool(settings.s3_socket),
        )
    except ValueError as error:
        raise SettingsError(
            f"RAGLLAVA_S3_ENDPOINT={settings.s3_endpoint}: {error}; "
            "give host:port, and RAGLLAVA_S3_SECURE=true for https"
        ) from None


def _connection_pool(socket: str | None) -> PoolManager:
    # The SDK's own pool waits five minutes, six times: half an hour for a store that does not answer.
    options: dict[str, Any] = {
        "timeout": Timeout(connect=3, read=30),
        "maxsize": 16,
        "retries": Retry(total=3, backoff_factor=0.2, status_forcelist=(500, 502, 503, 504)),
    }
    if socket is not None:
        return UnixPoolManager(socket, **options)
    certificates = os.environ.get("SSL_CERT_FILE") or certifi.where()
    return PoolManager(**options, cert_reqs="CERT_REQUIRED", ca_certs=certificates)
