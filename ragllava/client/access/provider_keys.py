"""The keys of an OpenID Connect provider, as it publishes them: fetched when they are needed, and not trusted for ever.

A key is trusted for as long as the settings say, then all are fetched again, and one that the provider has withdrawn is
refused. While the provider does not answer, keys are trusted for as long once more, and then not at all. An unknown key
is looked for every 30 s at most, whoever sends tokens with made-up ids. Only while no key at all is trusted, the
provider is asked for each token, by one thread at a time.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from time import monotonic
from typing import Any

from ragllava.errors import NotAuthenticated, ServiceUnavailable

log = logging.getLogger(__name__)

_AGAIN_S = 30.0
_TIMEOUT_S = 5


class ProviderKeys:
    """Public keys by their ids. `address` is where they are, and may raise ServiceUnavailable."""

    def __init__(self, address: Callable[[], str], kept_s: float) -> None:
        """`kept_s` are the seconds for which keys are trusted without asking the provider."""
        self._address, self._kept_s = address, kept_s
        self._keys: dict[str, Any] = {}
        self._answered_at = self._asked_at = float("-inf")
        self._problem: ServiceUnavailable | None = None  # of the last time that the provider was asked
        self._times_asked = 0
        self._asking = threading.Lock()

    def asks(self, key_id: str) -> bool:
        """Whether `get` has to wait for the provider."""
        return self._is_due(key_id) or (self._asking.locked() and not self._trusts(key_id))

    def get(self, key_id: str) -> Any:
        """A key (jwt.PyJWK). Raises NotAuthenticated for one that the provider does not have; ServiceUnavailable."""
        times = self._times_asked
        if self.asks(key_id):
            with self._asking:
                if times == self._times_asked:  # of those who wait at the same time, one asks
                    self._ask()
        key = self._keys.get(key_id) if self._trusts(key_id) else None
        if key is not None:
            return key
        if self._problem is not None:
            raise ServiceUnavailable(f"the provider of tokens does not answer: {self._problem}")
        raise NotAuthenticated("the token is not valid: the provider has no such key, or has withdrawn it")

    def _is_due(self, key_id: str) -> bool:
        age_s = monotonic() - self._answered_at
        if key_id in self._keys and age_s < self._kept_s:
            return False
        if self._problem is not None and age_s >= 2 * self._kept_s:  # no key is trusted, so everybody waits for one
            return True
        return monotonic() - self._asked_at >= _AGAIN_S

    def _trusts(self, key_id: str) -> bool:
        return key_id in self._keys and monotonic() - self._answered_at < 2 * self._kept_s

    def _ask(self) -> None:
        self._asked_at = monotonic()  # who has a trusted key goes on meanwhile
        try:
            self._keys = self._fetched()
            self._answered_at, self._problem = self._asked_at, None
        except ServiceUnavailable as error:
            self._problem = error
            log.warning(str(error), extra={"action": "provider_keys_not_fetched"})
        finally:
            self._times_asked += 1

    def _fetched(self) -> dict[str, Any]:
        import jwt

        address = self._address()
        try:
            published = jwt.PyJWKClient(address, cache_jwk_set=False, timeout=_TIMEOUT_S).get_jwk_set().keys
        except jwt.PyJWKSetError:  # an answer without a usable key
            return {}
        except (jwt.PyJWKClientError, OSError, ValueError) as error:
            raise ServiceUnavailable(f"{address} cannot be read: {error}") from error
        return {str(key.key_id): key for key in published if key.key_id and key.public_key_use in ("sig", None)}
