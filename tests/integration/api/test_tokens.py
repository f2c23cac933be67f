"""Bearer tokens of an OpenID Connect provider, with real keys and a provider that is a small HTTP server."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from sqlalchemy import select

from ragllava.client.access import attempts
from ragllava.client.access.provider import SignInProvider
from ragllava.client.access.provider_configuration import ProviderConfiguration
from ragllava.client.access.provider_keys import ProviderKeys
from ragllava.client.access.tokens import TokenReader, parse_groups
from ragllava.errors import NotAuthenticated, ServiceUnavailable, SettingsError
from ragllava.settings import Settings
from ragllava.stores.access.keys import AccessRole
from ragllava.stores.schema import sign_ins
from tests.support.api_server import Front, open_front
from tests.support.console_client import reading
from tests.support.holding import holding
from tests.support.oidc_provider import AUDIENCE, CLIENT, Provider, open_provider

STARTING = 503, {"error": "starting"}


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


@pytest.fixture
def passed(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[float]]:
    """Seconds that have passed for who asks the provider; a test adds some."""
    seconds = [0.0]
    monkeypatch.setattr(attempts, "monotonic", lambda: sum(seconds))
    yield seconds


def test_what_is_not_the_configuration_of_the_provider_is_not_kept(
    services: Settings, provider: Provider, passed: list[float]
) -> None:
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
            passed.append(10)
    finally:
        provider.instead = None
    assert reader.read(provider.token(groups="a")).subject == "ann"


@pytest.fixture
def changing(services: Settings) -> Iterator[tuple[Provider, TokenReader]]:
    """A provider of its own, and who reads its tokens."""
    with open_provider() as provider:
        yield provider, TokenReader(settings_for(services, provider))


def settings_for(services: Settings, provider: Provider) -> Settings:
    chosen = {"oidc_issuer": provider.issuer, "oidc_audience": AUDIENCE, "oidc_groups": "staff=read"}
    return services.model_copy(update=chosen | {"oidc_client_id": CLIENT})


def refuse(reader: TokenReader, token: str, times: int = 1) -> None:
    """Read a token of a provider that is silent."""
    for _ in range(times):
        with pytest.raises(ServiceUnavailable, match="does not answer"):
            reader.read(token)


def test_a_withdrawn_key_is_refused_when_its_time_is_over(
    changing: tuple[Provider, TokenReader], passed: list[float]
) -> None:
    provider, reader = changing
    token = provider.token()
    assert not reader.has_key_of(token) and reader.read(token).subject == "ann" and reader.has_key_of(token)
    provider.change_key()
    passed.append(3_599)
    assert reader.read(token).subject == "ann" and provider.asked_for_keys == 1
    passed.append(1)
    assert not reader.has_key_of(token), "the provider has to be asked again"
    for _ in range(2):
        with pytest.raises(NotAuthenticated, match="has withdrawn it"):
            reader.read(token)
    assert reader.read(provider.token()).subject == "ann" and provider.asked_for_keys == 2


def test_a_new_key_is_fetched_and_made_up_ones_do_not_flood_the_provider(
    changing: tuple[Provider, TokenReader], passed: list[float]
) -> None:
    provider, reader = changing
    reader.read(provider.token())
    provider.change_key()
    new = provider.token()
    passed.append(29)
    for token in (new, *(provider.token(key_id=f"made up {number}") for number in range(20))):
        with pytest.raises(NotAuthenticated):
            reader.read(token)
    assert provider.asked_for_keys == 1
    passed.append(1)
    assert reader.read(new).subject == "ann" and provider.asked_for_keys == 2


def test_keys_of_a_provider_that_does_not_answer_are_trusted_for_as_long_once_more(
    changing: tuple[Provider, TokenReader], passed: list[float]
) -> None:
    provider, reader = changing
    token = provider.token()
    reader.read(token)
    provider.instead_of_keys = STARTING
    passed.append(3_600)
    for _ in range(3):
        assert reader.read(token).subject == "ann"
    assert provider.asked_for_keys == 2, "once in a second"
    for number in range(20):
        with pytest.raises(ServiceUnavailable):
            reader.read(provider.token(key_id=f"made up {number}"))
    assert provider.asked_for_keys == 2, "made-up keys do not flood a provider that fails"
    passed.append(3_599)
    assert reader.read(token).subject == "ann"
    passed.append(1)
    refuse(reader, token)
    provider.instead_of_keys = None
    passed.append(2)
    assert reader.read(token).subject == "ann"


@pytest.mark.parametrize(
    "answer",
    [STARTING, (200, {"error": "x"}), (200, {"keys": []}), (200, {"keys": [{}]}), (200, []), (200, b"<p>")],
    ids=str,
)
def test_an_answer_without_keys_refuses_only_unknown_ones_and_not_for_long(
    changing: tuple[Provider, TokenReader], passed: list[float], answer: tuple[int, Any]
) -> None:
    provider, reader = changing
    old = provider.token()
    reader.read(old)
    provider.change_key()
    new, provider.instead_of_keys = provider.token(), answer
    passed.append(30)
    for wait_s in (1, 2, 4, 8, 16, 30, 30):
        asked = provider.asked_for_keys
        for within_s in (0, wait_s - 0.5):
            passed.append(within_s)
            refuse(reader, new)
            assert reader.has_key_of(old) and reader.read(old).subject == "ann"
        assert provider.asked_for_keys == asked + 1
        passed.append(0.5)
    provider.instead_of_keys = None
    assert reader.read(new).subject == "ann"


def test_who_has_a_trusted_key_does_not_wait_for_the_answer_to_another(
    changing: tuple[Provider, TokenReader], passed: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    provider, reader = changing
    token = provider.token()
    reader.read(token)
    passed.append(3_600)
    with holding(monkeypatch, ProviderKeys, "_fetched", lambda: len(reader.read(token).subject), asked=1, held=1) as [
        first
    ]:
        passed.append(31)
        assert reader.has_key_of(token) and reader.read(token).subject == "ann"
        monkeypatch.setattr(ProviderKeys, "asks", lambda *_: True)  # as it was a moment before the other one asked
        assert reader.read(token).subject == "ann"
        assert not first.done()
    assert first.result() == 3
    assert reader.read(token).subject == "ann"
    assert provider.asked_for_keys == 2, "what has just been asked is not asked again"


def test_of_those_who_wait_for_the_keys_one_asks(
    changing: tuple[Provider, TokenReader], monkeypatch: pytest.MonkeyPatch
) -> None:
    provider, reader = changing
    token = provider.token()

    def read() -> int:
        return len(reader.read(token).subject)

    with holding(monkeypatch, ProviderKeys, "asks", read, asked=8, held=8) as readers:
        pass
    assert {each.result() for each in readers} == {3} and provider.asked_for_keys == 1


@pytest.mark.parametrize("what", ["configuration", "keys"])
def test_a_provider_that_has_never_answered_is_asked_by_one_token_in_a_while(
    changing: tuple[Provider, TokenReader], passed: list[float], what: str
) -> None:
    provider, reader = changing
    token, silent = provider.token(), {"configuration": "instead", "keys": "instead_of_keys"}[what]
    setattr(provider, silent, STARTING)

    def asked() -> int:
        return {"configuration": provider.asked_for_configuration, "keys": provider.asked_for_keys}[what]

    for number, wait_s in enumerate((1, 2, 4, 8, 10, 10), 1):
        assert not reader.has_key_of(token)
        refuse(reader, token, times=3)
        passed.append(wait_s - 0.5)
        assert reader.has_key_of(token), "it is refused without asking"
        refuse(reader, token, times=3)
        assert asked() == number
        passed.append(0.5)
    setattr(provider, silent, None)
    assert reader.read(token).subject == "ann"


def test_nobody_waits_for_a_silent_provider_but_who_asks_it(
    services: Settings, changing: tuple[Provider, TokenReader], passed: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    provider, reader = changing
    token, sign_in = provider.token(), SignInProvider(settings_for(services, provider), reader)
    provider.instead = STARTING
    for _ in range(3):
        with pytest.raises(ServiceUnavailable, match="well-known"):
            sign_in.begin("http://inside")
    refuse(reader, token)
    assert provider.asked_for_configuration == 1
    passed.append(1)
    provider.instead = None

    def read() -> int:
        return len(reader.read(token).subject)

    with holding(monkeypatch, ProviderConfiguration, "_fetched", read, asked=1, held=1) as [first]:
        with pytest.raises(ServiceUnavailable, match="well-known"):
            sign_in.begin("http://inside")
        assert reader.has_key_of(token), "it is refused without waiting"
        refuse(reader, token)
        passed.append(60)
        assert not reader.has_key_of(token), "the failure is too old to say that the provider is silent"
        assert not first.done()
    assert first.result() == 3 and provider.asked_for_configuration == 2
    assert sign_in.begin("http://inside").address.startswith(f"{provider.issuer}/go?")


def test_an_attempt_that_breaks_off_is_no_answer(
    changing: tuple[Provider, TokenReader], passed: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    provider, reader = changing
    token = provider.token()
    reader.read(token)
    passed.append(3_600)
    with monkeypatch.context() as patched:
        patched.setattr(ProviderKeys, "_fetched", lambda _: [].pop())
        with pytest.raises(IndexError):
            reader.read(token)
    assert reader.has_key_of(token) and reader.read(token).subject == "ann", "the next attempt has a pause before it"
    provider.instead_of_keys = STARTING
    passed.append(3_600)
    refuse(reader, token)


def test_groups_that_cannot_be_read_are_an_error() -> None:
    assert parse_groups("a=read") == {"a": (AccessRole.READ, None)}
    assert parse_groups("a=ask:x+y") == {"a": (AccessRole.ASK, frozenset({"x", "y"}))}
    for wrong in ("a", "a=boss", "a=read:", "=read"):
        with pytest.raises(SettingsError, match="RAGLLAVA_OIDC_GROUPS"):
            parse_groups(wrong)
