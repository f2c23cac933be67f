"""What `ragllava doctor` finds, on this machine and with mistakes made on purpose."""

from __future__ import annotations

import json
import os
import re
import socket
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
from pydantic import SecretStr

from ragllava.cli import doctor
from ragllava.cli.doctor import Diagnosis, diagnose, diagnosis_lines, masked
from ragllava.cli.options import print_result
from ragllava.cli.services import SystemStatus, status
from ragllava.errors import ServiceUnavailable
from ragllava.local.home import Home, HomeLock
from ragllava.local.postgres import PostgresService
from ragllava.local.services import service_status
from ragllava.settings import Settings, load_settings
from ragllava.stores.maintenance.faults import Fault


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in list(os.environ):
        if name.startswith("RAGLLAVA_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("RAGLLAVA_HOME", str(tmp_path))
    # What other tests leave of the memory and the disk of this machine changes all the time.
    monkeypatch.setattr(doctor, "_SMALLEST_MEMORY_BYTES", 0)
    monkeypatch.setattr(doctor, "_SMALLEST_FREE_BYTES", 0)


def values(diagnosis: Diagnosis) -> dict[str, str]:
    return {finding.name: finding.value for finding in diagnosis.findings}


def test_a_fresh_machine_has_no_problem(capsys: pytest.CaptureFixture[str]) -> None:
    diagnosis = diagnose()
    assert diagnosis.problems == []
    assert values(diagnosis)["PostgreSQL"] == "not running"
    assert values(diagnosis)["profile"] == "mini"
    assert {f"RAGLLAVA_{name.upper()}" for name in Settings.model_fields} <= set(values(diagnosis))
    assert json.loads(json.dumps(diagnosis.as_json()))["healthy"] is True
    print_result(diagnosis, diagnosis_lines(diagnosis), as_json=False)
    assert "nothing is wrong" in capsys.readouterr().out


def test_little_memory_and_little_disk_are_problems(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("_SMALLEST_MEMORY_BYTES", "_SMALLEST_FREE_BYTES"):
        monkeypatch.setattr(doctor, name, 2**60)
    disk, memory = diagnose().problems
    assert "GiB are free at" in disk and "RAGLLAVA_HOME" in disk
    assert "of memory are available" in memory


def test_an_unknown_setting_is_a_problem_and_the_known_ones_are_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAGLLAVA_TOPK", "5")
    diagnosis = diagnose()
    assert len(diagnosis.problems) == 1 and "RAGLLAVA_TOPK" in diagnosis.problems[0]
    assert values(diagnosis)["RAGLLAVA_TOP_K"] == "20 (default)"


def test_a_wrong_value_is_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAGLLAVA_TOP_K", "many")
    diagnosis = diagnose()
    assert len(diagnosis.problems) == 1 and diagnosis.problems[0].startswith("RAGLLAVA_TOP_K: ")
    assert "RAGLLAVA_TOP_N" in values(diagnosis)


def test_a_given_service_that_does_not_answer_is_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as closed:  # bound and never listening: whoever connects is refused
        closed.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{closed.getsockname()[1]}"
        monkeypatch.setenv("RAGLLAVA_REDIS_URL", f"redis://:hidden@{address}/0")
        diagnosis = diagnose()
    assert len(diagnosis.problems) == 1
    assert address in diagnosis.problems[0] and "does not answer" in diagnosis.problems[0]
    assert "hidden" not in json.dumps(diagnosis.as_json())


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("postgresql://me:hidden@/db", "the default socket"),
        ("postgresql:///db?user=me&password=hidden", "the default socket"),
        ("postgresql://me:hidden@/db?host=db.example.org", "db.example.org"),
        ("postgresql://me:hidden@/db?host=/srv/none", "/srv/none"),
        ("postgresql://me:hidden@db.example.org/db", "db.example.org"),
    ],
)
def test_the_address_of_a_database_is_shown_without_its_password(
    url: str, shown: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_settings: Settings) -> str:
        raise ServiceUnavailable("it is away")

    monkeypatch.setattr(PostgresService, "server_version", refuse)
    database = service_status(Settings(database_url=SecretStr(url)))[0]
    assert database.address == shown and not database.answers


def test_missing_models_and_a_missing_device_are_problems(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("RAGLLAVA_PROFILE", "paper")
    monkeypatch.setenv("RAGLLAVA_MODELS_DIR", str(tmp_path))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setenv("RAGLLAVA_DEVICE", "cuda:99")
    problems = diagnose().problems
    assert any("llava-hf/llava-1.5-13b-hf" in problem for problem in problems)
    assert any("RAGLLAVA_DEVICE=cuda:99" in problem for problem in problems)


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (None, "not set"),
        (20, "20"),
        (SecretStr("key"), "***"),
        (SecretStr("redis://:word@host:6379/0"), "redis://:***@host:6379/0"),
        (SecretStr("postgresql://me:word@host:5432/db"), "postgresql://me:***@host:5432/db"),
        (SecretStr("postgresql://me:wo@rd@host/db"), "postgresql://me:***@host/db"),
        (SecretStr("unix:///r.sock?password=word&db=1"), "unix:///r.sock?password=***&db=1"),
        (SecretStr("postgresql:///db?user=me&password=word"), "postgresql:///db?user=me&password=***"),
        (SecretStr("key://word"), "***"),
        ("http://me:word@host:8000", "http://me:***@host:8000"),
        ("s3://bucket/pictures", "s3://bucket/pictures"),
    ],
)
def test_masked(value: object, shown: str) -> None:
    assert masked(value) == shown


def test_the_backend_is_this_process_or_an_endpoint_that_agrees(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from ragllava.models.bundle import ModelBundle
    from tests.support.vllm_server import ModelServer, serving

    assert values(diagnose())["backend"] == "in the workers' processes"
    server = ModelServer(ModelBundle(Settings(home=tmp_path, device="cpu")).generator.mllm)
    with serving(server):
        monkeypatch.setenv("RAGLLAVA_VLLM_URL", server.url)
        diagnosis = diagnose()
        assert diagnosis.problems == []
        agrees = r" serves the-base: 11 golden relevances from 0\.000 to 0\.[7-9]\d+ differ by \d\.\de[-+]\d+"
        assert re.fullmatch(re.escape(server.url) + agrees, values(diagnosis)["backend"])
        server.mllm.network.lm_head.weight.data.mul_(0.1)
        [problem] = diagnose().problems
        assert "must not serve" in problem
    [problem] = diagnose().problems
    assert f"the endpoint {server.url} does not answer" in problem


def test_a_worker_that_keeps_dying_fails_doctor_and_status_while_up_runs(tmp_path: Path) -> None:
    home = Home(tmp_path)
    home.prepare()
    home.save_troubles({"answer": "worker answer died 3 times in a row (no such model)"})
    assert diagnose().problems == [], "nothing runs: the file is of an earlier `ragllava up`"
    lock = HomeLock(home)
    lock.acquire()
    try:
        assert "worker answer died 3 times in a row (no such model)" in diagnose().problems
        view = status(load_settings())
    finally:
        lock.release()
    assert view.troubles and not replace(view, problem=None, services=[]).is_healthy


@pytest.mark.parametrize(("attempts", "healthy"), [(2, True), (3, False)])
def test_what_fails_again_and_again_fails_status(tmp_path: Path, attempts: int, healthy: bool) -> None:
    now = datetime.now(UTC)
    fault = Fault("results", "job 12", "a full disk", attempts, now, now)
    assert SystemStatus(str(tmp_path), None, [], faults=[fault]).is_healthy is healthy
