"""Webhooks: tell another system when a job has ended."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Literal

from pydantic import Field

from ragllava.api.route import Answer, Body, Call, NoBody, NoQuery, Routes
from ragllava.api.routes.native.shared import JsonList, Line, LongText, json_list
from ragllava.client import AccessRole, JobKind, WebhookView

routes = Routes("Webhooks")

_USUAL = (JobKind.ANSWER, JobKind.INGEST)


class NewWebhook(Body):
    """Where to send what, for the jobs of one archive or, null, of all."""

    url: LongText
    archive: Line | None = None
    kinds: Annotated[list[JobKind], Field(min_length=1, max_length=len(JobKind))] = Field(
        default_factory=lambda: list(_USUAL)
    )


class WebhookObject(Answer):
    """A webhook; its secret is shown when it is made, and never again."""

    object: Literal["webhook"] = "webhook"
    id: int
    url: str
    archive: str | None
    kinds: list[str]
    owner: str
    created_at: datetime
    secret: str | None = None


class DeletedWebhook(Answer):
    """It is gone, with what was still to be sent."""

    object: Literal["webhook"] = "webhook"
    id: int
    deleted: Literal[True] = True


class WebhookList(Answer):
    """The webhooks that the caller may see."""

    object: Literal["list"] = "list"
    data: list[WebhookObject]


@routes.post(
    "/v1/webhooks",
    needs=AccessRole.WRITE,
    body=NewWebhook,
    answer=WebhookObject,
    status=201,
    archive_in="body:archive",
)
def create_webhook(call: Call[NoQuery, NewWebhook]) -> WebhookObject:
    """Be told when a job ends: a signed POST, sent again until it is accepted; only to hosts that the settings allow.

    The header `webhook-signature` is `v1,` and the base64 of HMAC-SHA256 of `webhook-id.webhook-timestamp.body`, by the
    secret without `whsec_`, decoded from base64.
    """
    body = call.body
    if body.archive is None:
        call.require_all_archives()
    archive = call.archive(body.archive) if body.archive is not None else None
    view, secret = call.client.webhooks.create(call.principal.owner, archive, body.url, body.kinds)
    return _object(view, secret)


@routes.get("/v1/webhooks", needs=AccessRole.WRITE, answer=WebhookList)
def list_webhooks(call: Call[NoQuery, NoBody]) -> WebhookList:
    """The webhooks that the caller may see, by age."""
    return WebhookList(data=list(map(_object, call.client.webhooks.list())))


@routes.get("/v1/webhooks/{webhook_id}", needs=AccessRole.WRITE, answer=WebhookObject, archive_in="path:webhook_id")
def show_webhook(call: Call[NoQuery, NoBody]) -> WebhookObject:
    """One webhook."""
    return _object(call.client.webhooks.get(call.number("webhook_id")))


@routes.get(
    "/v1/webhooks/{webhook_id}/deliveries", needs=AccessRole.WRITE, answer=JsonList, archive_in="path:webhook_id"
)
def list_deliveries(call: Call[NoQuery, NoBody]) -> JsonList:
    """The newest deliveries of a webhook: waiting, delivered or given up, with the error of the last attempt."""
    return json_list(call.client.webhooks.deliveries(call.number("webhook_id")))


@routes.delete("/v1/webhooks/{webhook_id}", needs=AccessRole.WRITE, answer=DeletedWebhook, archive_in="path:webhook_id")
def delete_webhook(call: Call[NoQuery, NoBody]) -> DeletedWebhook:
    """Delete a webhook, with what was still to be sent."""
    webhook_id = call.number("webhook_id")
    call.client.webhooks.delete(webhook_id)
    return DeletedWebhook(id=webhook_id)


def _object(view: WebhookView, secret: str | None = None) -> WebhookObject:
    return WebhookObject(
        id=view.webhook_id,
        url=view.url,
        archive=view.archive,
        kinds=list(view.kinds),
        owner=view.owner,
        created_at=view.created_at,
        secret=secret,
    )
