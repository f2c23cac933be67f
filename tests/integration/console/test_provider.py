"""Signing in at an OpenID Connect provider in the browser, with a real provider and a real browser."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Iterator
from datetime import timedelta
from typing import TYPE_CHECKING
from urllib.parse import parse_qs, quote, unquote, urlsplit

import httpx
import pytest
import urllib3
from pydantic import SecretStr
from sqlalchemy import func, select, update

from ragllava.api.server import STRANGERS, THREADS
from ragllava.client import Client
from ragllava.client.access import attempts
from ragllava.client.access.provider import SignInProvider
from ragllava.client.access.tokens import TokenReader
from ragllava.console.cookies import DEPARTURE, SIGN_IN
from ragllava.errors import SettingsError
from ragllava.settings import Settings
from ragllava.stores.schema import sign_ins
from tests.conftest import own_settings
from tests.support.api_server import Front, open_front, serving
from tests.support.browser import expect, visiting
from tests.support.console_client import reading
from tests.support.holding import holding
from tests.support.oidc_provider import AUDIENCE, CLIENT, SECRET, Provider, open_provider
from tests.support.waiting import wait_for

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
        expect(page.get_by_text("oidc ann")).to_be_visible()
        expect(page.get_by_text("role read")).to_be_visible()
        assert [cookie["name"] for cookie in visitor.context.cookies()] == [SIGN_IN]
    with front.office.engine.connect() as connection:
        ends_at = connection.execute(select(sign_ins.c.ends_at)).scalar_one()
    assert 11.9 < (ends_at.timestamp() - time.time()) / 3600 <= 12, "longer than the token of the identity"


def went_to_provider(http: httpx.Client) -> str:
    """The path on which a browser comes back, with its query."""
    gone = http.get("/console/sign-in/provider")
    assert gone.status_code == 303 and {"HttpOnly", "SameSite=lax"} <= set(gone.headers["set-cookie"].split("; "))
    back = httpx.get(gone.headers["location"], timeout=60).headers["location"]
    return back.removeprefix(str(http.base_url).rstrip("/"))


def test_groups_may_come_from_the_page_of_the_user(front: Front, provider: Provider) -> None:
    provider.groups_in_token = False
    with httpx.Client(base_url=front.url, timeout=60) as http:
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
    with httpx.Client(base_url=front.url, timeout=60) as http:
        assert http.get(went_to_provider(http)).status_code == 401
        assert SIGN_IN not in http.cookies


def sign_ins_of(front: Front) -> int:
    with front.office.engine.connect() as connection:
        return connection.execute(select(func.count()).select_from(sign_ins)).scalar_one()


def test_what_a_browser_did_not_begin_it_cannot_end(front: Front) -> None:
    before = sign_ins_of(front)
    with httpx.Client(base_url=front.url, timeout=60) as http, httpx.Client(base_url=front.url, timeout=60) as other:
        path = went_to_provider(other)
        assert http.get(path).status_code == 401, "it has no cookie"
        went_to_provider(http)
        assert http.get(path).status_code == 401, "its cookie belongs to another state"
        assert other.get(path.replace("iss=", "iss=x")).status_code == 401, "another provider has answered"
        assert other.get(path).status_code == 303
        assert other.get(path).status_code == 401, "the code is used up, and the cookie is gone"
        began = parse_qs(urlsplit(went_to_provider(http)).query)["state"][0]
        refusal = {"error": "access_denied", "error_description": "<b>call 555"}
        for state, is_shown in (("", False), ("another", False), (began, True)):
            refused = http.get("/console/sign-in/provider/return", params=refusal | {"state": state})
            assert refused.status_code == 401 and "<b>call" not in refused.text
            assert ("&lt;b&gt;call 555" in refused.text) is is_shown, "the text of a stranger"
        stolen = went_to_provider(http)
        verifier = http.cookies[DEPARTURE]
        went_to_provider(http)
        assert verifier != http.cookies[DEPARTURE] and http.get(stolen).status_code == 401
    assert sign_ins_of(front) == before + 1, "one browser has ended what it had begun"


def test_a_damaged_cookie_is_explained_to_people(front: Front) -> None:
    with httpx.Client(base_url=front.url, timeout=60) as http:
        path = went_to_provider(http)
        kept = json.loads(unquote(http.cookies[DEPARTURE].strip('"')))
        http.cookies.clear()
        answer = http.get(path, headers={"cookie": f"{DEPARTURE}={quote(json.dumps([*kept[:4], '//evil']))}"})
    assert answer.status_code == 401 and "is damaged; begin again" in answer.text and "pydantic" not in answer.text


def test_browsers_that_wait_for_the_provider_hold_nobody_up(front: Front, monkeypatch: pytest.MonkeyPatch) -> None:
    with httpx.Client(base_url=front.url, timeout=60) as http:
        path, headers = went_to_provider(http), {"cookie": f"{DEPARTURE}={http.cookies[DEPARTURE]}"}

    def arrive() -> int:
        return urllib3.request("GET", front.url + path, headers=headers, timeout=60, retries=False).status

    with holding(monkeypatch, SignInProvider, "rights_of", arrive, asked=THREADS, held=STRANGERS) as arrivals:
        wait_for("the others to be refused", lambda: sum(each.done() for each in arrivals) == THREADS - STRANGERS, 60)
        assert {each.result() for each in arrivals if each.done()} == {429}
        assert httpx.get(f"{front.url}/v1/models", headers={"authorization": "Bearer x"}, timeout=60).status_code == 401
    after = Counter(each.result() for each in arrivals)
    assert after == {303: 1, 401: STRANGERS - 1, 429: THREADS - STRANGERS}, "the code works once"


def test_cookies_go_over_tls_alone_where_browsers_use_it(front: Front) -> None:
    settings = front.settings.model_copy(update={"console_url": "https://pictures.example.org"})
    form = {"key": front.key("read")}
    with Client(settings, name="second", for_tenants=True) as client, serving(client) as url:
        for address, is_secure in ((url, True), (front.url, False)):
            entered = httpx.post(f"{address}/console/sign-in", data=form, headers={"origin": address}, timeout=60)
            assert ("Secure" in entered.headers["set-cookie"].split("; ")) is is_secure


def test_a_page_that_renews_itself_does_not_prolong_the_sign_in(front: Front) -> None:
    with reading(front.url, front.key("read")) as reader:
        for path, is_use in (("/overview/state", False), ("/overview/events", False), ("", True)):
            with front.office.engine.begin() as connection:
                connection.execute(update(sign_ins).values(seen_at=func.now() - timedelta(hours=2)))
            with reader.http.stream("GET", f"/console{path}") as answer:
                next(answer.iter_text())
            with front.office.engine.connect() as connection:
                is_fresh = sign_ins.c.seen_at > func.now() - timedelta(hours=1)
                fresh = connection.execute(select(func.count()).select_from(sign_ins).where(is_fresh)).scalar_one()
            assert fresh == is_use, path


@pytest.mark.parametrize("to", ["//evil.example", "/console\\evil"])
def test_nobody_is_led_elsewhere_by_the_provider(front: Front, to: str) -> None:
    with httpx.Client(base_url=front.url, timeout=60) as http:
        assert http.get("/console/sign-in/provider", params={"next": to}).status_code == 400


def test_a_withdrawn_key_signs_nobody_in(front: Front, provider: Provider, monkeypatch: pytest.MonkeyPatch) -> None:
    token = provider.token()

    def status(key: str) -> int:
        form, headers = {"key": key}, {"origin": front.url}
        entered = httpx.post(f"{front.url}/console/sign-in", data=form, headers=headers, timeout=60)
        assert entered.status_code == (303 if front.call("GET", "/v1/models", key)[0] == 200 else 401)
        return entered.status_code

    assert status(token) == 303
    provider.change_key()
    assert status(token) == 303, "the server has not asked again"
    monkeypatch.setattr(attempts, "monotonic", lambda: time.monotonic() + 3_600)
    assert (status(token), status(provider.token())) == (401, 303)


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
