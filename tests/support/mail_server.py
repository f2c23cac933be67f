"""A mail server for tests: plain, or with STARTTLS by a certificate of its own, and with a login."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from email import message_from_bytes
from email.message import Message
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

from aiosmtpd.controller import Controller
from aiosmtpd.smtp import AuthResult, Envelope, LoginPassword
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID


@dataclass
class MailServer:
    """What a mail server has accepted; `answers` are those to the next mails, at last that of acceptance. `logins` has
    each user and password, and whether they came encrypted."""

    port: int = 0
    password: str = ""
    answers: list[str] = field(default_factory=list)
    accepted: list[Message] = field(default_factory=list)
    receivers: list[str] = field(default_factory=list)
    logins: list[tuple[str, str, bool]] = field(default_factory=list)

    async def handle_DATA(self, _server: Any, _session: Any, envelope: Envelope) -> str:  # noqa: N802
        answer = self.answers.pop(0) if self.answers else "250 accepted"
        if answer.startswith("250"):
            assert isinstance(envelope.content, bytes)
            self.accepted.append(message_from_bytes(envelope.content))
            self.receivers += envelope.rcpt_tos
        return answer

    def authenticate(self, _server: Any, session: Any, _envelope: Any, _mechanism: str, data: Any) -> AuthResult:
        assert isinstance(data, LoginPassword)
        self.logins.append((data.login.decode(), data.password.decode(), session.ssl is not None))
        return AuthResult(success=data.password.decode() == self.password, handled=False)  # then it answers 535


@dataclass(frozen=True)
class Certificate:
    """A certificate of 127.0.0.1 that is signed by its own key: `certificate.pem` and `key.pem` of a folder."""

    folder: Path

    @classmethod
    def make(cls, folder: Path) -> Certificate:
        """Write both files."""
        key, now = ec.generate_private_key(ec.SECP256R1()), datetime.now(UTC)
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "mail of a test")])
        builder = x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        builder = builder.not_valid_before(now - timedelta(days=1)).not_valid_after(now + timedelta(days=1))
        host = x509.SubjectAlternativeName([x509.IPAddress(IPv4Address("127.0.0.1"))])
        authority = x509.BasicConstraints(ca=True, path_length=0)
        signed = builder.add_extension(host, critical=False).add_extension(authority, critical=True)
        pem = serialization.Encoding.PEM
        (folder / "certificate.pem").write_bytes(signed.sign(key, hashes.SHA256()).public_bytes(pem))
        plain = serialization.NoEncryption()
        (folder / "key.pem").write_bytes(key.private_bytes(pem, serialization.PrivateFormat.PKCS8, plain))
        return cls(folder)

    def context(self) -> ssl.SSLContext:
        """That of a server."""
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(self.folder / "certificate.pem", self.folder / "key.pem")
        return context


class _AnyPort(Controller):
    """Listens on a port that is free."""

    def _trigger_server(self) -> None:
        assert isinstance(self.server, asyncio.Server)
        self.port = self.server.sockets[0].getsockname()[1]
        super()._trigger_server()  # type: ignore[no-untyped-call]


@contextmanager
def serving_mail(certificate: Certificate | None = None, *, password: str = "") -> Iterator[MailServer]:
    """A server that runs: with a certificate it demands STARTTLS, with a password it takes logins."""
    server = MailServer(password=password)
    options: dict[str, Any] = {}
    if certificate is not None:
        options |= {"tls_context": certificate.context(), "require_starttls": True}
    if password:
        encrypted = certificate is not None
        options |= {"authenticator": server.authenticate, "auth_required": encrypted, "auth_require_tls": encrypted}
    controller = _AnyPort(server, hostname="127.0.0.1", port=0, ready_timeout=60.0, **options)
    controller.start()
    server.port = controller.port
    try:
        yield server
    finally:
        controller.stop()
