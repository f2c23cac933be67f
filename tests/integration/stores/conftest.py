"""A connection for tests of the stores."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from sqlalchemy import Connection, Engine


@pytest.fixture
def connection(engine: Engine) -> Iterator[Connection]:
    """A connection in a transaction, which is committed after the test."""
    with engine.begin() as connection:
        yield connection
