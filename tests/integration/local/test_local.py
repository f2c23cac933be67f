"""The embedded services, on real processes: start, use, kill, adopt, stop."""

from __future__ import annotations

import json
import os
import pwd
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psutil
import pytest
import redis
from pydantic import SecretStr
from sqlalchemy import create_engine, text
from sqlalchemy.exc import OperationalError
from sqlalchemy.pool import NullPool

from ragllava.cli import services as commands
from ragllava.errors import AlreadyRunning, ServiceUnavailable, SettingsError
from ragllava.local.home import Home, HomeLock, ServicesState
from ragllava.local.ports import Ports
from ragllava.local.postgres import PostgresService
from ragllava.local.processes import is_alive, processes_in
from ragllava.local.redis_server import RedisService
from ragllava.local.secluded import why_not_secluded
from ragllava.local.services import LocalServices, service_status
from ragllava.settings import Settings, load_settings
from ragllava.stores.objects import ObjectStore
from tests.support.processes import ROOT, command_of, kill, start_program
from tests.support.waiting import wait_for


@pytest.fixture(scope="module")
def filled_home() -> Iterator[Path]:
    """A home whose data folders exist, so that the tests of this module start quickly. Nothing runs in it."""
    home = Path(tempfile.mkdtemp(prefix="ragllava-tests-"))
    yield home
    LocalServices(bare_settings(home)).stop_leftovers()
    shutil.rmtree(home, ignore_errors=True)


@pytest.fixture
def home(filled_home: Path) -> Iterator[Path]:
    """The home, with nothing running before and after."""
    yield filled_home
    left = LocalServices(bare_settings(filled_home)).stop_leftovers()
    assert left == [], "the test left services running"


@pytest.fixture(autouse=True)
def no_given_services(monkeypatch: pytest.MonkeyPatch) -> None:
    """These tests use the embedded services even if the session uses others."""
    for name in list(os.environ):
        if name.startswith("RAGLLAVA_"):
            monkeypatch.delenv(name)


def bare_settings(home: Path, **more: Any) -> Settings:
    return Settings(home=home, **more)


def sql(settings: Settings, *statements: str) -> Any:
    """Run statements in one transaction, as the owner; the first value of the last one's answer, if it has one."""
    engine = create_engine(settings.require_database_owner(), poolclass=NullPool)
    with engine.begin() as connection:
        for statement in statements:
            result = connection.execute(text(statement))
        return result.scalar() if result.returns_rows else None


def service_processes(home: Path) -> dict[str, list[psutil.Process]]:
    return {name: processes_in(home / "data" / name) for name in ("postgres", "redis", "s3")}


def service_pids(home: Path) -> dict[str, set[int]]:
    return {name: {process.pid for process in processes} for name, processes in service_processes(home).items()}


def listening(process: psutil.Process) -> set[tuple[str, int]]:
    """Where a process takes connections; nowhere if it has ended, as a session of Postgres does at any time."""
    with suppress(psutil.NoSuchProcess):
        connections = process.net_connections("inet")
        return {(each.laddr.ip, each.laddr.port) for each in connections if each.status == psutil.CONN_LISTEN}
    return set()


def postmaster_of(home: Path) -> int:
    """The process id of PostgreSQL's main process."""
    return int((home / "data" / "postgres" / "postmaster.pid").read_text().split("\n", 1)[0])


# Starts the services of a home and stays.
OWNER = """
import sys, time
from pathlib import Path
from ragllava.local.services import LocalServices
from ragllava.settings import Settings
services = LocalServices(Settings(home=Path(sys.argv[1])))
services.start()
print("ready", flush=True)
time.sleep(600)
"""


@contextmanager
def started(home: Path, **more: Any) -> Iterator[tuple[LocalServices, Settings]]:
    """The services of a home for the length of a block, and settings that name them."""
    services = LocalServices(bare_settings(home, **more))
    running = services.start()
    try:
        yield services, running
    finally:
        services.stop()


