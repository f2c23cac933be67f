"""`ragllava keys`: made, listed, revoked."""

from __future__ import annotations

import json

import pytest
from sqlalchemy import Engine, func, select

from ragllava.client import AccessRole, Client
from ragllava.errors import NotAuthenticated
from ragllava.settings import Settings
from ragllava.stores.archives import archive
from ragllava.stores.schema import api_keys
from tests.support.run_command import Run


@pytest.fixture
def client(settings: Settings) -> Client:
    return Client(settings)


def test_a_key_is_shown_once_and_stored_as_its_hash(run: Run, engine: Engine, client: Client) -> None:
    with engine.begin() as connection:
        archive_id = archive.ensure_archive(connection, "stamps").archive_id
    key = run("keys", "create", "nightly", "--role", "write", "--archive", "stamps", "--days", "2")[1].strip()
    with client, engine.connect() as connection:
        principal = client.access.authenticate(key)
        stored = connection.execute(select(api_keys)).one()
    assert (principal.role, principal.archives) == (AccessRole.WRITE, frozenset({archive_id}))
    assert key not in str(stored) and key.startswith(stored.prefix)
    [listed] = json.loads(run("keys", "list", "--json")[1])
    assert (listed["name"], listed["role"], listed["archives"]) == ("nightly", "write", ["stamps"])
    assert listed["prefix"] == stored.prefix and listed["expires_at"] and "sha256" not in listed
    assert stored.prefix in run("keys", "list")[1]


def test_revoked_and_expired_keys_are_refused(run: Run, engine: Engine, client: Client) -> None:
    keys = [run("keys", "create", "x")[1].strip() for _ in range(3)]
    run("keys", "revoke", keys[0][:12])
    with engine.begin() as connection:
        expired = api_keys.update().where(api_keys.c.prefix == keys[1][:12]).values(expires_at=func.now())
        connection.execute(expired)
    with client:
        for key in keys[:2]:
            with pytest.raises(NotAuthenticated):
                client.access.authenticate(key)
        assert client.access.authenticate(keys[2]).archives is None
    code, _, message = run("keys", "revoke", "rgl_none")
    assert code == 1 and "ragllava keys list" in message


def test_a_key_for_an_unknown_archive_is_not_made(run: Run, client: Client) -> None:
    code, _, message = run("keys", "create", "x", "--archive", "nothing")
    assert code == 1 and "no archive" in message
    with client:
        assert client.access.list_keys() == [] and not client.access.has_callers()
