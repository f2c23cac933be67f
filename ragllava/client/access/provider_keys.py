"""The keys of an OpenID Connect provider, as it publishes them: fetched when they are needed, and not trusted for ever.

A key is trusted for as long as the settings say, then all are fetched again, and one that the provider has withdrawn is
refused. While the provider does not answer, keys are trusted for as long once more, and then not at all. An answer
without a usable key counts as no answer. An unknown key is looked for every 30 s at most, whoever sends tokens with
made-up ids; after a failure it is looked for sooner, at first after one second. A token with a trusted key never waits
while the provider is asked for another one. Only while no key at all is trusted, the provider is asked for each token,
by one thread at a time.
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
_AGAIN_AFTER_FAILURE_S = 1.0  # doubles with each further failure, up to _AGAIN_S
_TIMEOUT_S = 5


class ProviderKeys:
    """Public keys by their ids. `address` is where they are, and may raise ServiceUnavailable."""

    def __init__(self, address: Callable[[], str], kept_s: float) -> None:
        """`kept_s` are the seconds for which keys are trusted without asking the provider."""
        self._address, self._kept_s = address, kept_s
        self._keys: dict[str, Any] = {}
        self._answered_at = float("-inf")  # when the last answer was asked for
        self._asked_at = float("-inf")  # when the last attempt ended
        self._failures = 0  # attempts since the last answer
        self._problem: ServiceUnavailable | None = None  # of the last time that the provider was asked
        self._times_asked = 0
        self._asking = threading.Lock()

    def asks(self, key_id: str) -> bool:
        """Whether `get` has to wait for the provider."""
        return not self._trusts(key_id) if self._asking.locked() else self._is_due(key_id)

    def get(self, key_id: str) -> Any:
        """A key (jwt.PyJWK). Raises NotAuthenticated for one that the provider does not have; ServiceUnavailable."""
        times = self._times_asked
        if self.asks(key_id) and self._asking.acquire(blocking=not self._trusts(key_id)):
            try:
                # Of those who wait at the same time, one asks; and what has just been asked is not asked again.
                if times == self._times_asked and self._is_due(key_id):
                    self._ask()
            finally:
                self._asking.release()
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
        return monotonic() - self._asked_at >= self._pause_s()

    def _pause_s(self) -> float:
        """Until the provider is asked again."""
        if not self._failures:
            return _AGAIN_S
        return min(_AGAIN_S, _AGAIN_AFTER_FAILURE_S * 2.0 ** min(self._failures - 1, 20))

    def _trusts(self, key_id: str) -> bool:
        return key_id in self._keys and monotonic() - self._answered_at < 2 * self._kept_s

    def _ask(self) -> None:
        began = monotonic()
        try:
            self._keys = self._fetched()
            self._answered_at, self._problem, self._failures = began, None, 0
        except ServiceUnavailable as error:
            self._problem = error
            self._failures += 1
            log.warning(str(error), extra={"action": "provider_keys_not_fetched"})
        finally:
            self._asked_at = monotonic()
            self._times_asked += 1

    def _fetched(self) -> dict[str, Any]:
        """What the provider has now, at least one key. Raises ServiceUnavailable."""
        import jwt

        address = self._address()
        try:
            published = jwt.PyJWKClient(address, cache_jwk_set=False, timeout=_TIMEOUT_S).get_jwk_set().keys
        except (jwt.PyJWTError, OSError, ValueError) as error:
            raise ServiceUnavailable(f"{address} cannot be read: {error}") from error
        keys = {str(key.key_id): key for key in published if key.key_id and key.public_key_use in ("sig", None)}
        if not keys:
            raise ServiceUnavailable(f"{address} has no key that signs tokens")
        return keys