def test_data_addresses_and_passwords_survive_a_restart(home: Path) -> None:
    services = LocalServices(bare_settings(home))
    first = services.start()
    sql(first, "DROP TABLE IF EXISTS kept", "CREATE TABLE kept (n int)", "INSERT INTO kept VALUES (41)")
    with redis.Redis.from_url(first.require_redis()) as client:
        client.set("kept", "42")
    key = ObjectStore(first).put_content(b"kept bytes", "text/plain")
    services.stop()
    assert service_pids(home) == {"postgres": set(), "redis": set(), "s3": set()}

    second = services.start()
    try:
        assert second == first
        assert load_settings(home=home).require_database() == first.require_database()
        assert sql(second, "SELECT n FROM kept") == 41
        with redis.Redis.from_url(second.require_redis()) as client:
            assert client.get("kept") == b"42"
        assert ObjectStore(second).get_content(key) == b"kept bytes"
    finally:
        services.stop()
    services.stop()  # a second stop is harmless
    with pytest.raises(SettingsError, match="ragllava up"):
        load_settings(home=home).require_database()


def test_pgvector_is_there_and_new_enough(home: Path) -> None:
    with started(home) as (_, running):
        sql(running, "CREATE EXTENSION IF NOT EXISTS vector")
        version = sql(running, "SELECT extversion FROM pg_extension WHERE extname = 'vector'")
        assert tuple(map(int, version.split("."))) >= (0, 8, 4)
        assert sql(running, "SELECT '[1,2]'::halfvec(2) <#> '[3,4]'::halfvec(2)") == -11
        assert [service.answers for service in service_status(load_settings(home=home))] == [True, True, True]


def test_services_are_closed_to_others(home: Path) -> None:
    """They have Unix sockets, and a port for other programs; require passwords; and show no secret in a command line or
    a readable file."""
    with started(home) as (_, running):
        processes = [process for found in service_processes(home).values() for process in found]
        listeners = {address for process in processes for address in listening(process)}
        ports = Home(home).load_state().ports["s3"]
        if why_not_secluded([]) is None:
            ports = ports[:1]
        assert {("127.0.0.1", port) for port in ports} <= listeners
        assert {address for address, _ in listeners} == {"127.0.0.1"}
        assert len(listeners) == 1 or len(ports) > 1

        secrets = Home(home).load_secrets()
        words = " ".join(word for process in processes for word in command_of(process))
        values = [getattr(secrets, name) for name in secrets.__slots__]
        assert len(set(values)) == len(values) == 8
        assert [value for value in values if value in words] == []
        holding = [
            path
            for path in [*home.glob("*"), *(home / "run").glob("*"), *(home / "data").glob("*"), *home.glob("logs/*")]
            if path.is_file() and any(value in path.read_text(errors="replace") for value in values)
        ]
        assert {path.name for path in holding} == {"secrets.json", "services.json", "redis.conf", "s3.json"}
        assert {stat.S_IMODE(path.stat().st_mode) for path in holding} == {0o600}
        assert stat.S_IMODE((home / "data" / "postgres").stat().st_mode) == 0o700

        _require_passwords(running)


def _require_passwords(running: Settings) -> None:
    for role in ("ragllava", "ragllava_app"):
        wrong = SecretStr(f"postgresql://{role}:guess@{_host(running)}")
        with pytest.raises(OperationalError, match="password authentication failed"):
            sql(running.model_copy(update={"database_owner_url": wrong}), "SELECT 1")
    with (
        redis.Redis(unix_socket_path=urlsplit(running.require_redis()).path) as client,
        pytest.raises(redis.AuthenticationError),
    ):
        client.ping()
    with pytest.raises(SettingsError):
        ObjectStore(running.model_copy(update={"s3_secret_key": SecretStr("guess")})).ensure_bucket()


def _host(settings: Settings) -> str:
    return settings.require_database().split("@")[1]


def test_a_second_start_names_the_first(home: Path) -> None:
    with started(home) as (_, running):
        with pytest.raises(AlreadyRunning, match=f"process {os.getpid()}"):
            LocalServices(bare_settings(home)).start()
        assert sql(running, "SELECT 1") == 1, "the first one's services were harmed"
        with pytest.raises(AlreadyRunning):
            LocalServices(bare_settings(home)).stop_leftovers()


