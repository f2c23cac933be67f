"""Another account of the machine, `nobody`, tries to reach the embedded services and the files of a home."""

from __future__ import annotations

import fcntl
import http.client
import os
import pwd
import shutil
import socket
import ssl
import stat
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
import psycopg
import pytest
import redis
from sqlalchemy import text

from ragllava.cli.doctor import _services
from ragllava.errors import ServiceUnavailable
from ragllava.local.home import Home
from ragllava.local.processes import processes_in
from ragllava.local.seaweed import SeaweedService
from ragllava.local.services import LocalServices
from ragllava.settings import Settings
from ragllava.stores.database import make_engine
from ragllava.stores.objects import ObjectStore
from tests.support.strangers import (
    ACCOUNT,
    as_nobody,
    flood,
    needs_namespaces,
    needs_root,
    openable_below,
    run_as_nobody,
)

pytestmark = needs_root

SECRET = b"a picture that nobody may see"
FLOOD_S = 8.0  # longer than PostgreSQL waits for a password, which was 5 s, so that connections pile up
_PARTS = ("s3", "master", "volume", "filer", "admin")


@dataclass(frozen=True)
class RunningHome:
    """Services that run, in a home whose parent folder is private, and an object in their store."""

    parent: Path
    services: LocalServices
    settings: Settings
    key: str

    @property
    def home(self) -> Home:
        """Its folders."""
        return self.services.home

    def ports(self) -> dict[str, int]:
        """The ports of the parts of the store by name; those for gRPC too."""
        ports = dict(zip(_PARTS, self.home.load_state().ports["s3"], strict=True))
        return ports | {f"{name} gRPC": port + 10_000 for name, port in ports.items()}


@contextmanager
def _running_home(*, secluded: bool) -> Iterator[RunningHome]:
    """A home of its own; its parent is closed to others before and after."""
    parent = Path(tempfile.mkdtemp(prefix="ragllava-tests-"))
    services = LocalServices(Settings(home=parent / "home"))
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(SeaweedService, "secluded", secluded)
            settings = services.start()
        objects = ObjectStore(settings)
        key = objects.put_content(SECRET, "image/png")
        objects.put("jobs/1/results.jsonl", SECRET)
        yield RunningHome(parent, services, settings, key)
    finally:
        services.stop()
        assert stat.S_IMODE(parent.stat().st_mode) == 0o700
        assert os.listxattr(parent) == [], "the list of the private folder was not restored"
        shutil.rmtree(parent)


@pytest.fixture(scope="module")
def secluded() -> Iterator[RunningHome]:
    """One home for all tests that use it."""
    with _running_home(secluded=True) as made:
        yield made


@pytest.fixture(scope="module")
def running() -> Iterator[RunningHome]:
    """As `secluded`, on a system that allows no namespaces: the ports of the store can be connected to."""
    with _running_home(secluded=False) as made:
        yield made


@needs_namespaces
def test_doctor_says_whether_the_store_is_open(running: RunningHome, secluded: RunningHome) -> None:
    shown = [
        {finding.name: finding.value for finding in _services(home.settings)}["ports of SeaweedFS"]
        for home in (running, secluded)
    ]
    assert shown == ["other accounts can connect to them: it was asked for", "closed to other accounts"]


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
    folder = running.home.data / "s3"
    [store] = [process for process in processes_in(folder) if process.name() == "weed"]
    paths = {str(folder / str(connection.laddr)) for connection in store.net_connections("unix") if connection.laddr}
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


