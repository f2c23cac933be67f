"""Keys and tokens of callers of the HTTP API, what they may use, and the audit."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import date
from functools import cached_property

from sqlalchemy import Connection

from ragllava.client.access.provider import Arrival, Departure, SignInProvider
from ragllava.client.access.tokens import Rights, TokenReader
from ragllava.client.connections import Namespace, forwarded, this_user
from ragllava.errors import NotAuthenticated, NotFound, QuotaExceeded
from ragllava.stores.access import keys, sign_ins, usage
from ragllava.stores.access.keys import Limits, Principal
from ragllava.stores.access.sign_ins import NewSignIn
from ragllava.stores.access.tenancy import Scope, acting
from ragllava.stores.access.usage import AuditEntry
from ragllava.stores.archives.archive import get_archive


class Access(Namespace):
    """Keys of the HTTP API, callers, quotas and the audit."""

    @cached_property
    def _tokens(self) -> TokenReader:
        return TokenReader(self._connections.settings)

    @cached_property
    def _provider(self) -> SignInProvider:
        return SignInProvider(self._connections.settings, self._tokens)

    create_key = forwarded(keys.create_key)
    list_keys = forwarded(keys.list_keys)
    revoke_key = forwarded(keys.revoke_key)

    def has_callers(self) -> bool:
        """Whether anybody can call the HTTP API: there is a valid key, or a provider of tokens is set."""
        return self._tokens.is_enabled or self._do(keys.has_usable_key)

    def authenticate(self, token: str) -> Principal:
        """Who has this key or this token of the provider. Raises NotAuthenticated; ServiceUnavailable."""
        principal = self._of_token(token) if self._tokens.reads(token) else self._do(keys.find_principal, token)
        if principal is None:
            raise NotAuthenticated("the key is unknown, expired or revoked; `ragllava keys create` makes one")
        return principal

    def asks_provider(self, token: str) -> bool:
        """Whether `authenticate` has to ask the provider for the key of this token, and so may take seconds."""
        return self._tokens.reads(token) and not self._tokens.has_key_of(token)

    def sign_in(self, token: str) -> tuple[str, Principal]:
        """Sign a browser in to the console with a key or a token; returns the secret of its cookie, and who it is.

        Raises as `authenticate`. The sign-in ends with the key or the token, or when it is idle for 12 hours.
        """
        principal = self.authenticate(token)
        if self._tokens.reads(token):
            new = NewSignIn(principal, ends_at=self._tokens.read(token).ends_at)
        else:
            new = NewSignIn(principal, key=token)
        return self._do(sign_ins.create_sign_in, new), principal

    def make_sign_in_link(self) -> str:
        """The secret of a link that signs this user in once, as an administrator. Not for the role of the HTTP API."""
        return self._do(sign_ins.create_link, this_user())

    def sign_in_by_link(self, link: str) -> tuple[str, Principal]:
        """As `sign_in`, with the secret of a link, which is used up. Raises NotAuthenticated."""
        principal = self._do(sign_ins.use_link, link)
        if principal is None:
            raise NotAuthenticated("this link has been used or is too old; `ragllava console` prints another one")
        return self._do(sign_ins.create_sign_in, NewSignIn(principal)), principal

    @property
    def provider_name(self) -> str | None:
        """The host of the provider at which browsers may sign in; None: there is none."""
        return self._provider.name

    def begin_at_provider(self, reached_at: str) -> Departure:
        """Where to send a browser that signs in at the provider, and has reached the server at this address.

        Raises NotAuthenticated; ServiceUnavailable.
        """
        return self._provider.begin(reached_at)

    def sign_in_at_provider(self, arrival: Arrival, departure: Departure) -> tuple[str, Principal]:
        """As `sign_in`, for a browser that comes back from the provider, for 12 hours. Raises as `authenticate`."""
        rights = self._provider.rights_of(arrival, departure)
        principal = self._principal(rights)
        return self._do(sign_ins.create_sign_in, NewSignIn(principal, ends_at=rights.ends_at)), principal

    signed_in = forwarded(sign_ins.find_sign_in)
    sign_out = forwarded(sign_ins.end_sign_in)

    def _of_token(self, token: str) -> Principal:
        return self._principal(self._tokens.read(token))

    def _principal(self, rights: Rights) -> Principal:
        if rights.archives is None:
            ids = None
        else:
            with acting(Scope(None, "")):  # it is not known yet what the caller may see
                ids = self._do(keys.ids_of_archives, sorted(rights.archives))
        return Principal(f"oidc {rights.subject}", rights.role, ids)

    def limits_of(self, principal: Principal) -> Limits:
        """The limits of a caller: its own, else those of the settings."""
        settings, own = self._connections.settings, principal.limits

        def chosen(value: int | None, default: int) -> int:
            return default if value is None else value

        return Limits(
            questions_per_day=chosen(own.questions_per_day, settings.api_questions_per_day),
            open_jobs=chosen(own.open_jobs, settings.api_open_jobs),
            stored_mib=chosen(own.stored_mib, settings.api_stored_mib),
            requests_per_minute=chosen(own.requests_per_minute, settings.api_requests_per_minute),
        )

    def scope_of(self, principal: Principal) -> Scope:
        """What the transactions of a caller may see, and how many jobs it may have open."""
        return replace(principal.scope, open_jobs=self.limits_of(principal).open_jobs or 0)

    @contextmanager
    def admitted(self, principal: Principal, questions: int = 0) -> Iterator[None]:
        """Around the creation of a job with so many questions: counts them for a caller, unless the block raises.

        Raises QuotaExceeded when they are too many, or too many jobs are open already; then nothing is counted. How
        many are open is looked at again in the transaction that creates the job.
        """
        day = self._do(self._admit, principal, questions)
        try:
            yield
        except BaseException:
            if day is not None:
                self._do(usage.give_back_questions, principal.owner, questions, day)
            raise

    def count_questions(self, principal: Principal) -> Callable[[Connection, int], None]:
        """A function that counts questions of a caller in a transaction, which QuotaExceeded rolls back."""

        def count(connection: Connection, questions: int) -> None:
            self._count(connection, principal, questions)

        return count

    def _count(self, connection: Connection, principal: Principal, questions: int) -> date | None:
        """The day that they count for, None where there are none."""
        if not questions:
            return None
        most = self.limits_of(principal).questions_per_day
        counted = usage.add_questions(connection, principal.owner, questions)
        if most and counted.questions > most:
            raise QuotaExceeded(
                f"this caller may ask {most:,} questions a day, and has asked {counted.questions - questions:,}; "
                f"{questions:,} more are too many",
                usage.seconds_to_midnight(connection),
            )
        return counted.day

    def _admit(self, connection: Connection, principal: Principal, questions: int) -> date | None:
        usage.require_room(connection, new=1)
        return self._count(connection, principal, questions)

    def admit_bytes(self, principal: Principal, size_bytes: int) -> None:
        """Raises QuotaExceeded when a caller may not store so many bytes more, before anything is stored."""
        self._do(usage.require_space, principal.owner, self.limits_of(principal).stored_mib or 0, size_bytes)

    def count_bytes(self, principal: Principal) -> Callable[[Connection], None]:
        """A function that adds up what a caller has stored, at the end of a transaction which stores more of it;
        QuotaExceeded rolls that back."""
        most = self.limits_of(principal).stored_mib or 0
        return lambda connection: usage.require_space(connection, principal.owner, most)

    def audit(self, entry: AuditEntry) -> None:
        """Note a call."""
        self._do(usage.add_audit, entry)

    list_audit = forwarded(usage.list_audit)

    def visible_archive(self, principal: Principal, name: str) -> int:
        """The id of an archive that a caller may see. Raises NotFound."""
        archive_id = self._do(_archive_id, name)
        if not principal.may_see(archive_id):
            raise NotFound(f"there is no archive {name!r}")
        return archive_id


def _archive_id(connection: Connection, name: str) -> int:
    return get_archive(connection, name).archive_id
