"""Send what is due to webhooks, signed, and again with growing delays until it is accepted.

The signature is that of the Standard Webhooks: HMAC-SHA256 of `id.timestamp.body` in the header `webhook-signature`.
A receiver may get a delivery twice, under the same `webhook-id`.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import logging
import random
import secrets
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import urllib3
from sqlalchemy import Engine

from ragllava.errors import RagllavaError, UsageError
from ragllava.jobs import views
from ragllava.json_records import to_json
from ragllava.settings import Settings
from ragllava.stages.webhooks.origins import require_allowed
from ragllava.stores.access import webhooks
from ragllava.stores.access.webhooks import LeasedDelivery
from ragllava.stores.database import in_transaction

log = logging.getLogger(__name__)

MAX_ATTEMPTS = 12  # in about six hours
_MARK = "whsec_"
_AT_ONCE = 8
_PER_TICK = 64
_LEASE_S = 120.0  # longer than all attempts of one call take
_FIRST_DELAY_S = 10.0
_TIMEOUT = urllib3.Timeout(connect=3.0, read=10.0)
_GONE = 410
_KEPT_S = 30 * 86_400.0


def new_secret() -> str:
    """A secret for a new webhook, which its owner sees once."""
    return _MARK + base64.b64encode(secrets.token_bytes(32)).decode()


def is_secret(secret: str) -> bool:
    """Whether webhooks can be signed by it: base64, with or without `whsec_`."""
    try:
        return bool(base64.b64decode(secret.removeprefix(_MARK), validate=True))
    except ValueError:
        return False


def deliver_due(engine: Engine, settings: Settings) -> int:
    """Send the deliveries that are due, a bounded number; returns how many were accepted. Safe to call concurrently."""
    leased = in_transaction(engine, webhooks.lease_due, _PER_TICK, _LEASE_S)
    if not leased:
        return 0
    in_transaction(engine, webhooks.delete_old, _KEPT_S)  # not at each tick: it reads the whole table
    with urllib3.PoolManager(timeout=_TIMEOUT, retries=False) as pool, ThreadPoolExecutor(_AT_ONCE) as threads:
        return sum(threads.map(lambda delivery: _deliver(engine, settings, pool, delivery), leased))


@dataclass(frozen=True, slots=True)
class WebhookPost:
    """What is sent where, signed by `secret`; `name` is its id, the same each time that it is sent."""

    url: str
    secret: str
    name: str
    body: bytes


def post_all(posts: Sequence[WebhookPost]) -> list[tuple[str | None, bool]]:
    """Send several at once; of each what went wrong, None for nothing, and whether a repetition is of no use."""
    with urllib3.PoolManager(timeout=_TIMEOUT, retries=False) as pool, ThreadPoolExecutor(_AT_ONCE) as threads:
        return list(threads.map(lambda post: _post(pool, post), posts))


def signed_headers(secret: str, name: str, body: bytes, timestamp: int) -> dict[str, str]:
    """The headers that identify and sign what is sent."""
    key = base64.b64decode(secret.removeprefix(_MARK))
    digest = hmac.new(key, f"{name}.{timestamp}.".encode() + body, hashlib.sha256).digest()
    return {
        "webhook-id": name,
        "webhook-timestamp": str(timestamp),
        "webhook-signature": f"v1,{base64.b64encode(digest).decode()}",
    }


def next_delay_s(attempts: int, jitter: random.Random) -> float | None:
    """Until the next attempt after so many; None: give up."""
    if attempts >= MAX_ATTEMPTS:
        return None
    return float(_FIRST_DELAY_S * 2 ** (attempts - 1) * jitter.uniform(0.8, 1.2))


def _deliver(engine: Engine, settings: Settings, pool: urllib3.PoolManager, delivery: LeasedDelivery) -> bool:
    retry_s = next_delay_s(delivery.attempts, random.Random())  # noqa: S311 - jitter, not a secret
    try:
        require_allowed(settings, delivery.url)  # the settings may have changed since
        body = json.dumps(_body(engine, delivery)).encode()
        post = WebhookPost(delivery.url, delivery.secret, f"delivery_{delivery.delivery_id}", body)
        error, is_final = _post(pool, post)
    except UsageError as refused:
        error, is_final = str(refused), True
    except RagllavaError as failed:
        error, is_final = str(failed), False
    facts = {"action": "webhook", "delivery": delivery.delivery_id, "job": delivery.job_id}
    if error is None:
        in_transaction(engine, webhooks.note_delivered, delivery.delivery_id)
        log.info("delivered", extra=facts)
        return True
    log.info(f"not delivered: {error}", extra=facts)
    in_transaction(engine, webhooks.note_failed, delivery, error, None if is_final else retry_s)
    return False


def _post(pool: urllib3.PoolManager, post: WebhookPost) -> tuple[str | None, bool]:
    """What went wrong, None for nothing; and whether a repetition is of no use."""
    headers = signed_headers(post.secret, post.name, post.body, int(time.time()))
    sent = {"content-type": "application/json", "user-agent": "ragllava", **headers}
    try:
        # A redirect would lead where nobody has allowed it; the answer is not read.
        answer = pool.request("POST", post.url, body=post.body, headers=sent, redirect=False, preload_content=False)
    except (urllib3.exceptions.HTTPError, OSError, ValueError) as error:
        return f"{type(error).__name__}: {error}"[:500], False
    answer.close()
    if 200 <= answer.status < 300:
        return None, False
    return f"the receiver answered with the status {answer.status}", answer.status == _GONE


def _body(engine: Engine, delivery: LeasedDelivery) -> Mapping[str, Any]:
    """The job as it is now. Raises NotFound for one that was removed."""
    job = in_transaction(engine, views.view, delivery.job_id)
    names = ("job", "kind", "name", "archive", "state", "total", "counts", "error", "created_at", "finished_at")
    shown = to_json(job.as_json())
    return {"type": "job.ended", "data": {name: shown[name] for name in names}}
