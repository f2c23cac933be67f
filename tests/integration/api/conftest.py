"""A running HTTP API for the tests of this folder."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from ragllava.settings import Settings
from tests.conftest import own_settings
from tests.support.api_server import Front, open_front


@pytest.fixture(scope="module")
def open_server(services: Settings, template_database: str) -> Iterator[Front]:
    """A server with the archives `stamps` and `coins`, whose worker answers `yes`, for all tests of a module."""
    with own_settings(services, template_database) as own, open_front(own) as front:
        yield front


@pytest.fixture
def front(open_server: Front) -> Iterator[Front]:
    """The server, with nothing in its archives."""
    yield open_server
    open_server.office.clear()
