"""The folders, passwords and the lock of one RAGLLAVA_HOME."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import secrets
import shutil
import tempfile
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import IO

import psutil
from pydantic import TypeAdapter

from ragllava.errors import AlreadyRunning, SettingsError
from ragllava.whole_files import write_whole

_LATER_SECRETS = ("events_token", "postgres_app_password", "postgres_api_password")  # not in homes of the first version
_SMALLEST_FREE_BYTES = 512 * 2**20  # an empty Postgres with its first log segments takes 80 MB


@dataclass(frozen=True, slots=True)
class Secrets:
    """The generated passwords of the embedded services, kept beside their data."""

    postgres_password: str  # of the owner of the tables
    postgres_app_password: str
    postgres_api_password: str  # of the role of the HTTP API
    redis_password: str
    s3_access_key: str
    s3_secret_key: str
    s3_signing_key: str
    events_token: str


@dataclass(slots=True)
class ServicesState:
    """The content of run/services.json: the settings of what runs, and the ports of the last run."""

    settings: dict[str, str] = field(default_factory=dict)
    ports: dict[str, list[int]] = field(default_factory=dict)


class Home:
    """One RAGLLAVA_HOME. The constructor touches nothing."""

    def __init__(self, root: Path) -> None:
        """`root` need not exist yet."""
        self.root = root.expanduser().absolute()
        self.data = self.root / "data"
        self.logs = self.root / "logs"
        self.run = self.root / "run"
        self.workers = self.run / "workers"
        self.secrets_file = self.data / "secrets.json"
        self.services_file = self.run / "services.json"
        self.lock_file = self.run / "up.lock"
        self.troubles_file = self.run / "troubles.json"
        self.passages_file = self.run / "passages.json"
        self.openness_file = self.run / "s3.open"
        self.receiver_socket = self.run / "receiver.sock"

    def prepare(self) -> None:
        """Make the folders. Raises SettingsError when the home cannot be written or the disk is nearly full."""
        try:
            for folder in (self.root, self.data, self.logs, self.run, self.workers):
                folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            # Earlier versions, running as root, let every account pass through these.
            for folder in (self.data, self.logs, self.run, self.workers):
                folder.chmod(0o700)
            with tempfile.TemporaryFile(dir=self.run):
                pass
        except OSError as error:
            raise self.unusable(error) from None
        free_bytes = shutil.disk_usage(self.root).free
        if free_bytes < _SMALLEST_FREE_BYTES:
            raise SettingsError(
                f"only {free_bytes // 2**20} MiB are free at {self.root}; the embedded services need at least "
                f"{_SMALLEST_FREE_BYTES // 2**20} MiB: free some, or set RAGLLAVA_HOME to a folder on another disk"
            )

    def unusable(self, error: OSError) -> SettingsError:
        """The error of a home that cannot be written."""
        return SettingsError(
            f"cannot write to {self.root} ({error.strerror or error}); set RAGLLAVA_HOME to a folder of yours"
        )

    def load_secrets(self) -> Secrets:
        """The passwords, generated at the first call. Raises SettingsError when their file is damaged."""
        names = [item.name for item in fields(Secrets)]
        try:
            stored = json.loads(self.secrets_file.read_text()) if self.secrets_file.exists() else {}
            # A home of an earlier version lacks the later ones; a file that lacks others is damaged.
            missing = [name for name in names if name not in stored and (not stored or name in _LATER_SECRETS)]
            if missing:
                stored |= {name: secrets.token_urlsafe(24) for name in missing}
                write_whole(self.secrets_file, json.dumps(stored), 0o600)
            return Secrets(**{name: str(stored[name]) for name in names})
        except (ValueError, KeyError, TypeError) as error:
            raise SettingsError(
                f"{self.secrets_file} is damaged ({error!r}); restore it, or remove {self.data} to start with no data"
            ) from None

    def load_state(self) -> ServicesState:
        """What run/services.json says; a missing or damaged file is an empty state."""
        try:
            return TypeAdapter(ServicesState).validate_json(self.services_file.read_bytes())
        except (OSError, ValueError):
            return ServicesState()

    def save_state(self, state: ServicesState) -> None:
        """Write run/services.json; its settings hold passwords."""
        write_whole(self.services_file, json.dumps(asdict(state), indent=2), 0o600)

    def load_troubles(self) -> dict[str, str]:
        """For each worker that keeps dying, a sentence that says why; empty without a running `ragllava up`."""
        try:
            return TypeAdapter(dict[str, str]).validate_json(self.troubles_file.read_bytes())
        except (OSError, ValueError):
            return {}

    def why_open(self) -> str | None:
        """Why SeaweedFS runs without a network of its own, empty if it has one; None if that is not known."""
        try:
            return self.openness_file.read_text()
        except OSError:
            return None

    def save_troubles(self, troubles: dict[str, str]) -> None:
        """Write run/troubles.json. Raises OSError."""
        write_whole(self.troubles_file, json.dumps(troubles, indent=2), 0o600)


class HomeLock:
    """At most one process runs the services of a home. The system frees the lock when its holder dies."""

    def __init__(self, home: Home) -> None:
        """Nothing is locked yet."""
        self._home = home
        self._file: IO[str] | None = None

    def acquire(self) -> None:
        """Take the lock or raise AlreadyRunning, which names the holder."""
        # Whoever can open the file can lock it.
        file = os.fdopen(os.open(self._home.lock_file, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o600), "a+")
        try:
            self._home.lock_file.chmod(0o600)
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
            owner = self.owner()
            by = f"by process {owner.pid}" if owner else "by another process"
            raise AlreadyRunning(
                f"the services of {self._home.root} already run, started {by}; `ragllava status` shows them, "
                "`ragllava down` stops them"
            ) from None
        file.truncate(0)
        json.dump({"pid": os.getpid(), "started_at": psutil.Process().create_time()}, file)
        file.flush()
        self._file = file

    def release(self) -> None:
        """Release the lock; harmless when it is not held."""
        if self._file is not None:
            self._file.truncate(0)
            self._file.close()
            self._file = None

    def owner(self) -> psutil.Process | None:
        """The process that holds the lock now; None when it is free or was taken at this moment."""
        unreadable = (OSError, ValueError, KeyError, TypeError, psutil.NoSuchProcess)
        with contextlib.suppress(*unreadable), self._home.lock_file.open("r+") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                stored = json.loads(file.read())
                process = psutil.Process(stored["pid"])
                # A later process with this id started at another time.
                return process if abs(process.create_time() - stored["started_at"]) < 1.0 else None
        return None
