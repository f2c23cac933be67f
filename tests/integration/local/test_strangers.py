"""Another account of the machine, `nobody`, tries to reach the embedded services and the files of a home."""

from __future__ import annotations

import fcntl
import http.client
import os
import shutil
import socket
import ssl
import stat
import struct
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import psutil
import psycopg
import pytest
import redis
from sqlalchemy import make_url

from ragllava.local.home import Home
from ragllava.local.processes import processes_in
from ragllava.local.seaweed import SeaweedService
from ragllava.local.services import LocalServices
from ragllava.settings import Settings
from ragllava.stores.objects import ObjectStore
from tests.support.strangers import as_nobody, needs_root, openable_below, run_as_nobody

pytestmark = needs_root

SECRET = b"a picture that nobody may see"


@dataclass(frozen=True)
class RunningHome:
    """Services that run, in a home whose parent folder is private, and an object in their store."""

    parent: Path
    home: Home
    settings: Settings
    key: str

    def ports(self) -> dict[str, int]:
        """The ports of the parts of the store by name; those for gRPC too."""
        names = ("s3", "master", "volume", "filer", "admin")
        ports = dict(zip(names, self.home.load_state().ports["s3"], strict=True))
        return ports | {f"{name} gRPC": port + 10_000 for name, port in ports.items()}


@pytest.fixture(scope="module")
def running() -> Iterator[RunningHome]:
    """One home for all tests of this module; its parent is closed to others before and after."""
    parent = Path(tempfile.mkdtemp(prefix="ragllava-tests-"))
    services = LocalServices(Settings(home=parent / "home"))
    try:
        settings = services.start()
        objects = ObjectStore(settings)
        key = objects.put_content(SECRET, "image/png")
        objects.put("jobs/1/results.jsonl", SECRET)
        yield RunningHome(parent, services.home, settings, key)
    finally:
        services.stop()
        assert stat.S_IMODE(parent.stat().st_mode) == 0o700
        assert os.listxattr(parent) == [], "the list of the private folder was not restored"
        shutil.rmtree(parent)


def test_folders_above_a_home_stay_closed(running: RunningHome) -> None:
    """Postgres does not run as root; its account may pass through a private folder, and nobody else."""
    assert stat.S_IMODE(running.parent.stat().st_mode) & 0o007 == 0
    assert not as_nobody(lambda: os.access(running.parent, os.X_OK))
    assert openable_below(running.parent) == []


def test_no_file_of_a_home_can_be_read_or_written(running: RunningHome) -> None:
    """Even where the folder above lets everybody pass, as /tmp and /srv do."""
    running.parent.chmod(0o755)
    try:
        assert openable_below(running.home.root) == []
    finally:
        running.parent.chmod(0o700)


def test_the_lock_cannot_be_held(running: RunningHome) -> None:
    def lock() -> None:
        with running.home.lock_file.open() as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)

    running.parent.chmod(0o755)
    try:
        with pytest.raises(PermissionError):
            as_nobody(lock)
    finally:
        running.parent.chmod(0o700)
    assert stat.S_IMODE(running.home.lock_file.stat().st_mode) == 0o600


def test_the_sockets_of_the_store_cannot_be_opened(running: RunningHome) -> None:
    [store] = [process for process in processes_in(running.home.data / "s3") if process.name() == "weed"]
    paths = {str(connection.laddr) for connection in store.net_connections("unix") if connection.laddr}
    assert paths, "the store has no unix socket any more: remove this test"

    def openable() -> list[str]:
        return [path for path in paths if _connects(path)]

    assert as_nobody(openable) == []


def _connects(path: str) -> bool:
    with socket.socket(socket.AF_UNIX) as client:
        try:
            client.connect(path)
        except PermissionError:
            return False
    return True


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_the_inner_ports_of_the_store_serve_nothing(running: RunningHome, scheme: str) -> None:
    bucket = running.settings.s3_bucket
    paths = (
        "/",
        "/dir/assign",
        "/dir/lookup?volumeId=1&read=yes",
        "/dir/lookup?fileId=1,01&read=yes",
        "/dir/status",
        "/status",
        "/vol/status",
        f"/buckets/{bucket}/?limit=10",
        f"/{bucket}/jobs/1/results.jsonl",
        "/submit",
    )
    ports = running.ports()

    def answered() -> list[str]:
        return [f"{part}: {path}" for part, port in ports.items() for path in paths if _is_served(scheme, port, path)]

    # The S3 port tells everybody that it lives.
    assert set(as_nobody(answered)) <= {"s3: /status"}


def _is_served(scheme: str, port: int, path: str) -> bool:
    context = ssl._create_unverified_context() if scheme == "https" else None
    request = urllib.request.Request(f"{scheme}://127.0.0.1:{port}{path}")
    try:
        with urllib.request.urlopen(request, timeout=3, context=context):
            return True
    except urllib.error.HTTPError as refusal:
        refusal.close()
        return refusal.code not in (400, 401, 403)
    except (OSError, http.client.HTTPException):
        return False


