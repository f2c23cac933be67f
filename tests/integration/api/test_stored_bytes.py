"""The quota of stored bytes, when many requests of one caller store something at the same moment."""

from __future__ import annotations

import base64
import itertools
from types import ModuleType
from typing import Any

import pytest
import urllib3

from ragllava.stages.answer import asked_pictures
from ragllava.stores.access.usage import stored_bytes
from ragllava.stores.database import in_transaction
from ragllava.stores.objects import ObjectStore
from tests.support.api_server import Front
from tests.support.holding import holding
from tests.support.plans import watching_rows

SIZE = 300_000  # three of these fit into 1 MiB
ASKED, FIT = 8, 3

NOTING = (asked_pictures, "_announce")
WAYS: dict[str, tuple[type | ModuleType, str]] = {
    "file": (ObjectStore, "put_stream"),
    "chat": NOTING,
    "search": NOTING,
    "rerank": NOTING,
}


def send(front: Front, key: str, way: str, data: bytes) -> int:
    """Store this content in a request of its own; the status."""
    address = f"data:image/png;base64,{base64.b64encode(data).decode()}"
    if way == "file":
        form: dict[str, Any] = {"purpose": "batch", "file": ("q.jsonl", data)}
        headers = {"Authorization": f"Bearer {key}"}
        return urllib3.request("POST", f"{front.url}/v1/files", fields=form, headers=headers, retries=False).status
    part = {"type": "image_url", "image_url": {"url": address}}
    bodies: dict[str, tuple[str, dict[str, Any]]] = {
        "chat": ("/v1/chat/completions", {"messages": [{"role": "user", "content": [part]}]}),
        "search": ("/v1/archives/stamps/search", {"image_url": address}),
        "rerank": ("/rerank", {"query": "x", "documents": [{"image": address}]}),
        "job": ("/v1/jobs", {"archive": "stamps", "questions": [{"question": "What?", "picture": address}]}),
    }
    path, body = bodies[way]
    named = {} if way in ("search", "job") else {"model": "ragllava/stamps"}
    return front.call("POST", path, key, json=body | named)[0]


@pytest.mark.parametrize("way", WAYS)
def test_requests_at_once_do_not_exceed_the_quota(front: Front, monkeypatch: pytest.MonkeyPatch, way: str) -> None:
    key, numbers = front.key("ask", ["stamps"], stored_mib=1), itertools.count(1)
    place, method = WAYS[way]
    with holding(
        monkeypatch,
        place,
        method,
        lambda: send(front, key, way, bytes([next(numbers)]) * SIZE),
        asked=ASKED,
        held=ASKED,  # every one has passed the first look at the quota
    ) as sent:
        pass
    assert sorted(each.result() for each in sent) == [200] * FIT + [429] * (ASKED - FIT)
    [view] = front.client.access.list_keys()
    assert in_transaction(front.office.engine, stored_bytes, f"key {view.prefix}") == FIT * SIZE
    if way == "file":
        assert len(list(front.office.objects.list_objects("uploads/"))) == FIT, "the bytes of refused files are gone"


def test_what_is_stored_already_passes_when_the_quota_is_used_up(front: Front) -> None:
    key, full = front.key("ask", ["stamps"], stored_mib=1), bytes(2**20)
    for way in ("chat", "search", "rerank", "job"):
        assert send(front, key, way, full) in (200, 201), way
        assert send(front, key, way, b"more") == 429, way


def test_a_file_with_many_pictures_adds_up_what_is_stored_once(front: Front) -> None:
    key = front.key("ask", ["stamps"], stored_mib=1)
    rows = [
        {"question": "What?", "picture": f"data:image/png;base64,{base64.b64encode(number.to_bytes(2)).decode()}"}
        for number in range(200)
    ]
    with watching_rows(but=front.office.engine) as visited:
        assert front.call("POST", "/v1/jobs", key, json={"archive": "stamps", "questions": rows})[0] == 201
    sums = [look.rows for look in visited if "sum(asked_pictures.size_bytes)" in look.statement]
    assert len(sums) == 1 and len(rows) <= sums[0] <= 4 * len(rows), "one sum, by at most three nodes of a plan"


@pytest.mark.parametrize(("pictures", "status"), [(10, 201), (11, 429)])
def test_all_pictures_of_a_file_count(front: Front, pictures: int, status: int) -> None:
    key = front.key("ask", ["stamps"], stored_mib=1)
    rows = [
        {
            "question": f"What {number}?",
            "picture": f"data:image/png;base64,{base64.b64encode(bytes([number]) * 100_000).decode()}",
        }
        for number in range(pictures)
    ]
    assert front.call("POST", "/v1/jobs", key, json={"archive": "stamps", "questions": rows})[0] == status
