"""Pictures of other hosts: fetched from a TLS server on this machine, and every refusal."""

from __future__ import annotations

import http.server
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import certifi
import pytest

from ragllava.errors import UsageError
from ragllava.local.certificates import certificates_in, make_certificates
from ragllava.settings import Settings
from ragllava.stages.answer import remote_pictures
from ragllava.stages.answer.remote_pictures import RemotePictures, is_public

PICTURE = b"\x89PNG" + bytes(2_000)


@dataclass
class Host:
    """A server of pictures, the paths that it was asked for, and those that it has told to the end."""

    port: int
    certificates: str
    asked: list[str] = field(default_factory=list)
    told: list[str] = field(default_factory=list)

    def fetcher(self, **values: Any) -> RemotePictures:
        """It takes this machine for one of the internet."""
        given: dict[str, Any] = {"hosts": [f"127.0.0.1:{self.port}"], "is_public": lambda _: True}
        return RemotePictures(**given | {"certificates": self.certificates} | values)

    def url(self, path: str) -> str:
        return f"https://127.0.0.1:{self.port}{path}"


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    folder = tmp_path_factory.mktemp("tls")
    make_certificates(folder, "127.0.0.1")
    asked: list[str] = []
    told: list[str] = []
    over = threading.Event()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            if self.path == "/moved":
                self.send_response(302)
                self.send_header("location", "https://169.254.169.254/latest")
                self.end_headers()
                return
            if self.path == "/trickling":
                self.send_response(200)
                self.flush_headers()
                with suppress(OSError):  # the client has had enough
                    for number in range(3_000):
                        self.wfile.write(b"x-%d: 1\r\n" % number)
                        self.wfile.flush()
                        time.sleep(0.02)
                    told.append(self.path)
                return
            if self.path == "/silent":
                over.wait(60)
                return
            if self.path == "/gone":
                self.send_error(404)
                return
            self.send_response(200)
            self.end_headers()
            pieces = 1_200 if self.path == "/slow" else 1
            try:
                for _ in range(pieces):
                    self.wfile.write(PICTURE)
                    self.wfile.flush()
                    time.sleep(0.05 if pieces > 1 else 0)
                told.append(self.path)
            except OSError:  # the client has had enough
                return

        def log_message(self, *_: Any) -> None:
            """Nothing."""

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    files = certificates_in(folder)
    context.load_cert_chain(files.certificate, files.key)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    yield Host(server.server_port, str(files.authority), asked, told)
    over.set()
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_picture_of_an_allowed_host_is_fetched(host: Host) -> None:
    assert host.fetcher().fetch(host.url("/a.png?size=2"), 10_000) == PICTURE
    assert host.asked[-1] == "/a.png?size=2"


@pytest.mark.parametrize(
    ("path", "values", "sentence"),
    [
        ("/a.png", {"is_public": is_public}, "an address that is not public"),
        ("/a.png", {"hosts": []}, "are not fetched from"),
        ("/a.png", {"hosts": ["127.0.0.1"]}, "are not fetched from"),  # of another port
        ("/moved", {}, "status 302; redirects are not followed"),
        ("/gone", {}, "status 404"),
        ("/slow", {"whole_s": 0.2}, "in time"),
        ("/trickling", {"whole_s": 0.2}, "in time"),
        ("/a.png", {"certificates": certifi.where()}, "SSLError"),
    ],
)
def test_what_is_refused(host: Host, path: str, values: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence):
        host.fetcher(**values).fetch(host.url(path), 1_000_000)
    assert path == "/a.png" or path not in host.told, "a slow host is not waited for"


def test_a_silent_host_is_slow_though_the_watch_comes_late(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """A read ends at about the same time; on a busy machine the thread of the watch may be the later one."""
    monkeypatch.setattr(remote_pictures._Watch, "_end", lambda _watch: None)
    with pytest.raises(UsageError, match="in time"):
        host.fetcher(whole_s=0.2).fetch(host.url("/silent"), 1_000)


def test_too_many_bytes_are_not_read(host: Host) -> None:
    with pytest.raises(UsageError, match="at most 1,000 bytes"):
        host.fetcher().fetch(host.url("/a.png"), 1_000)


@pytest.mark.parametrize(
    "url",
    [
        "http://pictures.example/a.png",
        "ftp://pictures.example/a.png",
        "https://pictures.example.evil.example/a.png",
        "https://user@pictures.example/a.png",
        "https://pictures.example@evil.example/a.png",
        "https://evil.example\\@pictures.example/a.png",
        "https://pictures.example:8443/a.png",
        "https://pictures.example/a b.png",
        "https://pictures.example/a\r\nhost: evil",
        "https:///a.png",
        "https://[::1/a.png",
        "https://pictures.example:99999/a.png",
        "https://pictures.example/" + "a" * 2_000,
    ],
)
def test_addresses_that_no_host_is_asked_for(url: str) -> None:
    def fail(*_: Any) -> list[str]:
        raise AssertionError("the name was looked up")

    with pytest.raises(UsageError, match="are not fetched from"):
        RemotePictures(["pictures.example"], resolve=fail).fetch(url, 1_000)


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1",
        "10.0.0.8",
        "172.16.5.4",
        "192.168.1.1",
        "169.254.169.254",
        "100.64.0.1",
        "0.0.0.0",
        "224.0.0.1",
        "255.255.255.255",
        "::",
        "::1",
        "fe80::1%eth0",
        "fc00::1",
        "fec0::1",
        "ff02::1",
        "::ffff:127.0.0.1",
        "::ffff:10.0.0.1",
        "64:ff9b::7f00:1",
        "64:ff9b::a9fe:a9fe",
        "64:ff9b:1::5db8:d822",
        "64:ff9b:1:7f00:0:100::",
        "2002:7f00:1::",
        "no address",
    ],
)
def test_a_name_that_leads_inside_is_not_asked(address: str) -> None:
    assert not is_public(address)
    for addresses in ([address], ["93.184.216.34", address]):  # one of several is enough
        with pytest.raises(UsageError, match="an address that is not public"):
            RemotePictures(["pictures.example"], resolve=lambda *_, found=addresses: found).fetch(
                "https://pictures.example/a.png", 1_000
            )


def test_a_real_name_that_resolves_to_loopback() -> None:
    with pytest.raises(UsageError, match="an address that is not public"):
        RemotePictures(["localhost"]).fetch("https://localhost/a.png", 1_000)


def test_an_unknown_name() -> None:
    def unknown(*_: Any) -> list[str]:
        raise socket.gaierror("unknown")

    with pytest.raises(UsageError, match="is not known"):
        RemotePictures(["pictures.example"], resolve=unknown).fetch("https://pictures.example/", 1_000)


def test_public_addresses_and_the_setting(tmp_path: Path) -> None:
    assert is_public("93.184.216.34") and is_public("2606:4700::1111") and is_public("64:ff9b::5db8:d822")
    assert RemotePictures.of(Settings(home=tmp_path)).hosts == []
    settings = Settings(home=tmp_path, api_picture_hosts="Pictures.example, cdn.example:8443")
    assert RemotePictures.of(settings).hosts == ["pictures.example", "cdn.example:8443"]
