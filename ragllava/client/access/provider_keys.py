"""The keys of an OpenID Connect provider, as it publishes them: fetched when they are needed, and not trusted for ever.

A key is trusted for as long as the settings say, then all are fetched again, and one that the provider has withdrawn is
refused. While the provider does not answer, keys are trusted for as long once more, and then not at all. An answer
without a usable key counts as no answer. An unknown key is looked for every 30 s at most, whoever sends tokens with
made-up ids; after a failure it is looked for sooner, at first after one second. A token with a trusted key never waits
for the attempt of another one; it waits only when it asks the provider again itself. While no key at all is trusted,
the provider is asked again after 10 s at the latest, and in between every token is refused at once.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from ragllava.client.access.attempts import LONGEST_PAUSE_S, NOTHING_KNOWN_PAUSE_S, Attempts
from ragllava.errors import NotAuthenticated, ServiceUnavailable

log = logging.getLogger(__name__)

_TIMEOUT_S = 5


class ProviderKeys:
    """Public keys by their ids. `address` is where they are, and may raise ServiceUnavailable."""

    def __init__(self, address: Callable[[], str], kept_s: float) -> None:
        """`kept_s` are the seconds for which keys are trusted without asking the provider."""
        self._address, self._kept_s = address, kept_s
        self._keys: dict[str, Any] = {}
        self._attempts = Attempts()

    def asks(self, key_id: str) -> bool:
        """Whether `get` has to wait for the provider."""
        if self._attempts.is_running:
            return not self._trusts(key_id) and not self._attempts.is_silent
        return self._is_due(key_id)

    def get(self, key_id: str) -> Any:
        """A key (jwt.PyJWK). Raises NotAuthenticated for one that the provider does not have; ServiceUnavailable."""
        if self.asks(key_id):
            with self._attempts.turn(waits=not self._trusts(key_id)) as is_ours:
                if is_ours and self._is_due(key_id):
                    self._ask()
        problem = self._attempts.problem  # before the key: another thread may fetch it in between
        key = self._keys.get(key_id) if self._trusts(key_id) else None
        if key is not None:
            return key
        if problem is not None:
            raise ServiceUnavailable(f"the provider of tokens does not answer: {problem}")
        raise NotAuthenticated("the token is not valid: the provider has no such key, or has withdrawn it")

    def _is_due(self, key_id: str) -> bool:
        age_s = self._attempts.answer_age_s
        if key_id in self._keys and age_s < self._kept_s:
            return False
        return self._attempts.may_begin(LONGEST_PAUSE_S if age_s < 2 * self._kept_s else NOTHING_KNOWN_PAUSE_S)

    def _trusts(self, key_id: str) -> bool:
        return key_id in self._keys and self._attempts.answer_age_s < 2 * self._kept_s

    def _ask(self) -> None:
        with self._attempts.noted():
            self._keys = self._fetched()
        if self._attempts.problem is not None:
            log.warning(str(self._attempts.problem), extra={"action": "provider_keys_not_fetched"})

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
