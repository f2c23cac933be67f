"""Signing in at an OpenID Connect provider in a browser: the authorization code flow with PKCE (RFC 6749, RFC 7636)."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import secrets
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import quote, urlencode, urlsplit

import urllib3

from ragllava.client.access.tokens import Rights, TokenReader
from ragllava.errors import NotAuthenticated, ServiceUnavailable, SettingsError
from ragllava.settings import Settings

RETURN_PATH = "/console/sign-in/provider/return"
_LASTS = timedelta(hours=12)  # of a sign-in: tokens of an identity often last for minutes
_TIMEOUT_S = 5


@dataclass(frozen=True, slots=True)
class Departure:
    """A browser that goes to the provider: the address, and what it keeps meanwhile and only it can bring back."""

    address: str
    state: str
    nonce: str
    verifier: str
    return_url: str


@dataclass(frozen=True, slots=True)
class Arrival:
    """What a browser brings from the provider; `issuer` if the provider says it (RFC 9207).

    `problem` says why the provider has given no code; empty: it has.
    """

    code: str
    state: str
    issuer: str | None = None
    problem: str = ""


class SignInProvider:
    """Sends browsers to the provider of the settings, and learns from it who they are."""

    def __init__(self, settings: Settings, tokens: TokenReader) -> None:
        """Raises SettingsError for a client id without an issuer."""
        self._settings, self._tokens = settings, tokens
        self._client_id = settings.oidc_client_id or ""
        self.is_enabled = bool(self._client_id)
        if self.is_enabled and not settings.oidc_issuer:
            raise SettingsError("RAGLLAVA_OIDC_CLIENT_ID needs RAGLLAVA_OIDC_ISSUER")

    @property
    def name(self) -> str | None:
        """The host of the provider, for people; None: there is none to sign in at."""
        return urlsplit(str(self._settings.oidc_issuer)).hostname if self.is_enabled else None

    def begin(self, reached_at: str) -> Departure:
        """Where to send a browser that reached the server at this address.

        Raises NotAuthenticated without a client id; ServiceUnavailable.
        """
        if not self.is_enabled:
            raise NotAuthenticated("no provider is set to sign in at; use a key")
        state, nonce, verifier = (secrets.token_urlsafe(32) for _ in range(3))
        return_url = (self._settings.console_url or reached_at).rstrip("/") + RETURN_PATH
        query = {
            "response_type": "code",
            "client_id": self._client_id,
            "redirect_uri": return_url,
            "scope": self._settings.oidc_scope,
            "state": state,
            "nonce": nonce,
            "code_challenge": _unpadded(hashlib.sha256(verifier.encode()).digest()),
            "code_challenge_method": "S256",
        }
        endpoint = self._tokens.endpoint("authorization_endpoint")
        mark = "&" if "?" in endpoint else "?"
        return Departure(f"{endpoint}{mark}{urlencode(query)}", state, nonce, verifier, return_url)

    def rights_of(self, arrival: Arrival, departure: Departure) -> Rights:
        """Who has come back. Raises NotAuthenticated; ServiceUnavailable when the provider does not answer."""
        if not self.is_enabled or not hmac.compare_digest(arrival.state.encode(), departure.state.encode()):
            raise NotAuthenticated("this sign-in was not begun in this browser, or too long ago; begin again")
        if arrival.issuer is not None and arrival.issuer != self._settings.oidc_issuer:
            raise NotAuthenticated("another provider has answered than the one that was asked")
        if arrival.problem:  # not before: anybody can send a browser here, with any text
            raise NotAuthenticated(f"the provider refuses the sign-in: {arrival.problem}")
        tokens = self._redeemed(arrival.code, departure)
        claims = self._tokens.claims(str(tokens.get("id_token", "")), self._client_id)
        is_ours = claims.get("azp", self._client_id) == self._client_id
        if not is_ours or not hmac.compare_digest(str(claims.get("nonce", "")).encode(), departure.nonce.encode()):
            raise NotAuthenticated("the provider's answer belongs to another sign-in; begin again")
        is_told_elsewhere = "userinfo_endpoint" in self._tokens.configuration()
        if self._settings.oidc_groups_claim not in claims and is_told_elsewhere:
            claims = self._user_of(str(tokens.get("access_token", "")), claims)
        return replace(self._tokens.rights(claims), ends_at=datetime.now(UTC) + _LASTS)

    def _redeemed(self, code: str, departure: Departure) -> dict[str, Any]:
        """The tokens for a code, which the provider gives once."""
        fields = {
            "grant_type": "authorization_code",
            "code": code,
            "redirect_uri": departure.return_url,
            "code_verifier": departure.verifier,
            "client_id": self._client_id,
        }
        headers = {"accept": "application/json", "content-type": "application/x-www-form-urlencoded"}
        secret = self._settings.oidc_client_secret
        if secret is not None:
            methods = self._tokens.configuration().get("token_endpoint_auth_methods_supported", ["client_secret_basic"])
            if "client_secret_basic" in methods:
                pair = f"{quote(self._client_id, safe='')}:{quote(secret.get_secret_value(), safe='')}"
                headers["authorization"] = "Basic " + base64.b64encode(pair.encode()).decode()
            else:
                fields["client_secret"] = secret.get_secret_value()
        return _answered("POST", self._tokens.endpoint("token_endpoint"), headers, urlencode(fields))

    def _user_of(self, access_token: str, claims: dict[str, Any]) -> dict[str, Any]:
        """The claims, with those that the provider tells about the user only when it is asked."""
        headers = {"accept": "application/json", "authorization": f"Bearer {access_token}"}
        user = _answered("GET", self._tokens.endpoint("userinfo_endpoint"), headers, None)
        if user.get("sub") != claims["sub"]:
            raise NotAuthenticated("the provider told about another user; begin again")
        return user | claims


def _answered(method: str, address: str, headers: dict[str, str], body: str | None) -> dict[str, Any]:
    """Raises NotAuthenticated for what the provider refuses; ServiceUnavailable."""
    try:
        with urllib3.PoolManager(timeout=_TIMEOUT_S, retries=False) as pool:
            answer = pool.request(method, address, body=body, headers=headers, redirect=False)
        answered = json.loads(answer.data)
    except (urllib3.exceptions.HTTPError, ValueError) as error:
        raise ServiceUnavailable(f"the provider does not answer at {address}: {error}") from error
    if 400 <= answer.status < 500 and isinstance(answered, dict):
        raise NotAuthenticated(f"the provider refuses the sign-in: {str(answered.get('error', answer.status))[:100]}")
    if answer.status != 200 or not isinstance(answered, dict):
        raise ServiceUnavailable(f"the provider answers at {address} with the status {answer.status}")
    return answered


def _unpadded(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()
