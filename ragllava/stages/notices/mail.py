"""Mails over SMTP. They are plain text, and their content is a notice: no picture, no caption."""

from __future__ import annotations

import smtplib
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from email.message import EmailMessage
from email.utils import format_datetime

from ragllava.errors import SettingsError
from ragllava.settings import Settings
from ragllava.stages.notices.texts import body_of, subject_of
from ragllava.stores.maintenance.notices import Notice

_TIMEOUT_S = 10.0
_PORTS = {"starttls": 587, "tls": 465, "none": 25}


def compose(settings: Settings, notice: Notice, mailing_id: int, receiver: str) -> EmailMessage:
    """The mail of a mailing. Its id stays the same, so that a receiver can recognise a repetition."""
    sender = settings.smtp_sender or ""
    mail = EmailMessage()
    mail["From"], mail["To"] = sender, receiver
    mail["Subject"] = subject_of(notice)
    mail["Date"] = format_datetime(notice.created_at)
    mail["Message-ID"] = f"<ragllava-{notice.notice_id}-{mailing_id}@{sender.rpartition('@')[2].rstrip('>')}>"
    mail["Auto-Submitted"] = "auto-generated"
    mail.set_content(body_of(notice))
    return mail


def mail_server(settings: Settings) -> tuple[str, int]:
    """The host and the port of the mail server. Raises SettingsError for a port that is no number."""
    host, _, port = (settings.smtp_host or "").partition(":")
    if not port:
        return host, _PORTS[settings.smtp_security]
    if not port.isascii() or not port.isdecimal() or not 0 < int(port) < 65_536:
        raise SettingsError(f"RAGLLAVA_SMTP_HOST: {port[:20]!r} is no port; write host or host:port")
    return host, int(port)


@contextmanager
def mail_session(settings: Settings) -> Iterator[smtplib.SMTP]:
    """A session with the mail server, signed in if the settings have a user. Raises OSError and SMTPException; a plain
    SMTPException says in a sentence what the settings ask for and the server does not offer or accept."""
    where = mail_server(settings)
    context = ssl.create_default_context()
    if settings.smtp_security == "tls":
        with _only_trusted(where[0]):
            session: smtplib.SMTP = smtplib.SMTP_SSL(*where, timeout=_TIMEOUT_S, context=context)
    else:
        session = smtplib.SMTP(*where, timeout=_TIMEOUT_S)
    with session:
        if settings.smtp_security == "starttls":
            _encrypt(session, where[0], context)
        if settings.smtp_user is not None:
            _sign_in(session, where[0], settings)
        yield session


@contextmanager
def _only_trusted(host: str) -> Iterator[None]:
    try:
        yield
    except ssl.SSLCertVerificationError as error:
        raise smtplib.SMTPException(
            f"the certificate of the mail server {host} is not trusted ({error.verify_message}), so nothing is sent to "
            "it; name a file with its issuer in SSL_CERT_FILE"
        ) from None


def _encrypt(session: smtplib.SMTP, host: str, context: ssl.SSLContext) -> None:
    try:
        with _only_trusted(host):
            session.starttls(context=context)
    except smtplib.SMTPNotSupportedError:
        raise smtplib.SMTPException(
            f"the mail server {host} does not offer STARTTLS, so nothing is sent to it; use another server, or set "
            "RAGLLAVA_SMTP_SECURITY to what it offers"
        ) from None


def _sign_in(session: smtplib.SMTP, host: str, settings: Settings) -> None:
    password = settings.smtp_password.get_secret_value() if settings.smtp_password else ""
    try:
        session.login(settings.smtp_user or "", password)
    except smtplib.SMTPAuthenticationError as refused:
        raise smtplib.SMTPException(
            f"the mail server {host} refuses the login with code {refused.smtp_code}; check RAGLLAVA_SMTP_USER and "
            "RAGLLAVA_SMTP_PASSWORD"
        ) from None
    except smtplib.SMTPNotSupportedError:
        raise smtplib.SMTPException(
            f"the mail server {host} takes no login over this connection; unset RAGLLAVA_SMTP_USER, or set "
            "RAGLLAVA_SMTP_SECURITY to what it offers"
        ) from None
