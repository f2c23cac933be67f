"""Signing in at an OpenID Connect provider in the browser, with a real provider and a real browser."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import httpx
import pytest
from pydantic import SecretStr
from sqlalchemy import func, select

from ragllava.client.access.provider import SignInProvider
from ragllava.client.access.tokens import TokenReader
from ragllava.console.cookies import DEPARTURE, SIGN_IN
from ragllava.errors import SettingsError
from ragllava.settings import Settings
from ragllava.stores.schema import sign_ins
from tests.conftest import own_settings
from tests.support.api_server import Front, open_front
from tests.support.browser import visiting
from tests.support.oidc_provider import AUDIENCE, CLIENT, SECRET, Provider, open_provider

if TYPE_CHECKING:
    from playwright.sync_api import Browser


@pytest.fixture(scope="module")
def provider() -> Iterator[Provider]:
    with open_provider() as provider:
        yield provider


@pytest.fixture(scope="module")
def front(services: Settings, template_database: str, provider: Provider) -> Iterator[Front]:
    with own_settings(services, template_database) as given:
        of_provider = {
            "oidc_issuer": provider.issuer,
            "oidc_audience": AUDIENCE,
            "oidc_groups": "staff=read:stamps, chiefs=admin",
            "oidc_client_id": CLIENT,
            "oidc_client_secret": SecretStr(SECRET),
        }
        with open_front(given.model_copy(update=of_provider)) as front:
            yield front


@pytest.fixture(autouse=True)
def honest(provider: Provider) -> Iterator[None]:
    yield
    provider.changed, provider.groups_in_token = {}, True


def test_a_person_signs_in_at_the_provider(front: Front, browser: Browser) -> None:
    with visiting(browser, front.url) as visitor:
        visitor.expect_fault("request to another host: .*/go")
        page = visitor.go("/console/jobs?open=true")
        visitor.check_access()
        page.get_by_role("link", name="Sign in at 127.0.0.1").click()
        page.wait_for_url("**/console/jobs?open=true")
        assert page.get_by_text("oidc ann").is_visible() and page.get_by_text("role read").is_visible()
        assert [cookie["name"] for cookie in visitor.context.cookies()] == [SIGN_IN]
    with front.office.engine.connect() as connection:
        ends_at = connection.execute(select(sign_ins.c.ends_at)).scalar_one()
    assert 11.9 < (ends_at.timestamp() - time.time()) / 3600 <= 12, "longer than the token of the identity"


def went_to_provider(http: httpx.Client) -> str:
    """The path on which a browser comes back, with its query."""
    gone = http.get("/console/sign-in/provider")
    assert gone.status_code == 303 and {"HttpOnly", "SameSite=lax"} <= set(gone.headers["set-cookie"].split("; "))
    back = httpx.get(gone.headers["location"]).headers["location"]
    return back.removeprefix(str(http.base_url).rstrip("/"))


def test_groups_may_come_from_the_page_of_the_user(front: Front, provider: Provider) -> None:
    provider.groups_in_token = False
    with httpx.Client(base_url=front.url) as http:
        assert http.get(went_to_provider(http)).status_code == 303
        assert "role admin" in http.get("/console").text


@pytest.mark.parametrize(
    "claims",
    [{"nonce": "another"}, {"nonce": None}, {"aud": AUDIENCE}, {"azp": "another"}, {"groups": []}, {"exp": 1}],
    ids=str,
)
def test_an_identity_that_is_not_for_this_sign_in_is_refused(
    front: Front, provider: Provider, claims: dict[str, object]
) -> None:
    provider.changed = claims
    with httpx.Client(base_url=front.url) as http:
        assert http.get(went_to_provider(http)).status_code == 401
        assert SIGN_IN not in http.cookies


def test_what_a_browser_did_not_begin_it_cannot_end(front: Front, provider: Provider) -> None:
    with httpx.Client(base_url=front.url) as http, httpx.Client(base_url=front.url) as other:
        path = went_to_provider(other)
        assert http.get(path).status_code == 401, "it has no cookie"
        went_to_provider(http)
        assert http.get(path).status_code == 401, "its cookie belongs to another state"
        assert other.get(path.replace("iss=", "iss=x")).status_code == 401, "another provider has answered"
        assert other.get(path).status_code == 303
        assert other.get(path).status_code == 401, "the code is used up, and the cookie is gone"
        refused = http.get("/console/sign-in/provider/return?error=access_denied&error_description=<b>no")
        assert refused.status_code == 401 and "&lt;b&gt;no" in refused.text
        stolen = went_to_provider(http)
        verifier = http.cookies[DEPARTURE]
        went_to_provider(http)
        assert verifier != http.cookies[DEPARTURE] and http.get(stolen).status_code == 401
    with front.office.engine.connect() as connection:
        assert connection.scalar(select(func.count()).select_from(sign_ins).where(sign_ins.c.role == "write")) == 0


@pytest.mark.parametrize("to", ["//evil.example", "/console\\evil"])
def test_nobody_is_led_elsewhere_by_the_provider(front: Front, to: str) -> None:
    with httpx.Client(base_url=front.url) as http:
        assert http.get("/console/sign-in/provider", params={"next": to}).status_code == 400


def test_the_provider_sends_browsers_back_to_the_address_of_the_settings(
    services: Settings, provider: Provider
) -> None:
    chosen = {"oidc_issuer": provider.issuer, "oidc_audience": AUDIENCE, "oidc_client_id": CLIENT}
    settings = services.model_copy(update=chosen | {"console_url": "https://pictures.example.org/"})
    departure = SignInProvider(settings, TokenReader(settings)).begin("http://inside:8600/")
    assert departure.return_url == "https://pictures.example.org/console/sign-in/provider/return"
    assert urlsplit(departure.address).path == "/go"
    without = settings.model_copy(update={"oidc_issuer": None})
    with pytest.raises(SettingsError, match="needs RAGLLAVA_OIDC_ISSUER"):
        SignInProvider(without, TokenReader(without))
