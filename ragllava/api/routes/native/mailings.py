"""Mails and webhooks of notifications: what became of them, and again."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from ragllava.api.route import Answer, Body, Call, NoBody, NoQuery, Query, Routes
from ragllava.api.routes.native.shared import Id, JsonList, json_list
from ragllava.client import AccessRole, MailingState

routes = Routes("Mailings")

_MOST = 1_000


class MailingsQuery(Query):
    """At most so many, of all states or of one."""

    limit: Annotated[int, Field(ge=1, le=_MOST)] = 100
    state: MailingState | None = None


class Again(Body):
    """Which mailings; null: all that were given up."""

    mailings: Annotated[list[Id], Field(min_length=1, max_length=_MOST)] | None = None


class AgainObject(Answer):
    """How many are sent again at the next tick."""

    object: Literal["mailings"] = "mailings"
    number: int


@routes.get("/v1/mailings", needs=AccessRole.ADMIN, query=MailingsQuery, answer=JsonList, of_all=True)
def list_mailings(call: Call[MailingsQuery, NoBody]) -> JsonList:
    """The newest mails and webhooks of notifications: what became of them, and the error of the last attempt."""
    return json_list(call.client.system.mailings(call.query.limit, call.query.state))


@routes.post("/v1/mailings/retry", needs=AccessRole.ADMIN, body=Again, answer=AgainObject, of_all=True)
def retry_mailings(call: Call[NoQuery, Again]) -> AgainObject:
    """Send mailings again that wait or were given up. One that is being sent or was delivered is a conflict."""
    return AgainObject(number=call.client.system.send_mailings_again(call.body.mailings))
