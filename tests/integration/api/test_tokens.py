"""Bearer tokens of an OpenID Connect provider, with real keys and a provider that is a small HTTP server."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from sqlalchemy import select

from ragllava.client.access.tokens import TokenReader, parse_groups
from ragllava.errors import ServiceUnavailable, SettingsError
from ragllava.settings import Settings
from ragllava.stores.access.keys import AccessRole
from ragllava.stores.schema import sign_ins
from tests.support.api_server import Front, open_front
from tests.support.console_client import reading
from tests.support.oidc_provider import AUDIENCE, Provider, open_provider


@pytest.fixture(scope="module")
def provider() -> Iterator[Provider]:
    with open_provider() as provider:
        yield provider


@pytest.fixture
def front(settings: Settings, provider: Provider) -> Iterator[Front]:
    of_groups = "staff=read:stamps, clerks=ask:stamps+coins, chiefs=admin"
    own = settings.model_copy(
        update={"oidc_issuer": provider.issuer, "oidc_audience": AUDIENCE, "oidc_groups": of_groups}
    )
    with open_front(own) as front:
        yield front


def models(front: Front, token: str) -> tuple[int, Any]:
    status, body, _ = front.call("GET", "/v1/models", token)
    return status, [model["id"] for model in body["data"]] if status == 200 else body["error"]["message"]


def test_groups_give_roles_and_archives(front: Front, provider: Provider) -> None:
    assert models(front, provider.token()) == (200, ["ragllava", "ragllava/stamps"])
    both = ["ragllava", "ragllava/coins", "ragllava/stamps"]
    assert models(front, provider.token(groups=["staff", "clerks", "other"])) == (200, both)
    assert models(front, provider.token(groups="chiefs")) == (200, both)
    asked = {"model": "ragllava/stamps", "messages": [{"role": "user", "content": "What?"}]}
    status = [
        front.call("POST", "/v1/chat/completions", provider.token(groups=[group]), json=asked)[0]
        for group in ("staff", "clerks")
    ]
    assert status == [403, 200]
    assert models(front, front.key("read"))[0] == 200  # keys stay valid


def test_a_token_signs_in_to_the_console_until_it_ends(front: Front, provider: Provider) -> None:
    with reading(front.url, provider.token()) as reader:
        page = reader.get("/console/jobs").text
        assert "oidc ann" in page and "role read" in page and "coins" not in page
        with front.office.engine.connect() as connection:
            ends_at, key_id = connection.execute(select(sign_ins.c.ends_at, sign_ins.c.key_id)).one()
    assert key_id is None
    assert 0 < ends_at.timestamp() - time.time() <= 600


def test_tokens_that_are_not_for_us_are_refused(front: Front, provider: Provider) -> None:
    other = rsa.generate_private_key(65537, 2048)
    now = int(time.time())
    for token in (
        provider.token(other),
        provider.token(aud="another"),
        provider.token(iss="https://another"),
        provider.token(exp=now - 120),
        provider.token(exp=None),
        provider.token(sub=None),
        provider.token(groups=["unknown"]),
        provider.token(groups=None),
        jwt.encode({"iss": provider.issuer, "aud": AUDIENCE, "sub": "ann"}, None, "none"),  # type: ignore[arg-type] # without a key
        "a.b.c",
    ):
        status, message = models(front, token)
        assert status == 401, message


def test_what_is_not_the_configuration_of_the_provider_is_not_kept(services: Settings, provider: Provider) -> None:
    own = services.model_copy(
        update={"oidc_issuer": provider.issuer, "oidc_audience": AUDIENCE, "oidc_groups": "a=read"}
    )
    reader = TokenReader(own)
    other = provider.configuration() | {"issuer": "https://another"}
    try:
        for instead in ((503, provider.configuration()), (200, {"error": "starting"}), (200, other)):
            provider.instead = instead
            with pytest.raises(ServiceUnavailable, match="well-known"):
                reader.read(provider.token(groups="a"))
    finally:
        provider.instead = None
    assert reader.read(provider.token(groups="a")).subject == "ann"


def test_groups_that_cannot_be_read_are_an_error() -> None:
    assert parse_groups("a=read") == {"a": (AccessRole.READ, None)}
    assert parse_groups("a=ask:x+y") == {"a": (AccessRole.ASK, frozenset({"x", "y"}))}
    for wrong in ("a", "a=boss", "a=read:", "=read"):
        with pytest.raises(SettingsError, match="RAGLLAVA_OIDC_GROUPS"):
            parse_groups(wrong)
