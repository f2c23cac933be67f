"""Pictures of other hosts: fetched only from those that a setting names, and never from inside this network.

A caller must not reach through this server what only the server can reach. So: https alone, hosts by name, and the
address that the name resolves to must be a public one. The connection is made to that very address, so that the name
cannot lead elsewhere a moment later. Redirects are not followed.

A host may be slow. Whoever has few threads tries first inside `fetching_nothing`, and when that raises FetchNeeded,
again in a thread that may be held up.
"""

from __future__ import annotations

import ipaddress
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass
from urllib.parse import SplitResult, urlsplit

import certifi
import urllib3
from urllib3.connection import HTTPSConnection

from ragllava.errors import FetchNeeded, UsageError
from ragllava.settings import Settings

_CONNECT_S, _READ_S = 3.0, 5.0
_WHOLE_S = 15.0
_PIECE_BYTES = 64 * 2**10
_MAX_URL = 2_000
_PORT = 443
# An address of this network has an IPv4 address in its last 32 bits, which is where a packet goes in the end. The other
# such network, 64:ff9b:1::/48, has it elsewhere, and belongs to the inside of a network: it is refused as reserved.
_EMBEDDING = ipaddress.ip_network("64:ff9b::/96")

_may_fetch: ContextVar[bool] = ContextVar("may_fetch", default=True)


@contextmanager
def fetching_nothing() -> Iterator[None]:
    """In the block, what would fetch a picture raises FetchNeeded instead. Pictures of hosts that are not allowed are
    refused as ever."""
    token = _may_fetch.set(False)
    try:
        yield
    finally:
        _may_fetch.reset(token)


def may_fetch() -> bool:
    """Whether this is outside of `fetching_nothing`."""
    return _may_fetch.get()


def resolve(host: str, port: int) -> list[str]:
    """The addresses of a name. Raises OSError."""
    entries = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(entry[4][0]) for entry in entries))


def is_public(address: str) -> bool:
    """Whether an IP address is one of the internet: not private, loopback, link-local, multicast or reserved."""
    try:
        ip = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return False
    if isinstance(ip, ipaddress.IPv6Address):
        if ip in _EMBEDDING:
            return is_public(str(ipaddress.IPv4Address(int(ip) & 0xFFFF_FFFF)))
        embedded = ip.ipv4_mapped or ip.sixtofour or (ip.teredo[1] if ip.teredo else None)
        if embedded is not None:
            return is_public(str(embedded))
        if ip.is_site_local:
            return False
    return ip.is_global and not ip.is_multicast and not ip.is_reserved


