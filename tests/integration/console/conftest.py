"""One server for the tests of each module in this folder."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from ragllava.settings import Settings
from tests.conftest import own_settings
from tests.support.api_server import Front, open_front
from tests.support.archive_places import HOOK


@pytest.fixture(scope="module")
def front(services: Settings, template_database: str) -> Iterator[Front]:
    """A server with the archives `stamps` and `coins`, whose worker answers `yes`, for all tests of a module."""
    with own_settings(services, template_database) as given:
        own = given.model_copy(update={"webhook_hosts": HOOK})
        with open_front(own) as front:
            yield front
