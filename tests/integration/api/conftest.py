"""A running HTTP API for the tests of this folder."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from ragllava.settings import Settings
from tests.support.api_server import Front, open_front


@pytest.fixture
def front(settings: Settings) -> Iterator[Front]:
    """A server with the archives `stamps` and `coins`, whose worker answers `yes`."""
    with open_front(settings) as front:
        yield front