@dataclass(frozen=True)
class RemotePictures:
    """Fetches pictures from the hosts that are allowed; `host` or `host:port`, in lower case."""

    hosts: Sequence[str]
    resolve: Callable[[str, int], list[str]] = resolve
    is_public: Callable[[str], bool] = is_public
    certificates: str = certifi.where()
    whole_s: float = _WHOLE_S

    @classmethod
    def of(cls, settings: Settings) -> RemotePictures:
        """Of the hosts in the settings; by default there are none."""
        return cls([part.strip().lower() for part in settings.api_picture_hosts.split(",") if part.strip()])

    def fetch(self, url: str, max_bytes: int) -> bytes:
        """The bytes at an address. Raises UsageError for one that is not allowed, too large, too slow, or not there;
        FetchNeeded inside `fetching_nothing`."""
        parts = self._allowed(url)
        if not may_fetch():
            raise FetchNeeded(f"the picture at {url[:200]} has to be fetched")
        host, port = str(parts.hostname), parts.port or _PORT
        address = self._address(host, port)
        path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        name = host if port == _PORT else f"{host}:{port}"
        until = time.monotonic() + self.whole_s
        timeout = urllib3.Timeout(connect=_CONNECT_S, read=min(_READ_S, self.whole_s))
        watch = _Watch(self.whole_s)
        with (
            watch,
            urllib3.HTTPSConnectionPool(
                address,
                port,
                server_hostname=host,
                assert_hostname=host,
                ca_certs=self.certificates,
                timeout=timeout,
                retries=False,
            ) as pool,
        ):
            pool.ConnectionCls = watch.connection_class()
            try:
                data = _received(pool, path, name, max_bytes, until)
            except (urllib3.exceptions.HTTPError, OSError, ValueError) as error:
                # A read may end at the same moment, and be noticed before the watch.
                if watch.has_ended or time.monotonic() > until:
                    raise _too_slow(name) from None
                raise UsageError(f"the picture at {url[:200]} cannot be fetched: {type(error).__name__}") from None
        if watch.has_ended:  # what was received then ends where the connection was ended
            raise _too_slow(name)
        return data

    def _allowed(self, url: str) -> SplitResult:
        refused = UsageError(
            f"pictures are not fetched from {url[:200]!r}; send a data: address or the id of a file. Whoever runs the "
            "server names hosts in RAGLLAVA_API_PICTURE_HOSTS"
        )
        try:
            parts = urlsplit(url)
            port = parts.port or _PORT
        except ValueError:
            raise refused from None
        odd = len(url) > _MAX_URL or not url.isascii() or not url.isprintable() or " " in url or "\\" in url
        host = (parts.hostname or "").lower()
        if odd or parts.scheme != "https" or not host or "@" in parts.netloc:
            raise refused
        if f"{host}:{port}" not in self.hosts and (port != _PORT or host not in self.hosts):
            raise refused
        return parts

    def _address(self, host: str, port: int) -> str:
        """Where to connect to. All addresses of the name must be public ones: which one is used is a matter of luck."""
        try:
            addresses = self.resolve(host, port)
        except OSError:
            raise UsageError(f"the host {host} of the picture is not known") from None
        if not addresses or not all(map(self.is_public, addresses)):
            raise UsageError(f"the host {host} of the picture has an address that is not public; it is not asked")
        return addresses[0]


class _Watch:
    """Ends the connection of a fetch when its time is over, whatever it is at: a host may send its headers slowly, and
    the time-outs of a connection are those of one read."""

    def __init__(self, whole_s: float) -> None:
        self.has_ended = False
        self._sockets: list[socket.socket] = []
        self._timer = threading.Timer(whole_s, self._end)
        self._timer.daemon = True

    def __enter__(self) -> _Watch:
        self._timer.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._timer.cancel()
        for connected in self._sockets:
            connected.close()

    def connection_class(self) -> type[HTTPSConnection]:
        """Connections that are watched."""
        sockets = self._sockets

        class Watched(HTTPSConnection):
            def _new_conn(self) -> socket.socket:
                connected = super()._new_conn()
                sockets.append(connected.dup())  # TLS takes the socket itself over, before its handshake
                return connected

        return Watched

    def _end(self) -> None:
        self.has_ended = True
        for connected in self._sockets:
            with suppress(OSError):  # it was closed a moment ago
                connected.shutdown(socket.SHUT_RDWR)


def _too_slow(name: str) -> UsageError:
    return UsageError(f"the host {name} did not send the picture in time")


def _received(pool: urllib3.HTTPSConnectionPool, path: str, name: str, max_bytes: int, until: float) -> bytes:
    headers = {"host": name, "user-agent": "ragllava", "accept": "image/*", "accept-encoding": "identity"}
    answer = pool.request("GET", path, headers=headers, redirect=False, preload_content=False, decode_content=False)
    try:
        if answer.status != 200:
            moved = "; redirects are not followed" if 300 <= answer.status < 400 else ""
            raise UsageError(f"the host {name} of the picture answered with the status {answer.status}{moved}")
        data = bytearray()
        while piece := answer.read1(_PIECE_BYTES):
            data += piece
            if len(data) > max_bytes:
                raise UsageError(f"a picture may have at most {max_bytes:,} bytes, and the one of {name} has more")
            if time.monotonic() > until:
                raise _too_slow(name)
        return bytes(data)
    finally:
        answer.close()
