"""What an OpenID Connect provider says about itself: asked for when it is needed, and kept once it is right."""

from __future__ import annotations

import json
from typing import Any

import urllib3

from ragllava.client.access.attempts import NOTHING_KNOWN_PAUSE_S, Attempts
from ragllava.errors import ServiceUnavailable

_TIMEOUT_S = 5


class ProviderConfiguration:
    """The configuration of one provider."""

    def __init__(self, issuer: str) -> None:
        """`issuer` is the address of the provider, as the settings and its tokens say it."""
        self._issuer = issuer
        self._attempts = Attempts()
        self._said: dict[str, Any] | None = None

    def get(self) -> dict[str, Any]:
        """The configuration. Raises ServiceUnavailable."""
        if self._is_due():
            with self._attempts.turn(waits=True) as is_ours:
                if is_ours and self._is_due():
                    with self._attempts.noted():
                        self._said = self._fetched()
        problem, said = self._attempts.problem, self._said  # in this order: another thread may learn it in between
        if said is None:
            raise ServiceUnavailable(str(problem))
        return said

    def _is_due(self) -> bool:
        return self._said is None and self._attempts.may_begin(NOTHING_KNOWN_PAUSE_S)

    def _fetched(self) -> dict[str, Any]:
        """What the provider says now. Raises ServiceUnavailable."""
        address = f"{self._issuer.rstrip('/')}/.well-known/openid-configuration"
        try:
            with urllib3.PoolManager(timeout=_TIMEOUT_S, retries=1) as pool:
                answer = pool.request("GET", address)
            said = json.loads(answer.data) if answer.status == 200 else None
        except (urllib3.exceptions.HTTPError, ValueError) as error:
            raise ServiceUnavailable(f"{address} cannot be read: {error}") from error
        if not isinstance(said, dict):
            raise ServiceUnavailable(f"{address} answers with the status {answer.status}, and no configuration")
        if said.get("issuer") != self._issuer:
            raise ServiceUnavailable(
                f"{address} is the configuration of {str(said.get('issuer'))[:200]}; "
                f"RAGLLAVA_OIDC_ISSUER is {self._issuer}, and must be the same"
            )
        return said