def test_the_services_cannot_be_reached(secluded: RunningHome) -> None:
    """Not with the right passwords either: no connection is made, so none of theirs is used up."""
    settings, home = secluded.settings, secluded.home

    def reached() -> list[str]:
        opened = []
        for name, url in (("database", settings.require_database()), ("owner", settings.require_database_owner())):
            with suppress(psycopg.OperationalError):
                psycopg.connect(url.replace("+psycopg", ""), connect_timeout=3).close()
                opened.append(name)
        with suppress(redis.ConnectionError), redis.Redis.from_url(settings.require_redis()) as client:
            client.ping()
            opened.append("queue")
        with suppress(ServiceUnavailable):
            ObjectStore(settings).ensure_bucket()
            opened.append("store")
        sockets = ("postgres/.s.PGSQL.5432", "redis/redis.sock", "s3/s3.sock", "s3/filer.sock")
        return opened + [path for path in sockets if _connects(str(home.data / path))]

    secluded.parent.chmod(0o755)
    try:
        assert as_nobody(reached) == []
    finally:
        secluded.parent.chmod(0o700)


@needs_namespaces
def test_of_the_store_only_the_port_for_other_programs_can_be_connected_to(secluded: RunningHome) -> None:
    ports = secluded.ports()

    def connected() -> list[str]:
        return [name for name, port in ports.items() if _accepts(port)]

    assert as_nobody(connected) == ["s3"]
    objects = ObjectStore(secluded.settings)
    objects.put("jobs/1/results.jsonl", SECRET)
    with urllib.request.urlopen(objects.presigned_url("jobs/1/results.jsonl", expires_s=60), timeout=10) as answer:
        assert answer.read() == SECRET


def _accepts(port: int) -> bool:
    with socket.socket() as client:
        client.settimeout(3)
        return client.connect_ex(("127.0.0.1", port)) == 0


@needs_namespaces
def test_the_names_of_the_stores_sockets_cannot_be_taken(secluded: RunningHome) -> None:
    """SeaweedFS makes sockets with fixed names in /tmp, and does without a part of itself where it cannot."""
    folder = Path("/tmp")
    names = [folder / f"seaweedfs-{part}-grpc-{port}.sock" for part in _PARTS for port in secluded.ports().values()]
    taken = [path for path in names if not path.exists()]  # another program may have left some
    assert taken

    def take() -> None:
        for path in taken:
            path.touch()

    as_nobody(take)
    try:
        secluded.services.stop()
        settings = secluded.services.start()
        assert ObjectStore(settings).get_content(secluded.key) == SECRET
        assert all(path.stat().st_uid == pwd.getpwnam(ACCOUNT).pw_uid for path in taken)
    finally:
        for path in taken:
            path.unlink()


@needs_namespaces
def test_a_flood_of_connections_stops_nothing(secluded: RunningHome) -> None:
    """To every port that is open, and to every socket of the home, even where the folder above lets everybody pass."""
    settings = secluded.settings
    objects, database = ObjectStore(settings), make_engine(settings.require_database(), pool_size=1)
    sockets = [path for path in secluded.home.root.rglob("*") if path.is_socket()]
    secluded.parent.chmod(0o755)
    try:
        with flood([port for port in secluded.ports().values() if _accepts(port)], sockets):
            deadline = time.monotonic() + FLOOD_S
            while time.monotonic() < deadline:
                with database.connect() as connection:
                    assert connection.scalar(text("SELECT 1")) == 1
                database.dispose()  # the next one is a new connection
                with redis.Redis.from_url(settings.require_redis(), socket_timeout=5) as client:
                    assert client.ping()
                assert ObjectStore(settings).get_content(secluded.key) == SECRET
            # What other programs use is crowded, but whoever asks for something gets it.
            with urllib.request.urlopen(objects.presigned_url("jobs/1/results.jsonl"), timeout=60) as answer:
                assert answer.read() == SECRET
    finally:
        database.dispose()
        secluded.parent.chmod(0o700)


def test_secrets_are_in_no_process_list(running: RunningHome) -> None:
    values = [getattr(running.home.load_secrets(), name) for name in running.home.load_secrets().__slots__]

    def visible() -> list[str]:
        words = " ".join(" ".join(process.info["cmdline"] or []) for process in psutil.process_iter(["cmdline"]))
        return [value for value in values if value in words]

    assert as_nobody(visible) == []
