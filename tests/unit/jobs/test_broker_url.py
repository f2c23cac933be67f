"""The address of the queue in the forms of redis-py and of Celery."""

from __future__ import annotations

import pytest
from kombu import Connection
from pydantic import SecretStr

from ragllava.settings import Settings
from workers.app import broker_url


@pytest.mark.parametrize("url", ["redis://:secret@host:6379/3", "rediss://user:secret@host/3?ssl_cert_reqs=required"])
def test_addresses_over_tcp_stay_as_they_are(url: str) -> None:
    assert broker_url(Settings(redis_url=SecretStr(url))) == url


def test_a_socket_has_the_form_of_kombu() -> None:
    url = broker_url(Settings(redis_url=SecretStr("unix://:secret@/run/a%20b/redis.sock?db=3")))
    assert url == "redis+socket://:secret@/run/a%20b/redis.sock?virtual_host=3"


def test_a_password_in_the_query_is_used_and_hidden_from_the_log() -> None:
    url = broker_url(Settings(redis_url=SecretStr("unix:///run/redis.sock?password=se/cret&db=3")))
    with Connection(url) as connection:
        assert connection.as_uri() == "redis+socket://:**@/run/redis.sock"
    assert url == "redis+socket://:se%2Fcret@/run/redis.sock?virtual_host=3"
