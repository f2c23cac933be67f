"""Bearer tokens of an OpenID Connect provider: verified by PyJWT, and turned into a role by the groups of the user."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from ragllava.client.access.provider_configuration import ProviderConfiguration
from ragllava.client.access.provider_keys import ProviderKeys
from ragllava.errors import NotAuthenticated, ServiceUnavailable, SettingsError
from ragllava.settings import Settings
from ragllava.stores.access.keys import AccessRole

_ALGORITHMS = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA")
_LEEWAY_S = 60
_CLAIMS = ("exp", "iat", "sub")
_GROUP = re.compile(r"(?P<group>[^=,]+)=(?P<role>\w+)(:(?P<archives>[a-z0-9._+-]+))?")


@dataclass(frozen=True, slots=True)
class Rights:
    """What the provider says about a user, until `ends_at`. `archives` are names, None: all."""

    subject: str
    role: AccessRole
    archives: frozenset[str] | None
    ends_at: datetime


class TokenReader:
    """Reads tokens as the settings say."""

    def __init__(self, settings: Settings) -> None:
        """Raises SettingsError for groups that cannot be read, and for an issuer without an audience."""
        self._settings = settings
        self.is_enabled = settings.oidc_issuer is not None
        if self.is_enabled and not settings.oidc_audience:
            raise SettingsError("RAGLLAVA_OIDC_ISSUER needs RAGLLAVA_OIDC_AUDIENCE, or tokens of other services pass")
        self._groups = parse_groups(settings.oidc_groups)
        self._keys = ProviderKeys(self._keys_address, settings.oidc_keys_kept_s)
        self._configuration = ProviderConfiguration(str(settings.oidc_issuer))

    def reads(self, token: str) -> bool:
        """Whether this is a token rather than a key."""
        return self.is_enabled and token.count(".") == 2

    def read(self, token: str) -> Rights:
        """The rights of a user. Raises NotAuthenticated; ServiceUnavailable when the provider does not answer."""
        return self.rights(self.claims(token, str(self._settings.oidc_audience)))

    def has_key_of(self, token: str) -> bool:
        """Whether `read` asks nobody: the key is there, or the token is refused without it."""
        import jwt

        try:
            return not self._keys.asks(_key_id(token))
        except jwt.PyJWTError:
            return True

    def claims(self, token: str, audience: str) -> dict[str, Any]:
        """What a token says, if it is for this audience and valid. Raises as `read`."""
        import jwt

        try:
            key = self._keys.get(_key_id(token)).key
            claims: dict[str, Any] = jwt.decode(
                token,
                key,
                algorithms=_ALGORITHMS,
                audience=audience,
                issuer=self._settings.oidc_issuer,
                leeway=_LEEWAY_S,
                options={"require": list(_CLAIMS)},
            )
        except jwt.PyJWTError as error:
            raise NotAuthenticated(f"the token is not valid: {error}") from None
        return claims

    def rights(self, claims: dict[str, Any]) -> Rights:
        """What the groups of a user may do. Raises NotAuthenticated for one without a group of the settings."""
        groups = claims.get(self._settings.oidc_groups_claim)
        listed = [groups] if isinstance(groups, str) else groups if isinstance(groups, list) else []
        found = [self._groups[name] for name in listed if isinstance(name, str) and name in self._groups]
        if not found:
            raise NotAuthenticated("none of the token's groups is in RAGLLAVA_OIDC_GROUPS")
        # One role over several archives would give more than the groups do, so the strongest group counts.
        order = list(AccessRole)
        role = max((role for role, _ in found), key=order.index)
        of_role = [archives for given, archives in found if given is role]
        every = None in of_role
        archives = None if every else frozenset().union(*filter(None, of_role))
        return Rights(str(claims["sub"]), role, archives, datetime.fromtimestamp(claims["exp"], UTC))

    def _keys_address(self) -> str:
        return self._settings.oidc_keys_url or self.endpoint("jwks_uri")

    def endpoint(self, name: str) -> str:
        """An address of the provider, from its configuration. Raises ServiceUnavailable."""
        address = self.configuration().get(name)
        if not isinstance(address, str):
            raise ServiceUnavailable(f"the configuration of {self._settings.oidc_issuer} names no {name}")
        return address

    def configuration(self) -> dict[str, Any]:
        """What the provider says about itself. Raises ServiceUnavailable."""
        return self._configuration.get()


def _key_id(token: str) -> str:
    """The id of the key that has signed a token, as it says itself. Raises jwt.PyJWTError."""
    import jwt

    key_id = jwt.get_unverified_header(token).get("kid")
    if key_id is None:
        raise jwt.InvalidTokenError("it does not say which key has signed it")
    return str(key_id)


def parse_groups(listed: str) -> dict[str, tuple[AccessRole, frozenset[str] | None]]:
    """What each group may do, from `group=role` and `group=role:archive+archive`. Raises SettingsError."""
    groups: dict[str, tuple[AccessRole, frozenset[str] | None]] = {}
    for item in filter(None, (part.strip() for part in listed.split(","))):
        match = _GROUP.fullmatch(item)
        if match is None or match["role"] not in list(AccessRole):
            roles = ", ".join(AccessRole)
            raise SettingsError(
                f"RAGLLAVA_OIDC_GROUPS: {item!r} is neither group=role nor group=role:archive+archive; "
                f"roles are {roles}"
            )
        archives = frozenset(match["archives"].split("+")) if match["archives"] else None
        groups[match["group"].strip()] = AccessRole(match["role"]), archives
    return groups