def test_services_of_a_killed_owner_are_adopted(home: Path) -> None:
    owner = start_program(OWNER, home)
    lock = HomeLock(Home(home))
    holder = lock.owner()
    assert holder is not None and holder.pid == owner.pid
    assert is_alive(holder)
    before, postmaster = service_pids(home), postmaster_of(home)
    kill(owner)
    assert lock.owner() is None
    assert not is_alive(holder)
    os.kill(min(before["redis"]), signal.SIGKILL)
    wait_for("the end of Redis", lambda: not service_pids(home)["redis"], 60)

    # As at the next `ragllava up`: the settings hold the addresses that the dead one left.
    services = LocalServices(load_settings(home=home))
    assert services.given == []
    running = services.start()
    try:
        after = service_pids(home)
        assert postmaster_of(home) == postmaster and postmaster in before["postgres"] & after["postgres"]
        assert after["s3"] == before["s3"]
        assert after["redis"] and after["redis"] != before["redis"]
        assert sql(running, "SELECT 1") == 1
    finally:
        services.stop()
    assert service_pids(home) == {"postgres": set(), "redis": set(), "s3": set()}


def test_services_that_shall_not_outlive_us_end_with_us(home: Path) -> None:
    program = """
import sys, time
from pathlib import Path
from ragllava.local.services import running_services
from ragllava.settings import Settings
with running_services(Settings(home=Path(sys.argv[1]))):
    print("ready", flush=True)
    time.sleep(600)
"""
    owner = start_program(program, home)
    assert all(service_pids(home).values())
    kill(owner)
    wait_for("the watchdog", lambda: not any(service_pids(home).values()), 60)


def test_a_killed_server_is_revived_with_its_data(home: Path) -> None:
    with started(home) as (services, running):
        sql(running, "DROP TABLE IF EXISTS crash", "CREATE TABLE crash (n int)", "INSERT INTO crash VALUES (7)")
        assert services.revive() == []
        postmaster = services._running[0].process
        assert postmaster is not None
        os.kill(postmaster.pid, signal.SIGKILL)
        wait_for("the end of the server", lambda: not is_alive(postmaster), 60)
        news = services.revive()
        assert len(news) == 1 and "PostgreSQL died and was restarted" in news[0]
        assert sql(running, "SELECT n FROM crash") == 7


def test_a_stale_lock_with_a_strangers_pid_does_not_stop_postgres(home: Path) -> None:
    services = LocalServices(bare_settings(home))
    services.start()
    locks = [home / "data" / "postgres" / name for name in ("postmaster.pid", f"{PostgresService.socket_name}.lock")]
    contents = [lock.read_text().split("\n")[1:] for lock in locks]
    services.stop()
    # Postgres takes only processes of its own account for a living server.
    owner = locks[0].parent.stat()
    account = pwd.getpwuid(owner.st_uid).pw_name if os.geteuid() == 0 else None
    stranger = subprocess.Popen(["sleep", "600"], user=account)
    try:
        for lock, lines in zip(locks, contents, strict=True):
            lock.write_text("\n".join([str(stranger.pid), *lines]))
            shutil.chown(lock, owner.st_uid, owner.st_gid)
        running = services.start()
        try:
            assert sql(running, "SELECT 1") == 1
            assert stranger.poll() is None, "the stranger was harmed"
        finally:
            services.stop()
    finally:
        stranger.kill()
        stranger.wait()


def test_a_service_given_by_url_is_not_started(home: Path) -> None:
    with started(home, redis_url="redis://elsewhere:6379/0") as (services, running):
        assert services.given == ["redis_url"]
        assert running.require_redis() == "redis://elsewhere:6379/0"
        pids = service_pids(home)
        assert pids["postgres"] and pids["s3"] and not pids["redis"]


def test_a_taken_port_is_replaced(home: Path) -> None:
    services = LocalServices(bare_settings(home))
    first = services.start()
    services.stop()
    with socket.socket() as occupant:
        occupant.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        occupant.bind(("127.0.0.1", int(str(first.s3_endpoint).split(":")[1])))
        occupant.listen()
        second = services.start()
        try:
            assert second.s3_endpoint != first.s3_endpoint
            assert second.s3_socket == first.s3_socket
            assert ObjectStore(second).exists("nothing") is False
        finally:
            services.stop()


