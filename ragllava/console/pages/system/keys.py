"""Keys of the HTTP API, with which people also sign in here: make, list, revoke."""

from __future__ import annotations

from typing import Annotated

from pydantic import BeforeValidator, Field

from ragllava.api.route import Body, NoBody, NoQuery
from ragllava.api.routes.native.shared import Line, text_in_path
from ragllava.client import AccessRole, Limits, NewKey
from ragllava.console.page import ROOT, Context, Done, Pages, Shown, Visit, as_list

pages = Pages("Keys")

KEYS = f"{ROOT}/keys"
_Limit = Annotated[int, Field(ge=0, le=10**12)] | None


class KeyForm(Body):
    """A new key. `archives` empty: all; a limit that is empty is that of the settings."""

    name: Line
    role: AccessRole = AccessRole.ASK
    archives: Annotated[list[Line], BeforeValidator(as_list)] = Field(default_factory=list)
    days: Annotated[float, Field(gt=0, le=36_500)] | None = None
    questions_per_day: _Limit = None
    open_jobs: _Limit = None
    stored_mib: _Limit = None
    requests_per_minute: _Limit = None

    @property
    def as_new(self) -> NewKey:
        """As the client takes it."""
        limits = Limits(self.questions_per_day, self.open_jobs, self.stored_mib, self.requests_per_minute)
        return NewKey(self.name, self.role, self.archives or None, self.days, limits)


@pages.get(KEYS, needs=AccessRole.ADMIN, of_all=True, template="keys.html", title="Keys", menu="Keys")
def list_keys(visit: Visit[NoQuery, NoBody]) -> Context:
    """All keys, also those that expired or were revoked."""
    return {
        "keys": visit.client.access.list_keys(),
        "roles": list(AccessRole),
        "archives": visit.client.archives.names(),
    }


@pages.post(KEYS, needs=AccessRole.ADMIN, of_all=True, body=KeyForm, template="key_made.html", title="New key")
def make_key(visit: Visit[NoQuery, KeyForm]) -> Shown:
    """Make a key. It is shown only now: the database has its hash."""
    key, view = visit.client.access.create_key(visit.body.as_new)
    return Shown({"key": key, "view": view}, status=201)


@pages.post(f"{KEYS}/{{prefix}}/revoke", needs=AccessRole.ADMIN, of_all=True)
def revoke_key(visit: Visit[NoQuery, NoBody]) -> Done:
    """End a key at once, with all sign-ins that were made with it."""
    prefix = text_in_path(visit, "prefix")
    visit.client.access.revoke_key(prefix)
    return Done(f"The key {prefix} is revoked.", KEYS)
