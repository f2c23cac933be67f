"""Other hosts that do not answer: pictures of questions, and the provider of tokens. They hold up nobody else."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from typing import Any

import pytest
import urllib3
from openai import OpenAI
from sqlalchemy import text

from ragllava.api import server
from ragllava.client import Client
from ragllava.client.access import attempts, provider_keys
from ragllava.client.access.provider_keys import ProviderKeys
from ragllava.errors import FetchNeeded, UsageError
from ragllava.settings import Settings
from ragllava.stages.answer import remote_pictures
from ragllava.stages.answer.remote_pictures import RemotePictures
from ragllava.stages.answer.slow_reads import SlowReads
from ragllava.stages.batches import process
from ragllava.stages.batches.process import process_batches
from ragllava.stores.database import in_transaction
from ragllava.stores.maintenance import faults
from tests.conftest import own_settings
from tests.support.api_server import Front, open_front, serving
from tests.support.holding import holding
from tests.support.oidc_provider import AUDIENCE, Provider, open_provider
from tests.support.waiting import wait_for

REMOTE = "https://pictures.invalid/barn.png"


@pytest.fixture(scope="module")
def provider() -> Iterator[Provider]:
    with open_provider() as provider:
        yield provider


@pytest.fixture(scope="module")
def front(services: Settings, template_database: str, provider: Provider) -> Iterator[Front]:
    chosen = {
        "api_picture_hosts": "pictures.invalid",
        "oidc_issuer": provider.issuer,
        "oidc_audience": AUDIENCE,
        "oidc_groups": "staff=ask",
    }
    with own_settings(services, template_database) as given, open_front(given.model_copy(update=chosen)) as front:
        yield front


@contextmanager
def narrow(front: Front, monkeypatch: pytest.MonkeyPatch, **others: int) -> Iterator[Front]:
    """A second server of the system, with two threads of each kind, and one for each way to send a picture."""
    places = {"THREADS": 2, "WAITING_THREADS": 2, "PROVIDER_THREADS": 2, "FETCHING_THREADS": len(WAYS)} | others
    for name, number in places.items():
        monkeypatch.setattr(server, name, number)
    with Client(front.settings, name="narrow", pool_size=8, for_tenants=True) as client, serving(client) as url:
        yield Front(url, front.office, front.client)


def ask(front: Front, key: str, *pictures: str) -> int:
    """The status of a question at once, perhaps with a picture."""
    parts = [{"type": "image_url", "image_url": {"url": address}} for address in pictures]
    said = [{"role": "user", "content": [{"type": "text", "text": "What color is the barn?"}, *parts]}]
    body = {"model": "ragllava/stamps", "messages": said}
    return front.call("POST", "/v1/chat/completions", key, json=body)[0]


def submit(front: Front, key: str, picture: str) -> int:
    """The status of a job of one question."""
    rows = [{"question": "What?", "picture": picture}]
    return front.call("POST", "/v1/jobs", key, json={"archive": "stamps", "questions": rows})[0]


def estimate(front: Front, key: str, picture: str) -> int:
    """The status of an estimate of such a job."""
    rows = [{"question": "What?", "picture": picture}]
    return front.call("POST", "/v1/estimates", key, json={"archive": "stamps", "questions": rows})[0]


def search(front: Front, key: str, picture: str) -> int:
    """The status of a search by a picture."""
    return front.call("POST", "/v1/archives/stamps/search", key, json={"image_url": picture})[0]


def send_file(front: Front, key: str, picture: str) -> int:
    """The status of a job of a file."""
    line = json.dumps({"question": "What?", "picture": picture})
    fields: dict[str, Any] = {"archive": "stamps", "file": ("q.jsonl", line)}
    sent = urllib3.request(
        "POST", f"{front.url}/v1/jobs/file", fields=fields, headers={"Authorization": f"Bearer {key}"}
    )
    return sent.status


WAYS: tuple[Callable[[Front, str, str], int], ...] = (ask, submit, send_file, estimate, search)


def test_hosts_of_pictures_that_are_silent_hold_up_no_other_call(front: Front, monkeypatch: pytest.MonkeyPatch) -> None:
    key, ways = front.key("ask"), iter([*WAYS, WAYS[0]])
    with narrow(front, monkeypatch) as few:

        def send() -> int:
            return next(ways)(few, key, REMOTE)

        silent = holding(monkeypatch, RemotePictures, "_address", send, asked=len(WAYS) + 1, held=len(WAYS))
        with silent as running:
            assert ask(few, key) == 200
            assert few.call("GET", "/v1/models", key)[0] == 200
            assert not any(call.done() for call in running)
        ended = Counter(call.result() for call in running)
    assert ended == {400: len(WAYS), 200: 1}, "the host is not known, and an estimate says so of its line"


def test_searches_that_wait_for_a_worker_hold_up_no_fetch(front: Front, monkeypatch: pytest.MonkeyPatch) -> None:
    key, office = front.key("ask"), front.office
    monkeypatch.setattr(RemotePictures, "fetch", lambda *_: fetched())
    waiting = text("SELECT count(*) FROM jobs WHERE kind = 'request' AND finished_at IS NULL")

    def fetched() -> bytes:
        if not remote_pictures.may_fetch():
            raise FetchNeeded
        return b"a picture"

    with narrow(front, monkeypatch, FETCHING_THREADS=1) as few, ThreadPoolExecutor(2) as threads:
        office.hold_up()
        try:
            running = [threads.submit(search, few, key, REMOTE) for _ in range(2)]
            with office.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
                wait_for("both searches to begin", lambda: connection.scalar(waiting) == 2, 60)
        finally:
            office.go_on()
        assert [call.result() for call in running] == [200, 200]


def make_batch(front: Front, key: str, *pictures: str) -> str:
    """A new batch of one question."""
    parts = [{"type": "image_url", "image_url": {"url": address}} for address in pictures]
    said = [{"role": "user", "content": [{"type": "text", "text": "What color is the barn?"}, *parts]}]
    body = {"model": "ragllava/stamps", "messages": said}
    line = json.dumps({"custom_id": "q", "method": "POST", "url": "/v1/chat/completions", "body": body})
    with OpenAI(base_url=f"{front.url}/v1", api_key=key, max_retries=0) as sdk:
        file = sdk.files.create(file=("q.jsonl", line.encode()), purpose="batch")
        return sdk.batches.create(input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h").id


def status_of(front: Front, key: str, batch_id: str) -> str:
    """What a batch is now."""
    return str(front.call("GET", f"/v1/batches/{batch_id}", key)[1]["status"])


def batch(front: Front, key: str, *pictures: str) -> str:
    """The status of a batch of one question, when it has ended."""
    made = make_batch(front, key, *pictures)
    wait_for("the end of the batch", lambda: status_of(front, key, made) in ("completed", "failed"), 60)
    return status_of(front, key, made)


def test_a_batch_with_a_picture_of_a_silent_host_holds_up_no_other(
    front: Front, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = front.key("ask")

    def send() -> int:
        return int(batch(front, key, REMOTE) == "failed")

    with holding(monkeypatch, RemotePictures, "_address", send, asked=1, held=1) as [slow]:
        assert batch(front, key) == "completed" and not slow.done()
    assert slow.result() == 1


def test_one_of_several_workers_fetches_the_pictures_of_a_batch(front: Front, monkeypatch: pytest.MonkeyPatch) -> None:
    key, office, made, other = front.key("ask"), front.office, list[str](), SlowReads()

    def send() -> int:
        made.append(make_batch(front, key, REMOTE))
        return 0

    with holding(monkeypatch, RemotePictures, "_address", send, asked=1, held=1) as [sent]:
        assert sent.result(60) == 0, "the maintenance worker may read the batch before its sender knows its name"
        subject = f"batch {made[0]}"
        assert office.slow_reads.has(subject)
        in_transaction(office.engine, faults.record, "batches", subject, "an earlier attempt", 60.0)
        assert process_batches(office.engine, office.settings, office.objects, other) == 0
        assert not other.has(subject), "the other worker fetches them as well"
        assert in_transaction(office.engine, faults.postponed, "batches") == {subject: False}, "it has not succeeded"
    wait_for("the end of the batch", lambda: status_of(front, key, made[0]) == "failed", 60)
    assert process_batches(office.engine, office.settings, office.objects, other) == 0


@pytest.mark.parametrize("first", ["in_progress", "failed"])
def test_the_first_of_two_readers_of_a_batch_decides(front: Front, monkeypatch: pytest.MonkeyPatch, first: str) -> None:
    """The picture is there for one of them, and not for the other; the first one has lost its claim."""
    key, office, made = front.key("ask"), front.office, list[str]()

    def is_there(*_: Any) -> bytes:
        return b"a picture"

    def is_away(*_: Any) -> Any:
        raise UsageError("the host did not send the picture in time")

    def send() -> int:
        made.append(make_batch(front, key, REMOTE))
        return 0

    monkeypatch.setattr(remote_pictures, "_received", is_away if first == "in_progress" else is_there)
    monkeypatch.setattr(RemotePictures, "_address", lambda *_: "192.0.2.1")
    office.hold_up()
    with (
        holding(monkeypatch, RemotePictures, "_address", send, asked=1, held=1) as [sent],
        monkeypatch.context() as other,
    ):
        assert sent.result(60) == 0
        other.setattr(RemotePictures, "fetch", is_there if first == "in_progress" else is_away)
        other.setattr(process, "locked_outside", lambda *_, **__: nullcontext(True))
        process_batches(office.engine, office.settings, office.objects, SlowReads())
    wait_for("the slower one", lambda: not office.slow_reads.has(f"batch {made[0]}"), 30)
    assert status_of(front, key, made[0]) == first
    with office.engine.connect() as connection:
        open_jobs = connection.scalar(text("SELECT count(*) FROM jobs WHERE finished_at IS NULL"))
    assert open_jobs == (1 if first == "in_progress" else 0)
    office.go_on()
    ended = "completed" if first == "in_progress" else "failed"
    wait_for("the end of the batch", lambda: status_of(front, key, made[0]) == ended, 60)


def test_a_provider_that_is_silent_holds_up_nobody_whose_key_is_there(
    front: Front, provider: Provider, monkeypatch: pytest.MonkeyPatch
) -> None:
    key, token = front.key("ask"), provider.token()
    with narrow(front, monkeypatch) as few:
        assert ask(few, token) == 200, "the server has the key of the provider now"
        unknown = provider.token(key_id="two")
        monkeypatch.setattr(provider_keys, "LONGEST_PAUSE_S", 0.0)
        silent = holding(monkeypatch, ProviderKeys, "_ask", lambda: ask(few, unknown), asked=3, held=1)
        with silent as running:
            assert (ask(few, key), ask(few, token), ask(few, "a.b.c")) == (200, 200, 401)
            assert not any(call.done() for call in running)
        assert {call.result() for call in running} == {401}


def test_a_provider_that_has_never_answered_is_not_asked_for_each_request(
    front: Front, provider: Provider, monkeypatch: pytest.MonkeyPatch
) -> None:
    key, token, before = front.key("ask"), provider.token(), provider.asked_for_configuration
    monkeypatch.setattr(attempts, "monotonic", lambda: 0.0)
    monkeypatch.setattr(provider, "instead", (503, {"error": "starting"}))
    with narrow(front, monkeypatch) as few:
        answers = [few.call("GET", "/v1/models", each)[0] for each in (token, token, key, token)]
    assert answers == [503, 503, 200, 503]
    assert provider.asked_for_configuration == before + 1
