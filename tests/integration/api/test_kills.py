"""The server is killed while it receives a file, while it sends one, and while it makes a job: nothing is lost or there
twice, and the bytes that a client gets in the end are the same."""

from __future__ import annotations

import hashlib
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import suppress

import httpx
import openai
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
AGAIN = {"x-stainless-retry-count": "1"}


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


def test_uploads_and_downloads(office: Office, environment: dict[str, str]) -> None:
    content = os.urandom(24 * MIB)
    with Client(office.settings, name="keys") as plain:
        key = make_key(plain, "ask")
    headers = {"authorization": f"Bearer {key}"}

    def half() -> Iterator[bytes]:
        yield from (content[start : start + MIB] for start in range(0, 12 * MIB, MIB))
        os.kill(server.pid, signal.SIGKILL)
        yield from (content[start : start + MIB] for start in range(12 * MIB, 24 * MIB, MIB))

    with process(environment) as (url, server):  # killed while it receives
        part = b'--x\r\ncontent-disposition: form-data; name="file"; filename="a.bin"\r\n\r\n'
        form = {**headers, "content-type": "multipart/form-data; boundary=x"}
        with pytest.raises(httpx.HTTPError):
            httpx.post(f"{url}/v1/files", headers=form, content=(piece for piece in (part, *half())), timeout=60)
    assert count(office, uploads) == 0 and not list(office.objects.list_objects("uploads/"))

    def send(url: str) -> str:
        with OpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0, timeout=60) as sdk:
            return sdk.files.create(file=("a.bin", content), purpose="user_data", extra_headers=AGAIN).id

    with process(environment) as (url, server):  # killed while it stores, or answers
        killer = threading.Timer(0.25, server.kill)
        killer.start()
        with suppress(openai.APIConnectionError):
            send(url)
        killer.join()
    with process(environment) as (url, server):
        file_id = send(url)
        assert count(office, uploads) == 1
        with httpx.stream("GET", f"{url}/v1/files/{file_id}/content", headers=headers) as answer:
            pieces = answer.iter_raw(MIB)
            assert next(pieces) == content[:MIB]
            server.kill()  # while it sends
            with pytest.raises(httpx.HTTPError):
                list(pieces)
    with process(environment) as (url, _):
        whole = httpx.get(f"{url}/v1/files/{file_id}/content", headers=headers, timeout=60).content
    assert hashlib.sha256(whole).digest() == hashlib.sha256(content).digest()


def test_jobs_and_their_results(office: Office, environment: dict[str, str]) -> None:
    with Client(office.settings, name="keys") as plain:
        key = make_key(plain, "ask")
    headers = {"authorization": f"Bearer {key}", "idempotency-key": "once"}
    asked = {"archive": "stamps", "questions": [f"What is stamp {number}?" for number in range(2_000)]}
    for delay_s in (0.05, 0.25):
        with process(environment) as (url, server):  # killed while it makes the job
            killer = threading.Timer(delay_s, server.kill)
            killer.start()
            with suppress(httpx.HTTPError):
                httpx.post(f"{url}/v1/jobs", headers=headers, json=asked, timeout=60)
            killer.join()
    with process(environment) as (url, server):
        made = httpx.post(f"{url}/v1/jobs", headers=headers, json=asked, timeout=60).raise_for_status()
        job_id = made.json()["job"]
        assert (count(office, jobs), count(office, questions)) == (1, 2_000)
        office.drain()
        publish_missing_results(office.engine, office.objects)
        where = f"{url}/v1/jobs/{job_id}/results?format=csv"
        with httpx.stream("GET", where, headers=headers) as answer:
            tag = answer.headers["etag"]
            first = next(answer.iter_raw(100_000))
            server.kill()  # while it sends
    with process(environment) as (url, _):
        where = f"{url}/v1/jobs/{job_id}/results?format=csv"
        rest = httpx.get(where, headers=headers | {"range": f"bytes={len(first)}-", "if-range": tag})
        assert rest.status_code == 206 and rest.headers["etag"] == tag
        whole = httpx.get(where, headers=headers).content
    assert first + rest.content == whole and whole.count(b"stamp ") == 2_000
