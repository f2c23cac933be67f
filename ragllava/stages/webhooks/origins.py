"""Where webhooks may be sent: the origins that the settings name, and nowhere else."""

from __future__ import annotations

from urllib.parse import urlsplit

from ragllava.errors import UsageError
from ragllava.settings import Settings

_PORTS = {"http": 80, "https": 443}
_MAX_URL = 2_000

Origin = tuple[str, str, int]  # scheme, host, port


def require_allowed(settings: Settings, url: str) -> None:
    """Raises UsageError unless a webhook may be sent to this address. So no caller reaches what only the server can."""
    origin = _origin(url)
    allowed = [_origin(part.strip()) for part in settings.webhook_hosts.split(",") if part.strip()]
    if origin is None or len(url) > _MAX_URL or not url.isprintable() or origin not in allowed:
        raise UsageError(
            f"webhooks are not sent to {url[:200]!r}; whoever runs the server names the hosts in RAGLLAVA_WEBHOOK_HOSTS"
        )


def _origin(url: str) -> Origin | None:
    """None for what is no address, or has a user in it."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        return None
    if parts.scheme not in _PORTS or not parts.hostname or "@" in parts.netloc or "\\" in url:
        return None
    return parts.scheme, parts.hostname.lower(), _PORTS[parts.scheme] if port is None else port
