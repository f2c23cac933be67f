"""The receiver as a real server on a real database, and MinIO's Redis list."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from typing import Any

import pytest
import redis
import uvicorn
from pydantic import SecretStr
from sqlalchemy import Engine, text
from urllib3 import PoolManager

from ragllava.api import serving
from ragllava.api.receiver import MAX_BODY_BYTES, make_app, needed_settings
from ragllava.api.serving import MAX_HEADER_BYTES, server_config
from ragllava.errors import SettingsError
from ragllava.settings import Settings
from ragllava.stages.buckets.received import drain_list
from ragllava.stores.archives import archive
from ragllava.stores.buckets import bindings, change_events
from ragllava.stores.buckets.bindings import BindingRole
from ragllava.stores.database import make_engine
from tests.support.waiting import wait_for

TOKEN = "a-long-token"


@dataclass(frozen=True)
class Post:
    """Sends to a receiver; returns the status and the JSON of its answer."""

    address: str

    def __call__(self, body: bytes, token: str | None = TOKEN) -> tuple[int, Any]:
        headers = {"Authorization": f"Bearer {token}"} if token is not None else {}
        with PoolManager(timeout=30, retries=False) as pool:
            response = pool.request("POST", f"http://{self.address}/events", body=body, headers=headers)
            return response.status, response.json()


def message(*keys: str, bucket: str = "cards") -> bytes:
    """An S3 notification."""
    records = [{"s3": {"bucket": {"name": bucket}, "object": {"key": key}}} for key in keys]
    return json.dumps({"Records": records}).encode()


@pytest.fixture
def bound(engine: Engine) -> None:
    with engine.begin() as connection:
        archive_id = archive.ensure_archive(connection, "cards").archive_id
        bindings.bind(connection, archive_id, BindingRole.PICTURES, "cards", "in/", {})


@pytest.fixture
def post(settings: Settings, engine: Engine, bound: None) -> Iterator[Post]:
    listening = socket.socket()
    listening.bind(("127.0.0.1", 0))
    own = make_engine(settings.require_database(), name="receiver")
    app = make_app(own, needed_settings(settings.model_copy(update={"events_token": SecretStr(TOKEN)})))
    server = uvicorn.Server(server_config(app, "127.0.0.1", 0))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    try:
        wait_for("the receiver to start", lambda: server.started, 30)
        yield Post(f"127.0.0.1:{listening.getsockname()[1]}")
    finally:
        server.should_exit = True
        thread.join(30)
        listening.close()
        own.dispose()


def get(address: str, path: str) -> int:
    """The status of a page, on a connection of its own."""
    with PoolManager(timeout=30, retries=False) as pool:
        return pool.request("GET", f"http://{address}/{path}").status


def named(engine: Engine) -> list[tuple[str, str, int]]:
    with engine.begin() as connection:
        rows = connection.execute(text("SELECT bucket, key, repeats FROM change_events ORDER BY bucket, key"))
        return [(row.bucket, row.key, row.repeats) for row in rows]


def totals(engine: Engine) -> dict[str, int]:
    with engine.begin() as connection:
        return change_events.totals(connection)


def test_what_was_answered_with_200_is_written(post: Post, engine: Engine) -> None:
    assert post(message("in/a.png", "in/b+c.png", "out/d.png")) == (200, {"change_events": 2})
    assert named(engine) == [("cards", "in/a.png", 0), ("cards", "in/b c.png", 0)]
    assert totals(engine) == {"received": 3, "unbound": 1}


def test_duplicate_and_forged_events_change_nothing_and_are_counted(post: Post, engine: Engine) -> None:
    assert post(message("in/a.png"))[0] == 200
    with ThreadPoolExecutor(8) as threads:
        forged = list(threads.map(lambda number: post(message(f"in/{number}.png"), "guessed")[0], range(200)))
        repeated = list(threads.map(lambda _: post(message("in/a.png"))[0], range(100)))
    assert set(forged) == {401} and set(repeated) == {200}
    assert post(message(*["in/a.png"] * 5_000))[0] == 200
    assert [(bucket, key) for bucket, key, _ in named(engine)] == [("cards", "in/a.png")]
    wait_for("the count of refused messages", lambda: totals(engine).get("refused") == 200, 30)
    assert totals(engine) == {"received": 5_101, "repeated": 5_100, "refused": 200}


def test_refused_messages_are_answered_and_counted(post: Post, engine: Engine, settings: Settings) -> None:
    assert post(message("in/a.png"), None)[0] == 401
    assert post(message("in/a.png"), "")[0] == 401
    status, answer = post(b"{}")
    assert status == 400 and "not a notification of an object store" in answer["error"]
    assert post(b" " * (MAX_BODY_BYTES + 1))[0] == 413
    assert post(message("in/a.png", bucket=settings.s3_bucket)) == (200, {"change_events": 0})
    assert named(engine) == []
    counted = {"refused": 2, "unreadable": 2, "ignored": 1}
    wait_for("the counts", lambda: totals(engine) == counted, 30)


def test_health_is_that_of_the_database(post: Post, settings: Settings) -> None:
    assert get(post.address, "healthz") == 200
    assert get(post.address, "nowhere") == 404


def closed_by(address: str, *pieces: bytes) -> bytes:
    """What the receiver answers before it closes a connection that sends these pieces, the last one again and again."""
    host, port = address.split(":")
    with socket.create_connection((host, int(port)), timeout=30) as client:
        for piece in pieces:
            client.sendall(piece)
        answer = bytearray()
        client.settimeout(0.1)
        for _ in range(300):
            try:
                received = client.recv(1_000)
            except TimeoutError:
                with suppress(OSError):  # the end of the connection, which is read next
                    client.sendall(b"".join(pieces[-1:]))
                continue
            except OSError:
                return bytes(answer)
            if not received:
                return bytes(answer)
            answer += received
    raise AssertionError("the connection stays open")


def test_a_client_that_sends_no_complete_header_is_disconnected(post: Post, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serving, "HEADERS_S", 0.5)
    start = b"POST /events HTTP/1.1\r\nHost: receiver\r\n"
    assert closed_by(post.address) == b""
    assert closed_by(post.address, start, b"X-Slow: 1\r\n") == b""
    answered = closed_by(post.address, b"GET /healthz HTTP/1.1\r\nHost: receiver\r\n\r\n", start, b"X-Slow: 1\r\n")
    assert answered.startswith(b"HTTP/1.1 200")
    assert post(message("in/a.png"))[0] == 200


def test_a_long_header_is_refused_and_idle_connections_keep_nobody_out(
    post: Post, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serving, "HEADERS_S", 60.0)  # nobody is disconnected for being slow
    start = b"POST /events HTTP/1.1\r\nHost: receiver\r\nX-Long: "
    assert closed_by(post.address, start, b"x" * (MAX_HEADER_BYTES // 2)).startswith(b"HTTP/1.1 400")
    host, port = post.address.split(":")
    with PoolManager(timeout=30, retries=False) as pool, ExitStack() as opened:
        assert pool.request("GET", f"http://{post.address}/healthz").status == 200
        for _ in range(3 * serving.MAX_CONNECTIONS):
            opened.enter_context(socket.create_connection((host, int(port))))
        assert get(post.address, "healthz") == 200
        assert post(message("in/a.png"))[0] == 200


def test_the_receiver_keeps_no_secret_that_it_does_not_need(settings: Settings) -> None:
    names = {name for name, field in Settings.model_fields.items() if "SecretStr" in str(field.annotation)}
    keys = {name: "key" for name in Settings.model_fields if name.endswith("access_key")}
    kept = needed_settings(settings.model_copy(update=dict.fromkeys(names, SecretStr(TOKEN)) | keys))
    assert {name for name in names | keys.keys() if getattr(kept, name) is not None} == {"database_url", "events_token"}


def test_without_a_token_there_is_no_receiver(engine: Engine, settings: Settings) -> None:
    with pytest.raises(SettingsError, match="RAGLLAVA_EVENTS_TOKEN"):
        make_app(engine, settings.model_copy(update={"events_token": None}))


def test_entries_of_a_redis_list_become_change_events_and_are_removed(
    bound: None, engine: Engine, settings: Settings
) -> None:
    listening = settings.model_copy(update={"events_list": "minio-events"})
    entries = [
        json.dumps([{"Event": json.loads(message(f"in%2F{number}.png"))["Records"], "EventTime": "t"}])
        for number in range(1_200)
    ]
    with redis.Redis.from_url(settings.require_redis()) as client:
        client.rpush("minio-events", *entries, entries[0], "nonsense")
        with ThreadPoolExecutor(2) as threads:  # two ticks at once
            list(threads.map(lambda _: drain_list(engine, listening), range(2)))
        assert client.llen("minio-events") == 0
    assert len(named(engine)) == 1_200
    assert drain_list(engine, listening) == 0
    assert totals(engine)["unreadable"] >= 1
