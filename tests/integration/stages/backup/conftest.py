"""A shop that backups are made of, and an empty system that they are restored into."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from sqlalchemy import text

from ragllava.settings import Settings
from ragllava.stages.results.finalize import publish_missing_results
from ragllava.stores.database import in_transaction
from tests.conftest import own_settings
from tests.integration.conftest import Postcards
from tests.support.postcard_gallery import cards
from tests.support.workshop import Workshop, open_workshop


@pytest.fixture(scope="session")
def shop(services: Settings, template_database: str, models: Any, postcards: Postcards) -> Iterator[Workshop]:
    """Twelve pictures, an answered job with result files, and one that a worker has begun; tests only read it."""
    with own_settings(services, template_database) as own, open_workshop(own, models) as workshop:
        shop = workshop.with_settings(files_per_shard=6, questions_per_shard=2)
        shop.ingest_files(cards(postcards, 0, 12))
        texts = [question.text for question in postcards.archive.questions[:4]]
        shop.ask(texts)
        publish_missing_results(shop.engine, shop.resources.objects)
        shop.submit(texts)
        assert shop.dispatch() and shop.claim_next(lease_s=600.0)
        in_transaction(shop.engine, lambda connection: connection.execute(_WEBHOOK))
        yield shop


_WEBHOOK = text(
    "INSERT INTO webhooks (owner, url, kinds, secret) VALUES ('ada', 'https://a.example', '{answer}', 'whsec_x')"
)


@pytest.fixture
def empty(services: Settings, template_database: str) -> Iterator[Settings]:
    with own_settings(services, template_database) as own:
        yield own.model_copy(update={"tick_s": 600.0})  # a worker is missed after three ticks
