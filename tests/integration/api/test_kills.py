"""The server is killed while it receives a file, while it sends one, and while it makes a job: nothing is lost or there
twice, and the bytes that a client gets in the end are the same."""

from __future__ import annotations

import hashlib
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import httpx
import openai
import psutil
import pytest
from openai import OpenAI
from sqlalchemy import func, select

from ragllava.client import Client
from ragllava.settings import Settings
from ragllava.stages.results.finalize import publish_missing_results
from ragllava.stores.archives import archive
from ragllava.stores.database import in_transaction
from ragllava.stores.objects import ObjectStore
from ragllava.stores.schema import jobs, questions, uploads
from tests.integration.api.test_server import process
from tests.support.api_server import Office, make_key

MIB = 2**20
QUESTIONS = 600


@pytest.fixture
def office(settings: Settings) -> Iterator[Office]:
    unhurried = settings.model_copy(update={"tick_s": 600.0})
    with Client(unhurried, name="office") as plain:
        in_transaction(plain.engine, archive.ensure_archive, "stamps")
        office = Office(plain.engine, unhurried, ObjectStore(unhurried))
        office.live_worker()
        yield office


def count(office: Office, table: object) -> int:
    with office.engine.connect() as connection:
        return int(connection.execute(select(func.count()).select_from(table)).scalar_one())  # type: ignore[arg-type]


def test_killed_at_any_time(office: Office, environment: dict[str, str]) -> None:
    with Client(office.settings, name="keys") as plain:
        headers = {"authorization": f"Bearer {make_key(plain, 'ask')}", "idempotency-key": "once"}
    file_id, content = killed_around_a_file(office, environment, headers)
    with process(environment) as (url, server):
        whole = httpx.get(f"{url}/v1/files/{file_id}/content", headers=headers, timeout=60).content
        assert hashlib.sha256(whole).digest() == hashlib.sha256(content).digest()
        with killed_after(server, 0.05):  # while it makes a job
            create(url, headers)
    with process(environment) as (url, server):
        job_id = create(url, headers)
        assert (count(office, jobs), count(office, questions)) == (1, QUESTIONS)
        office.drain()
        publish_missing_results(office.engine, office.objects)
        with httpx.stream("GET", f"{url}/v1/jobs/{job_id}/results?format=csv", headers=headers, timeout=60) as answer:
            tag, first = answer.headers["etag"], next(answer.iter_raw(50_000))
            server.kill()  # while it sends results
    with process(environment) as (url, _):
        where = f"{url}/v1/jobs/{job_id}/results?format=csv"
        rest = httpx.get(where, headers=headers | {"range": f"bytes={len(first)}-", "if-range": tag}, timeout=60)
        assert rest.status_code == 206 and rest.headers["etag"] == tag
        results = httpx.get(where, headers=headers, timeout=60).content
    assert first + rest.content == results and results.count(b"stamp ") == QUESTIONS


def killed_around_a_file(office: Office, environment: dict[str, str], headers: dict[str, str]) -> tuple[str, bytes]:
    """The id of the file that is stored in the end, and its content."""
    content = os.urandom(24 * MIB)

    def half() -> Iterator[bytes]:
        yield b'--x\r\ncontent-disposition: form-data; name="file"; filename="a.bin"\r\n\r\n'
        for start in range(0, 24 * MIB, MIB):
            if start == 12 * MIB:
                os.kill(server.pid, signal.SIGKILL)
            yield content[start : start + MIB]

    with process(environment) as (url, server):
        form = headers | {"content-type": "multipart/form-data; boundary=x"}
        with pytest.raises(httpx.HTTPError):  # while it receives the file
            httpx.post(f"{url}/v1/files", headers=form, content=half(), timeout=60)
    assert count(office, uploads) == 0 and not list(office.objects.list_objects("uploads/"))
    with process(environment) as (url, server), killed_after(server, 0.25):  # while it stores the file, or answers
        send(url, headers, content)
    with process(environment) as (url, server):
        file_id = send(url, headers, content)
        assert count(office, uploads) == 1
        with httpx.stream("GET", f"{url}/v1/files/{file_id}/content", headers=headers, timeout=60) as answer:
            pieces = answer.iter_raw(MIB)
            assert next(pieces) == content[:MIB]
            server.kill()  # while it sends the file
            with pytest.raises(httpx.HTTPError):
                list(pieces)
    return file_id, content


@contextmanager
def killed_after(server: psutil.Process, seconds: float) -> Iterator[None]:
    """The server is killed during the block, or soon after it."""
    killer = threading.Timer(seconds, server.kill)
    killer.start()
    with suppress(httpx.HTTPError, openai.APIConnectionError):
        yield
    killer.join()


def send(url: str, headers: dict[str, str], content: bytes) -> str:
    """As the SDK repeats an upload."""
    key = headers["authorization"].removeprefix("Bearer ")
    with OpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0, timeout=60) as sdk:
        again = {"x-stainless-retry-count": "1"}
        return sdk.files.create(file=("a.bin", content), purpose="user_data", extra_headers=again).id


def create(url: str, headers: dict[str, str]) -> int:
    asked = {"archive": "stamps", "questions": [f"What is stamp {number}?" for number in range(QUESTIONS)]}
    made = httpx.post(f"{url}/v1/jobs", headers=headers, json=asked, timeout=60).raise_for_status()
    return int(made.json()["job"])
