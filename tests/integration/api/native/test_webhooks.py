"""Webhooks: signed, repeated until they are accepted, and only to hosts that the settings allow."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator

import pytest
from sqlalchemy import Engine, text

from ragllava.client import Client, JobKind
from ragllava.errors import UsageError
from ragllava.settings import Settings
from ragllava.stages.results.finalize import publish_missing_results
from ragllava.stages.webhooks.deliver import MAX_ATTEMPTS, deliver_due, next_delay_s
from ragllava.stages.webhooks.origins import require_allowed
from ragllava.stores.access import webhooks
from ragllava.stores.database import in_transaction
from ragllava.stores.objects import ObjectStore
from tests.support.api_server import open_front
from tests.support.job_rows import Desk
from tests.support.web_receiver import Receiver, check_signature, receiving


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with receiving() as receiver:
        yield receiver


@pytest.fixture
def desk(engine: Engine, settings: Settings, receiver: Receiver) -> Desk:
    # Workers are taken for gone after three ticks, and nobody ticks.
    desk = Desk(engine, settings.model_copy(update={"webhook_hosts": receiver.address, "tick_s": 600.0}))
    desk.live_worker()
    return desk


@pytest.fixture
def client(desk: Desk) -> Iterator[Client]:
    with Client(desk.settings) as client:
        client.archives.create("test")
        client.archives.create("other")
        yield client


def end_a_job(desk: Desk) -> int:
    job_id = desk.questions_job(2, 2)
    desk.drain()
    publish_missing_results(desk.engine, ObjectStore(desk.settings))
    return job_id


def make_due(desk: Desk) -> None:
    with desk.engine.begin() as connection:
        connection.execute(text("UPDATE deliveries SET not_before = now()"))


def times_given_up(client: Client) -> float:
    """What the metric shows."""
    numbers = {reading.metric.name: reading.samples for reading in client.metrics.read()}
    [sample] = numbers["ragllava_webhooks_given_up_total"]
    return sample.number


def test_the_end_of_a_job_is_told_once_and_signed(desk: Desk, client: Client, receiver: Receiver) -> None:
    early = end_a_job(desk)
    hook, secret = client.webhooks.create("me", "test", f"{receiver.address}/hook?a=1", [JobKind.ANSWER])
    client.webhooks.create("me", "other", f"{receiver.address}/other", [JobKind.ANSWER])
    client.webhooks.create("me", None, f"{receiver.address}/ingests", [JobKind.INGEST])
    job_id = end_a_job(desk)
    assert deliver_due(desk.engine, desk.settings) == 1
    [(headers, body)] = receiver.received
    told = json.loads(body)
    assert told["type"] == "job.ended" and early != job_id
    assert (told["data"]["job"], told["data"]["state"], told["data"]["counts"]) == (
        job_id,
        "completed",
        {"answered": 2},
    )

    check_signature(secret, headers, body)

    publish_missing_results(desk.engine, ObjectStore(desk.settings))
    make_due(desk)
    assert deliver_due(desk.engine, desk.settings) == 0 and len(receiver.received) == 1
    [line] = client.webhooks.deliveries(hook.webhook_id)
    assert (line.state, line.attempts, line.error) == ("delivered", 1, None)


def test_a_refused_delivery_is_repeated_under_the_same_id(desk: Desk, client: Client, receiver: Receiver) -> None:
    hook, _ = client.webhooks.create("me", "test", f"{receiver.address}/hook", [JobKind.ANSWER])
    receiver.statuses += [500, 302]
    end_a_job(desk)
    for attempt in range(1, 4):
        accepted = deliver_due(desk.engine, desk.settings)
        [line] = client.webhooks.deliveries(hook.webhook_id)
        assert (accepted, line.attempts) == (int(attempt == 3), attempt)
        assert deliver_due(desk.engine, desk.settings) == 0  # not before its time
        make_due(desk)
    assert len({headers["webhook-id"] for headers, _ in receiver.received}) == 1
    assert len(receiver.received) == 3  # the redirect led nowhere


def test_a_delivery_is_given_up_after_its_last_attempt(desk: Desk, client: Client, receiver: Receiver) -> None:
    hook, _ = client.webhooks.create("me", "test", f"{receiver.address}/hook", [JobKind.ANSWER])
    end_a_job(desk)
    with desk.engine.begin() as connection:
        connection.execute(text("UPDATE deliveries SET attempts = :most"), {"most": MAX_ATTEMPTS - 1})
    receiver.statuses.append(503)
    assert times_given_up(client) == 0
    deliver_due(desk.engine, desk.settings)
    [line] = client.webhooks.deliveries(hook.webhook_id)
    assert (line.state, line.error) == ("given_up", "the receiver answered with the status 503")
    make_due(desk)
    assert deliver_due(desk.engine, desk.settings) == 0 and times_given_up(client) == 1


def test_a_host_that_is_not_allowed_any_more_gets_nothing(desk: Desk, client: Client, receiver: Receiver) -> None:
    hook, _ = client.webhooks.create("me", "test", f"{receiver.address}/hook", [JobKind.ANSWER])
    end_a_job(desk)
    deliver_due(desk.engine, desk.settings.model_copy(update={"webhook_hosts": "https://example.org"}))
    [line] = client.webhooks.deliveries(hook.webhook_id)
    assert line.state == "given_up" and receiver.received == [] and times_given_up(client) == 1


def test_a_sender_that_is_too_late_gives_nothing_up(desk: Desk, client: Client, receiver: Receiver) -> None:
    hook, _ = client.webhooks.create("me", "test", f"{receiver.address}/hook", [JobKind.ANSWER])
    end_a_job(desk)
    [late] = in_transaction(desk.engine, webhooks.lease_due, 10, 0.0)
    receiver.statuses.append(503)
    for accepted in (0, 1):
        make_due(desk)
        assert deliver_due(desk.engine, desk.settings) == accepted
        for retry_s in (60.0, None):
            in_transaction(desk.engine, webhooks.note_failed, late, "the session broke", retry_s)
        [line] = client.webhooks.deliveries(hook.webhook_id)
        assert line.state == ("delivered" if accepted else "waiting") and line.error != "the session broke"
    assert times_given_up(client) == 0


def test_a_killed_sender_loses_nothing(desk: Desk, client: Client, receiver: Receiver) -> None:
    client.webhooks.create("me", "test", f"{receiver.address}/hook", [JobKind.ANSWER])
    end_a_job(desk)
    assert len(in_transaction(desk.engine, webhooks.lease_due, 10, 60.0)) == 1  # and it was killed before it sent
    assert deliver_due(desk.engine, desk.settings) == 0
    make_due(desk)
    assert deliver_due(desk.engine, desk.settings) == 1 and len(receiver.received) == 1


def test_the_delays_grow_and_end() -> None:
    jitter = random.Random(0)
    delays = [next_delay_s(attempts, jitter) for attempts in range(1, MAX_ATTEMPTS + 1)]
    assert delays[-1] is None
    known = [delay for delay in delays if delay is not None]
    assert known == sorted(known) and 8 <= known[0] <= 12 and 3 <= sum(known) / 3_600 <= 8


ALLOWED = "https://hooks.example.org, http://10.0.0.5:8080"


@pytest.mark.parametrize(
    "url", ["https://hooks.example.org/a?b", "https://HOOKS.example.org:443", "http://10.0.0.5:8080/"]
)
def test_an_allowed_origin_is_allowed(url: str) -> None:
    require_allowed(Settings(webhook_hosts=ALLOWED), url)


@pytest.mark.parametrize(
    "url",
    [
        "http://hooks.example.org/",
        "https://hooks.example.org:8443/",
        "https://hooks.example.org.evil.org/",
        "https://hooks.example.org@evil.org/",
        "https://evil.org/#@hooks.example.org",
        "https://evil.org\\@hooks.example.org/",
        "https://user@hooks.example.org/",
        "http://10.0.0.5/",
        "http://169.254.169.254/",
        "file:///etc/passwd",
        "//hooks.example.org/",
        "https://hooks.example.org:x/",
        "https://[::1",
        "",
    ],
)
def test_no_other_origin_is_allowed(url: str) -> None:
    with pytest.raises(UsageError, match="RAGLLAVA_WEBHOOK_HOSTS"):
        require_allowed(Settings(webhook_hosts=ALLOWED), url)
    with pytest.raises(UsageError):
        require_allowed(Settings(), "https://hooks.example.org/")


def test_webhooks_are_made_listed_and_deleted_through_the_api(settings: Settings, receiver: Receiver) -> None:
    with open_front(settings.model_copy(update={"webhook_hosts": receiver.address})) as front:
        key, other = front.key("write", ["stamps"]), front.key("write", ["coins"])
        status, made, _ = front.call(
            "POST", "/v1/webhooks", key, json={"url": f"{receiver.address}/", "archive": "stamps"}
        )
        assert (status, made["kinds"]) == (201, ["answer", "ingest"]) and made["secret"].startswith("whsec_")
        path = f"/v1/webhooks/{made['id']}"
        assert front.call("GET", path, key)[1]["secret"] is None
        assert front.call("GET", f"{path}/deliveries", key)[1]["data"] == []
        assert front.call("GET", path, other)[0] == 404 and front.call("GET", "/v1/webhooks", other)[1]["data"] == []
        assert front.call("POST", "/v1/webhooks", key, json={"url": "https://evil.org/", "archive": "stamps"})[0] == 400
        assert front.call("POST", "/v1/webhooks", key, json={"url": f"{receiver.address}/"})[0] == 403
        assert front.call("DELETE", path, other)[0] == 404
        assert front.call("DELETE", path, key)[0] == 200 and front.call("DELETE", path, key)[0] == 404