def test_a_home_with_a_long_path_has_short_addresses(monkeypatch: pytest.MonkeyPatch) -> None:
    """The address of a socket has at most 107 bytes."""
    parent = Path(tempfile.mkdtemp(prefix="ragllava-tests-"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(parent / "c"))
    try:
        with started(parent / ("long-" * 40)) as (_, running):
            assert sql(running, "SELECT 1") == 1
            with redis.Redis.from_url(running.require_redis()) as client:
                assert client.ping()
            assert all(status.answers for status in service_status(running))
    finally:
        shutil.rmtree(parent)


def test_what_an_earlier_version_left_running_is_replaced(home: Path) -> None:
    """It listened on ports, which its file names, and had no socket."""
    with started(home):
        pass
    ports = Ports()
    [port] = ports.choose([], 1)
    ports.release()
    folder = home / "data" / "redis"
    Home(home).save_state(ServicesState({"redis_url": f"redis://:x@127.0.0.1:{port}/0"}, {"redis": [port]}))
    command = [str(RedisService.find_program()), "--port", str(port), "--dir", str(folder)]
    old = subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL)
    try:
        wait_for("the older server", lambda: bool(processes_in(folder, "redis-server")), 60)
        services = LocalServices(load_settings(home=home))
        assert services.given == []
        running = services.start()
        try:
            assert old.wait(60) is not None
            with redis.Redis.from_url(running.require_redis()) as client:
                assert client.ping()
            assert "redis" not in Home(home).load_state().ports
        finally:
            services.stop()
    finally:
        old.kill()
        old.wait()


def test_a_server_that_does_not_start_says_why_and_takes_the_others_down() -> None:
    home = Path(tempfile.mkdtemp(prefix="ragllava-tests-"))
    try:
        services = LocalServices(bare_settings(home))
        folder = home / "data" / "postgres"
        folder.mkdir(parents=True)
        (folder / "PG_VERSION").write_text("9.6\n")
        with pytest.raises(ServiceUnavailable, match=r"PostgreSQL ended while starting.*postgres\.log"):
            services.start()
        assert service_pids(home) == {"postgres": set(), "redis": set(), "s3": set()}
        assert services.lock.owner() is None
    finally:
        shutil.rmtree(home, ignore_errors=True)


def test_a_home_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SettingsError, match=r"cannot write to .*file/home .*set RAGLLAVA_HOME"):
        LocalServices(bare_settings(tmp_path / "file" / "home")).start()


def test_a_damaged_services_file_is_no_obstacle(home: Path) -> None:
    (home / "run").mkdir(parents=True, exist_ok=True)
    (home / "run" / "services.json").write_text('{"settings": ')
    with started(home) as (_, running):
        assert sql(running, "SELECT 1") == 1


def test_up_runs_until_down_and_status_sees_it(home: Path) -> None:
    program = """
import sys
from pathlib import Path
from ragllava.cli import services
from ragllava.settings import Settings
services.up(Settings(home=Path(sys.argv[1])), lambda settings: [], lambda line: print(line, flush=True))
"""
    up = subprocess.Popen([sys.executable, "-c", program, str(home)], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert up.stdout is not None
    lines: list[str] = []
    for line in up.stdout:
        lines.append(line)
        if "Ctrl-C" in line:
            break
    assert sorted(line.split()[0] for line in lines[:3]) == ["PostgreSQL", "Redis", "SeaweedFS"]

    view = commands.status(load_settings(home=home))
    assert view.is_healthy and view.owner_pid == up.pid
    assert (view.workers, view.jobs) == ([], [])
    json.dumps(view.as_json())

    printed: list[str] = []
    commands.down(load_settings(home=home), printed.append)
    assert printed == [f"stopped process {up.pid}"]
    assert up.wait(timeout=60) == 0
    assert up.stdout.read().endswith("stopped\n")
    up.stdout.close()
    assert not any(service_pids(home).values())
    assert not commands.status(load_settings(home=home)).is_healthy


def test_down_ends_what_a_killed_up_left(home: Path) -> None:
    kill(start_program(OWNER, home))
    lines: list[str] = []
    commands.down(load_settings(home=home), lines.append)
    assert lines == ["stopped what was left running: PostgreSQL, Redis, SeaweedFS"]
    assert not any(service_pids(home).values())
    commands.down(load_settings(home=home), lines.append)
    assert lines[1:] == [f"nothing runs in {home}"]
