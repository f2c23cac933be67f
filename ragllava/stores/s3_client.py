"""The minio SDK, made from the settings: over TCP or a Unix socket, and for addresses that other programs use."""

from __future__ import annotations

import os
from typing import Any
from urllib.parse import urlsplit

import certifi
from minio import Minio
from urllib3 import PoolManager, Retry, Timeout

from ragllava.errors import SettingsError
from ragllava.settings import Settings
from ragllava.stores.unix_http import UnixPoolManager


def unix_socket(endpoint: str) -> str | None:
    """The path in an endpoint of the form `unix:/path`; None for host:port."""
    return endpoint.removeprefix("unix:") if endpoint.startswith("unix:") else None


def make_client(settings: Settings) -> Minio:
    """The SDK for the object store. Raises SettingsError when the endpoint or a key is not set."""
    if settings.s3_endpoint is None:
        raise _no_store()
    socket = unix_socket(settings.s3_endpoint)
    if socket is None:
        certificates = os.environ.get("SSL_CERT_FILE") or certifi.where()
        pool = PoolManager(**_pool_options(), cert_reqs="CERT_REQUIRED", ca_certs=certificates)
        return _client(settings, settings.s3_endpoint, settings.s3_secure, pool)
    return _client(settings, "localhost", False, UnixPoolManager(socket, **_pool_options()))


def make_signing_client(settings: Settings) -> Minio:
    """The SDK with the address that other programs use; it sends nothing."""
    if settings.s3_public_url is not None:
        url = urlsplit(settings.s3_public_url)
        return _client(settings, url.netloc, url.scheme == "https", PoolManager())
    if unix_socket(settings.s3_endpoint or "") is not None:
        raise SettingsError(
            "other programs do not reach the object store, which has a Unix socket only: set RAGLLAVA_S3_PUBLIC_URL to "
            "an address at which they do"
        )
    return make_client(settings)


def _client(settings: Settings, host: str, secure: bool, pool: PoolManager) -> Minio:
    if settings.s3_access_key is None or settings.s3_secret_key is None:
        raise _no_store()
    try:
        return Minio(
            host,
            access_key=settings.s3_access_key,
            secret_key=settings.s3_secret_key.get_secret_value(),
            secure=secure,
            region=settings.s3_region,
            http_client=pool,
        )
    except ValueError as error:
        raise SettingsError(
            f"RAGLLAVA_S3_ENDPOINT={settings.s3_endpoint}: {error}; "
            "give host:port, and RAGLLAVA_S3_SECURE=true for https"
        ) from None


def _no_store() -> SettingsError:
    return SettingsError(
        "no object store: start the embedded services with `ragllava up`, or set RAGLLAVA_S3_ENDPOINT, "
        "RAGLLAVA_S3_ACCESS_KEY and RAGLLAVA_S3_SECRET_KEY"
    )


def _pool_options() -> dict[str, Any]:
    # The SDK's own pool waits five minutes, six times: half an hour for a store that does not answer.
    return {
        "timeout": Timeout(connect=3, read=30),
        "maxsize": 16,
        "retries": Retry(total=3, backoff_factor=0.2, status_forcelist=(500, 502, 503, 504)),
    }
