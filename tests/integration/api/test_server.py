"""The server as a process: limits, its memory with large files, what it does when it is stopped, cut or killed."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx
import openai
import psutil
import pytest
from openai import OpenAI
from sqlalchemy import func, select

from ragllava.api import bodies
from ragllava.api.server import THREADS
from ragllava.client import Client
from ragllava.client.access.access import Access
from ragllava.client.questions import Questions
from ragllava.errors import ServiceUnavailable
from ragllava.lab.bench.processes import peak_mib
from ragllava.local.service import http_get
from ragllava.settings import Settings
from ragllava.stores.archives import archive
from ragllava.stores.database import in_transaction
from ragllava.stores.schema import batches, uploads
from ragllava.whole_files import file_sha256
from tests.support.api_server import Front, make_key
from tests.support.holding import holding
from tests.support.prometheus_server import kept_port
from tests.support.waiting import wait_for

MIB = 2**20


@pytest.fixture
def plain(settings: Settings) -> Iterator[Client]:
    with Client(settings, name="test") as client:
        in_transaction(client.engine, archive.ensure_archive, "stamps")
        yield client


@contextmanager
def process(environment: dict[str, str], *options: str) -> Iterator[tuple[str, psutil.Process]]:
    """`ragllava serve` on a free port."""
    with kept_port() as port:
        command = [sys.executable, "-m", "ragllava", "serve", "--port", str(port), *options]
        child = subprocess.Popen(command, env=os.environ | environment)
        try:
            url = f"http://127.0.0.1:{port}"

            def answers() -> bool:
                assert child.poll() is None
                with suppress(ServiceUnavailable):
                    return http_get(f"{url}/healthz").status == 200
                return False

            wait_for("the server", answers)
            yield url, psutil.Process(child.pid)
        finally:
            child.kill()
            child.wait()


def test_a_file_of_200_mb_passes_through_little_memory(
    plain: Client, environment: dict[str, str], tmp_path: Path
) -> None:
    path, copy = tmp_path / "large.jsonl", tmp_path / "copy.jsonl"
    line = b'{"custom_id": "%06d", "text": "' + b"x" * 4_000 + b'"}\n'
    with path.open("wb") as file:
        for number in range(50_000):
            file.write(line % number)
    assert path.stat().st_size > 200_000_000
    with process(environment) as (url, server), OpenAI(base_url=f"{url}/v1", api_key=make_key(plain, "ask")) as sdk:
        with path.open("rb") as file:
            stored = sdk.files.create(file=file, purpose="batch", timeout=120)
        with sdk.files.with_streaming_response.content(stored.id) as answer:
            answer.stream_to_file(copy)
        peak = peak_mib(server)
    assert stored.bytes == path.stat().st_size
    print(f"at most {peak} MiB of memory")
    digest = [file_sha256(each) for each in (path, copy)]
    assert digest[0] == digest[1]
    with plain.engine.connect() as connection:
        row = connection.execute(select(uploads)).one()
    assert (row.lines, row.sha256) == (50_000, digest[0])
    assert peak < 300


def test_it_refuses_to_be_reached_from_elsewhere_without_a_key(plain: Client, environment: dict[str, str]) -> None:
    command = [sys.executable, "-m", "ragllava", "serve", "--host", "0.0.0.0"]
    refused = subprocess.run(
        command, env=os.environ | environment, capture_output=True, text=True, timeout=60, check=False
    )
    assert refused.returncode == 1 and "ragllava keys create" in refused.stderr
    make_key(plain, "read")
    with process(environment, "--host", "0.0.0.0") as (url, _):
        assert httpx.get(f"{url}/healthz", timeout=60).status_code == 200


def test_it_needs_the_role_of_its_own(environment: dict[str, str]) -> None:
    without = {name: value for name, value in environment.items() if name != "RAGLLAVA_API_DATABASE_URL"}
    command = [sys.executable, "-m", "ragllava", "serve"]
    refused = subprocess.run(command, env=os.environ | without, capture_output=True, text=True, timeout=60, check=False)
    assert refused.returncode == 1 and "RAGLLAVA_API_DATABASE_URL" in refused.stderr


def test_killed_in_an_upload_and_in_a_create_nothing_is_there_twice(plain: Client, environment: dict[str, str]) -> None:
    key = make_key(plain, "ask")
    content = b'{"custom_id": "a", "method": "POST", "url": "/v1/responses", "body": {"input": "?"}}'
    for _ in range(3):
        with process(environment) as (url, server), open_sdk(url, key) as sdk:
            file_id = sdk.files.create(
                file=("q.jsonl", content), purpose="batch", extra_headers={"x-stainless-retry-count": "1"}
            ).id
            killer = threading.Timer(0.02, server.kill)
            killer.start()
            with pytest.raises(openai.APIConnectionError):
                while True:
                    create(sdk, file_id)
            killer.join()
    with process(environment) as (url, _), open_sdk(url, key) as sdk:
        create(sdk, file_id)
    with plain.engine.connect() as connection:
        assert connection.execute(select(func.count()).select_from(batches)).scalar_one() == 1
        assert connection.execute(select(func.count()).select_from(uploads)).scalar_one() == 1


def open_sdk(url: str, key: str) -> OpenAI:
    return OpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0)


def create(sdk: OpenAI, file_id: str) -> None:
    """As the SDK repeats it."""
    sdk.batches.create(
        input_file_id=file_id,
        endpoint="/v1/responses",
        completion_window="24h",
        metadata={"archive": "stamps"},
        extra_headers={"x-stainless-retry-count": "1"},
    )


def test_sigterm_lets_an_answer_end(plain: Client, environment: dict[str, str]) -> None:
    key = make_key(plain, "ask")
    with process(environment) as (url, server):
        with OpenAI(base_url=f"{url}/v1", api_key=key) as sdk:
            file_id = sdk.files.create(file=("x.bin", os.urandom(30 * MIB)), purpose="user_data").id
            with sdk.files.with_streaming_response.content(file_id) as answer:
                pieces = answer.iter_bytes(MIB)
                size = len(next(pieces))
                server.send_signal(signal.SIGTERM)
                size += sum(map(len, pieces))
            assert size == 30 * MIB
        wait_for("the server to stop", lambda: not server.is_running() or server.status() == "zombie", 30)


def test_limits_are_answered_with_their_number(front: Front, monkeypatch: pytest.MonkeyPatch) -> None:
    key = front.key()
    monkeypatch.setattr(bodies, "_DISCARDING_S", 60.0)  # the client sends all of it, however slowly
    for path, most in (("/v1/batches", "16,777,216"), ("/v1/chat/completions", "33,554,432")):
        status, body, _ = front.call("POST", path, key, json={"model": "x" * (33 * MIB)})
        assert status == 413 and f"{most} bytes" in body["error"]["message"]
    host, _, port = front.url.removeprefix("http://").partition(":")
    head = f"POST /v1/files HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer {key}\r\n"
    form = "Content-Type: multipart/form-data; boundary=x\r\nContent-Length: 99999999999\r\n\r\n"
    monkeypatch.setattr(bodies, "_DISCARDING_S", 0.1)  # nothing more comes
    with socket.create_connection((host, int(port)), timeout=60) as large:
        large.sendall((head + form).encode())
        answer = large.recv(4_000).decode()
        if answer.endswith("\r\n\r\n"):  # head and body may come apart
            answer += large.recv(4_000).decode()
    assert answer.startswith("HTTP/1.1 413") and "537,919,488" in answer


def test_a_body_that_stops_coming_is_given_up(front: Front, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bodies, "_PIECE_S", 0.2)
    host, _, port = front.url.removeprefix("http://").partition(":")
    head = f"Host: {host}\r\nAuthorization: Bearer {front.key()}\r\nContent-Length: 1000\r\nContent-Type: "
    form = 'multipart/form-data; boundary=x\r\n\r\n--x\r\ncontent-disposition: form-data; name="file"'
    for path, rest in (("chat/completions", 'application/json\r\n\r\n{"model"'), ("files", form)):
        with socket.create_connection((host, int(port)), timeout=60) as stopping:
            stopping.sendall(f"POST /v1/{path} HTTP/1.1\r\n{head}{rest}".encode())
            assert stopping.recv(4_000).startswith(b"HTTP/1.1 408")


def test_what_goes_wrong_inside_stays_inside(front: Front, monkeypatch: pytest.MonkeyPatch) -> None:
    from ragllava.client.access.batches import Batches

    def fail(self: object, page: object) -> None:
        raise RuntimeError("secret of the server")

    monkeypatch.setattr(Batches, "list", fail)
    status, body, headers = front.call("GET", "/v1/batches", front.key(), headers={"x-request-id": "mine-1"})
    assert status == 500 and "secret" not in str(body) and headers["x-request-id"] == "mine-1"


def test_a_process_is_alive_while_all_its_threads_wait_for_the_database(
    front: Front, monkeypatch: pytest.MonkeyPatch
) -> None:
    def look() -> int:
        return front.call("GET", "/healthz", None)[0]

    with holding(monkeypatch, Access, "has_callers", look, asked=THREADS, held=THREADS) as looks:
        assert httpx.get(f"{front.url}/livez", timeout=60).json() == {"status": "ok"}
    assert {each.result() for each in looks} == {200}


def test_estimates_that_wait_for_a_worker_hold_nobody_up(front: Front, monkeypatch: pytest.MonkeyPatch) -> None:
    key = front.key()
    body = {"archive": "stamps", "questions": ["What?"], "sample": 0}

    def estimate() -> int:
        return front.call("POST", "/v1/estimates", key, json=body)[0]

    with holding(monkeypatch, Questions, "estimate", estimate, asked=THREADS, held=THREADS) as estimates:
        jobs = httpx.get(f"{front.url}/v1/jobs", headers={"authorization": f"Bearer {key}"}, timeout=60)
        assert jobs.status_code == 200
    assert {each.result() for each in estimates} == {200}


def test_unknown_routes_and_queries_have_the_shape_of_errors(front: Front) -> None:
    key = front.key()
    for method, path, expected in (
        ("GET", "/v1/nothing", 404),
        ("PUT", "/v1/files", 405),
        ("GET", "/v1/files?limit=0", 400),
        ("GET", "/v1/files?limit=10001", 400),
        ("GET", "/v1/files?lmit=5", 400),
        ("GET", "/v1/files?order=up", 400),
        ("GET", "/v1/batches?limit=101", 400),
        ("GET", "/v1/batches/%00", 404),
        ("GET", "/v1/files/%ff%fe", 404),
    ):
        status, body, headers = front.call(method, path, key)
        assert (status, set(body["error"])) == (expected, {"message", "type", "param", "code"}), path
        assert headers["x-request-id"].startswith("req_") and "server" not in {name.lower() for name in headers}


def test_pages_of_other_sites_cannot_read_answers(front: Front) -> None:
    _, _, headers = front.call("GET", "/v1/models", front.key(), headers={"Origin": "https://elsewhere"})
    assert not any(name.lower().startswith("access-control") for name in headers)
