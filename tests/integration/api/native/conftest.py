"""A running HTTP API beside a worker with models, and an archive of postcards."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

from ragllava.settings import Settings
from tests.conftest import own_settings
from tests.integration.conftest import Postcards
from tests.support.api_shop import Shop, open_shop
from tests.support.postcard_gallery import CARDS, cards
from tests.support.workshop import open_workshop

if TYPE_CHECKING:
    from ragllava.models.bundle import ModelBundle


@pytest.fixture(scope="module")
def shop(services: Settings, template_database: str, models: ModelBundle, postcards: Postcards) -> Iterator[Shop]:
    """The archive `postcards` has 20 of them, `coins` is empty; tests of a module share both."""
    with own_settings(services, template_database) as own:
        known = own.model_copy(
            update={"api_buckets": "s3://shared/", "leave_one_out": False, "api_answer_timeout_s": 30.0}
        )
        with open_workshop(known, models) as workshop:
            workshop.ingest_files(cards(postcards, 0, CARDS), "postcards")
            with open_shop(workshop) as shop:
                shop.client.archives.create("coins")
                yield shop
