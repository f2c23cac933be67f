"""Other hosts that do not answer: pictures of questions, and the provider of tokens. They hold up nobody else."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import jwt
import pytest
import urllib3
from openai import OpenAI

from ragllava.api import server
from ragllava.client import Client
from ragllava.client.access.tokens import TokenReader
from ragllava.settings import Settings
from ragllava.stages.answer.remote_pictures import RemotePictures
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
def narrow(front: Front, monkeypatch: pytest.MonkeyPatch) -> Iterator[Front]:
    """A second server of the system, with two threads of each kind, and one for each way to send a picture."""
    places = {"THREADS": 2, "WAITING_THREADS": 2, "PROVIDER_THREADS": 2, "FETCHING_THREADS": len(WAYS)}
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
    key, ways = front.key("ask"), iter([*WAYS, ask])
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


def batch(front: Front, key: str, *pictures: str) -> str:
    """The status of a batch of one question, when it has ended."""
    parts = [{"type": "image_url", "image_url": {"url": address}} for address in pictures]
    said = [{"role": "user", "content": [{"type": "text", "text": "What color is the barn?"}, *parts]}]
    body = {"model": "ragllava/stamps", "messages": said}
    line = json.dumps({"custom_id": "q", "method": "POST", "url": "/v1/chat/completions", "body": body})
    with OpenAI(base_url=f"{front.url}/v1", api_key=key, max_retries=0) as sdk:
        file = sdk.files.create(file=("q.jsonl", line.encode()), purpose="batch")
        made = sdk.batches.create(input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h")
        wait_for("the end of the batch", lambda: sdk.batches.retrieve(made.id).status in ("completed", "failed"), 60)
        return sdk.batches.retrieve(made.id).status


def test_a_batch_with_a_picture_of_a_silent_host_holds_up_no_other(
    front: Front, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = front.key("ask")

    def send() -> int:
        return int(batch(front, key, REMOTE) == "failed")

    with holding(monkeypatch, RemotePictures, "_address", send, asked=1, held=1) as [slow]:
        assert batch(front, key) == "completed" and not slow.done()
    assert slow.result() == 1


def token_of(provider: Provider, key_id: str) -> str:
    """A token that says it is signed by another key."""
    return jwt.encode(jwt.decode(provider.token(), options={"verify_signature": False}), provider.key, "RS256",
                      headers={"kid": key_id})  # fmt: skip


def test_a_provider_that_is_silent_holds_up_nobody_whose_key_is_there(
    front: Front, provider: Provider, monkeypatch: pytest.MonkeyPatch
) -> None:
    key, token = front.key("ask"), provider.token()
    with narrow(front, monkeypatch) as few:
        assert ask(few, token) == 200, "the server has the key of the provider now"
        unknown = token_of(provider, "two")
        silent = holding(monkeypatch, TokenReader, "_provider_keys", lambda: ask(few, unknown), asked=3, held=2)
        with silent as running:
            assert (ask(few, key), ask(few, token), ask(few, "a.b.c")) == (200, 200, 401)
            assert not any(call.done() for call in running)
        assert {call.result() for call in running} == {401}
