"""The HTTP API under 64 clients at once: looks at a batch, and questions, beside the same calls without a server."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import urllib3

from ragllava.errors import RagllavaError
from ragllava.json_records import to_json
from ragllava.lab.bench.jobs import OPTIONS, SAMPLE, sample_questions
from ragllava.lab.bench.rows import BenchRow, timed
from ragllava.lab.bench.workload import Workload
from ragllava.local.processes import last_lines
from ragllava.records import Question
from ragllava.stages.answer.pipeline import answer_questions
from ragllava.stages.answer.tools import AnswerTools, prepare
from ragllava.stages.resources import Resources
from ragllava.stores.access.keys import AccessRole, NewKey
from ragllava.stores.archives import archive
from ragllava.stores.database import in_transaction

CLIENTS = 64
_LOOKS = 4_000
_ASKED = 256
_BARE_LOOKS = 500
_BARE_ASKED = 20
_START_S = 60.0
_PAUSE_S = 0.1


def http_rows(workload: Workload) -> list[BenchRow]:
    """Requests a second and their times, of 64 clients that each send one after the other."""
    client = workload.require_client()
    texts = sample_questions(workload)
    key, _ = client.access.create_key(NewKey("bench", AccessRole.ASK))
    with serving(str(client.settings.home)) as address:
        door = _Door(address, key)
        batch_id = door.make_batch(texts[0])
        return [_look_row(workload, door, batch_id), _ask_row(workload, door, texts)]


@dataclass(frozen=True, slots=True)
class Load:
    """What clients have measured: answers a second of all together, and the seconds of each."""

    per_s: float
    seconds: tuple[float, ...]

    def figures(self) -> dict[str, float]:
        """Milliseconds that half, and 99 of 100, of the requests took at most."""
        half, most = np.percentile(self.seconds, [50, 99]) * 1000
        return {"p50_ms": float(half), "p99_ms": float(most), "requests": float(len(self.seconds))}


class _Door:
    """A running server, and a key for it."""

    def __init__(self, address: str, key: str) -> None:
        self._address = address
        self._headers = {"authorization": f"Bearer {key}"}

    def request(self, pool: urllib3.PoolManager, method: str, path: str, **sent: Any) -> Any:
        """The JSON of an answer. Raises RagllavaError for any status but 200: its time would have no meaning."""
        answer = pool.request(method, self._address + path, headers=self._headers, **sent)
        if answer.status != 200:
            raise RagllavaError(f"{method} {path} of the benchmark: status {answer.status}: {answer.data[:200]!r}")
        return answer.json()

    def make_batch(self, question: str) -> str:
        """The id of a batch with one question."""
        body = {"model": f"ragllava/{SAMPLE}", "messages": [{"role": "user", "content": question}]}
        line = {"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": body}
        fields = {"purpose": "batch", "file": ("q.jsonl", json.dumps(line).encode())}
        with urllib3.PoolManager() as pool:
            file = self.request(pool, "POST", "/v1/files", fields=fields)
            named = {"input_file_id": file["id"], "endpoint": "/v1/chat/completions", "completion_window": "24h"}
            return str(self.request(pool, "POST", "/v1/batches", json=named)["id"])

    def load(self, number: int, method: str, path: str, body: Callable[[int], Mapping[str, Any] | None]) -> Load:
        """So many requests of 64 clients, each with a connection of its own. Raises the first error."""
        seconds: list[float] = []
        failures: list[Exception] = []
        remaining = iter(range(number))
        lock = threading.Lock()

        def send() -> None:
            with urllib3.PoolManager(timeout=600, retries=False) as pool:
                while not failures:
                    with lock:
                        turn = next(remaining, None)
                    if turn is None:
                        return
                    try:
                        took_s, _ = timed(partial(self.request, pool, method, path, json=body(turn)))
                    except (RagllavaError, urllib3.exceptions.HTTPError) as error:
                        failures.append(error)
                        return
                    seconds.append(took_s)

        threads = [threading.Thread(target=send) for _ in range(CLIENTS)]
        began = time.perf_counter()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if failures:
            raise failures[0]
        return Load(len(seconds) / (time.perf_counter() - began), tuple(seconds))


def _look_row(workload: Workload, door: _Door, batch_id: str) -> BenchRow:
    client = workload.require_client()
    workload.progress(f"http: {_LOOKS} looks at a batch by {CLIENTS} clients")
    load = door.load(_LOOKS, "GET", f"/v1/batches/{batch_id}", lambda _: None)
    bare_s, _ = timed(lambda: [client.batches.get(batch_id) for _ in range(_BARE_LOOKS)])
    return BenchRow(
        "http", f"http, {CLIENTS} clients, GET /v1/batches/{{id}}", "the client's method, one call after the other",
        "requests/s", load.per_s, _BARE_LOOKS / bare_s, figures=load.figures(),
        note="server, database and clients share this machine",
    )  # fmt: skip


def _ask_row(workload: Workload, door: _Door, texts: Sequence[str]) -> BenchRow:
    client = workload.require_client()

    def body(turn: int) -> Mapping[str, Any]:
        metadata = {"retrieval": OPTIONS.retrieval.value, "depth": OPTIONS.depth.value}
        messages = [{"role": "user", "content": texts[turn % len(texts)]}]
        return {"model": f"ragllava/{SAMPLE}", "messages": messages, "metadata": metadata}

    workload.progress(f"http: {_ASKED} questions of {CLIENTS} clients")
    load = door.load(_ASKED, "POST", "/v1/chat/completions", body)
    with closing(Resources(client.settings)) as resources:
        resources.models = workload.models  # already loaded
        archive_id = in_transaction(client.engine, archive.get_archive, SAMPLE).archive_id
        tools = prepare(client.engine, client.settings, resources, archive_id, to_json(OPTIONS))
        bare_s = [_answer(tools, texts[number % len(texts)]) for number in range(_BARE_ASKED)]
    figures = load.figures() | {"bare_p50_ms": float(np.median(bare_s)) * 1000}
    return BenchRow(
        "http", f"http, {CLIENTS} clients, POST /v1/chat/completions", "the stage functions, one question at a time",
        "questions/s", load.per_s, len(bare_s) / sum(bare_s), figures=figures,
        note="the workers answer one question after the other, so each of 64 waits for those before it",
    )  # fmt: skip


def _answer(tools: AnswerTools, text: str) -> float:
    """The seconds that the stages take for one question."""
    return timed(partial(answer_questions, [Question(0, 1, "q", text)], tools))[0]


@contextmanager
def serving(home: str) -> Iterator[str]:
    """`ragllava serve` in a process of its own, on a free port; its address. Its lines go to a file in the home.

    Raises RagllavaError if it does not come up.
    """
    with socket.socket() as chosen:
        chosen.bind(("127.0.0.1", 0))
        port = chosen.getsockname()[1]
    command = [sys.executable, "-m", "ragllava", "serve", "--port", str(port)]
    log = Path(home) / "serve.log"
    with log.open("ab") as lines:
        server = subprocess.Popen(command, env=os.environ | {"RAGLLAVA_HOME": home}, stdout=lines, stderr=lines)
    try:
        if not _has_come_up(port, server):
            raise RagllavaError(f"the server of the benchmark did not start: {last_lines(log)}")
        yield f"http://127.0.0.1:{port}"
    finally:
        server.terminate()
        server.wait(60)


def _has_come_up(port: int, server: subprocess.Popen[bytes]) -> bool:
    until = time.monotonic() + _START_S
    while time.monotonic() < until and server.poll() is None:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return True
        time.sleep(_PAUSE_S)
    return False