def test_the_shell_of_the_store_does_nothing(running: RunningHome) -> None:
    ports, bucket = running.ports(), running.settings.s3_bucket
    master = f"127.0.0.1:{ports['master']}.{ports['master gRPC']}"
    filer = f"127.0.0.1:{ports['filer']}.{ports['filer gRPC']}"
    shell = [str(SeaweedService.find_program()), "shell", f"-master={master}", f"-filer={filer}"]
    commands = (
        "volume.list",
        f"fs.ls -l /buckets/{bucket}",
        f"fs.cat /buckets/{bucket}/jobs/1/results.jsonl",
        "s3.configure",
        "lock",
        f"fs.rm -r /buckets/{bucket}/jobs",
        f"s3.bucket.delete -name {bucket}",
        "unlock",
        "exit",
    )
    output = run_as_nobody(shell, "\n".join(commands) + "\n", timeout_s=8)
    for word in (SECRET.decode(), "results.jsonl", "DataCenter", running.settings.s3_access_key or ""):
        assert word not in output
    objects = ObjectStore(running.settings)
    assert objects.get_content(running.key) == SECRET
    assert objects.get("jobs/1/results.jsonl") == SECRET


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder into which every account can write."""
    with tempfile.TemporaryDirectory(prefix="ragllava-tests-") as name:
        Path(name).chmod(0o777)
        yield Path(name)


def test_the_volumes_of_the_store_cannot_be_copied(running: RunningHome, open_folder: Path) -> None:
    ports = running.ports()
    master = f"127.0.0.1:{ports['master']}.{ports['master gRPC']}"
    backup = [str(SeaweedService.find_program()), "backup", f"-master={master}", f"-dir={open_folder}"]

    def copy(volume: int) -> None:
        run_as_nobody([*backup, f"-collection={running.settings.s3_bucket}", f"-volumeId={volume}"], timeout_s=6)

    with ThreadPoolExecutor() as pool:
        list(pool.map(copy, range(1, 8)))
    assert not any(SECRET in path.read_bytes() for path in open_folder.iterdir())


def test_grpc_needs_a_certificate(running: RunningHome) -> None:
    """A client without one is refused in the handshake, and a client without TLS is not understood."""

    def greeting(port: int) -> bytes:
        preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes.fromhex("000000040000000000")
        with socket.create_connection(("127.0.0.1", port), timeout=3) as client:
            client.sendall(preface)
            try:
                return client.recv(100)
            except OSError:
                return b""

    ports = {name: port for name, port in running.ports().items() if "gRPC" in name}
    # A server without TLS answers with its own settings, a frame of the type 4.
    answers = as_nobody(lambda: {name: greeting(port)[3:4] for name, port in ports.items()})
    assert [name for name, kind in answers.items() if kind == b"\x04"] == []


def test_the_database_and_the_queue_require_their_passwords(running: RunningHome) -> None:
    database = running.settings.require_database().split("@")[1]
    queue_port = int(running.settings.require_redis().rsplit(":", 1)[1].split("/")[0])

    def reached() -> list[str]:
        opened = []
        for role in ("ragllava", "ragllava_app", "postgres", "nobody"):
            for password in ("", "ragllava"):
                try:
                    psycopg.connect(f"postgresql://{role}:{password}@{database}", connect_timeout=3).close()
                except psycopg.OperationalError:
                    continue
                opened.append(role)
        with redis.Redis(port=queue_port) as client:
            for command in ("PING", "KEYS *", "CONFIG GET dir", "SHUTDOWN NOSAVE"):
                try:
                    client.execute_command(*command.split())
                except redis.AuthenticationError:
                    continue
                opened.append(command)
        return opened

    assert as_nobody(reached) == []


def test_connections_that_do_not_log_in_are_closed(running: RunningHome) -> None:
    """Each takes one of the server's connections; PostgreSQL would wait for a minute, and Redis for ever."""
    database = make_url(running.settings.require_database())
    queue = make_url(running.settings.require_redis())
    begin = b"user\0ragllava_app\0database\0ragllava\0\0"
    startup = struct.pack("!II", len(begin) + 8, 196_608) + begin

    def closed_after_s() -> float:
        with socket.create_connection(("127.0.0.1", database.port or 0), timeout=30) as client:
            client.sendall(startup)
            started = time.monotonic()
            while client.recv(1000):
                pass
            return time.monotonic() - started

    assert as_nobody(closed_after_s) < 30
    with redis.Redis(port=queue.port or 0, password=queue.password) as client:
        assert client.config_get("timeout") == {"timeout": "60"}


def test_secrets_are_in_no_process_list(running: RunningHome) -> None:
    values = [getattr(running.home.load_secrets(), name) for name in running.home.load_secrets().__slots__]

    def visible() -> list[str]:
        words = " ".join(" ".join(process.info["cmdline"] or []) for process in psutil.process_iter(["cmdline"]))
        return [value for value in values if value in words]

    assert as_nobody(visible) == []
