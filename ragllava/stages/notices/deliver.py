"""What the tick does for notices: look at the disk, apply the rules, send what is due.

A mail is sent once: its row says `sending` before the server may accept it, and if the sender ends then, it is given up
instead of sent again. What fails before is sent again with growing delays. A webhook may come twice, under the same
`webhook-id`.
"""

from __future__ import annotations

import json
import logging
import random
import shutil
import smtplib
import socket
import time
from collections.abc import Sequence

from sqlalchemy import Connection, Engine

from ragllava.errors import UsageError
from ragllava.settings import Settings
from ragllava.stages.notices.mail import compose, mail_session
from ragllava.stages.notices.rules import Rule, parse_rules
from ragllava.stages.notices.texts import json_of_notice
from ragllava.stages.webhooks.deliver import WebhookPost, next_delay_s, post_all
from ragllava.stages.webhooks.origins import require_allowed
from ragllava.stores.database import in_transaction
from ragllava.stores.maintenance import notices
from ragllava.stores.maintenance.notices import LeasedMailing, NewNotice, Notice, NoticeEvent

log = logging.getLogger(__name__)

_PER_TICK = 50
_LEASE_S = 600.0  # longer than all attempts of one call take
_SENDING_S = 300.0  # no mail is begun later; what is left is sent when the lease is over
_GIB = 2**30
_ENOUGH = 1.1  # times the limit: then a low disk is over
_SURELY_NOT_SENT = (
    smtplib.SMTPRecipientsRefused,
    smtplib.SMTPSenderRefused,
    smtplib.SMTPDataError,
    smtplib.SMTPHeloError,
    smtplib.SMTPNotSupportedError,
)
_MAYBE = "the sender ended before the mail server had answered; it may have arrived, and is not sent again"


def process_notices(engine: Engine, settings: Settings) -> int:
    """Do what is due; returns how many mailings were accepted. Raises SettingsError for a wrong rule, before anything
    is marked as done."""
    rules = parse_rules(settings)
    look_at_disk(engine, settings)
    in_transaction(engine, _apply, rules)
    leased = in_transaction(engine, notices.lease_due, _PER_TICK, _LEASE_S)
    if not leased:
        return 0
    mails = [mailing for mailing in leased if mailing.target.startswith("mailto:")]
    others = [mailing for mailing in leased if not mailing.target.startswith("mailto:")]
    return (_send_mails(engine, settings, mails) if mails else 0) + (_post(engine, settings, others) if others else 0)


def look_at_disk(engine: Engine, settings: Settings) -> None:
    """Store a notice when the disk of the home becomes low, and note when it is not any more."""
    if not settings.disk_low_gib:
        return
    usage, host = shutil.disk_usage(settings.existing_home), socket.gethostname()
    free_gib = usage.free / _GIB
    if free_gib < settings.disk_low_gib:
        facts = {
            "host": host,
            "free_gib": round(free_gib, 1),
            "total_gib": round(usage.total / _GIB, 1),
            "limit_gib": settings.disk_low_gib,
        }
        in_transaction(engine, notices.announce, NewNotice(NoticeEvent.DISK_LOW, host, facts))
    elif free_gib >= settings.disk_low_gib * _ENOUGH:
        in_transaction(engine, notices.note_over, NoticeEvent.DISK_LOW, host)


def _apply(connection: Connection, rules: Sequence[Rule]) -> None:
    for notice in notices.new_notices(connection, _PER_TICK):
        notices.address(connection, notice.notice_id, [rule.target for rule in rules if rule.fits(notice)])


def _send_mails(engine: Engine, settings: Settings, leased: Sequence[LeasedMailing]) -> int:
    """All in one session; what was not reached when it broke is sent again later."""
    sent, until = 0, time.monotonic() + _SENDING_S
    for mailing in leased:
        if mailing.was_sending:  # also while no server can be reached
            _note_failed(engine, mailing, _MAYBE, is_final=True)
    open_mailings = [mailing for mailing in leased if not mailing.was_sending]
    if not open_mailings:
        return 0
    try:
        with mail_session(settings) as session:
            while open_mailings and time.monotonic() < until:
                sent += _send_mail(engine, settings, session, open_mailings[0])
                open_mailings.pop(0)
    except (OSError, smtplib.SMTPException) as error:
        for mailing in open_mailings:
            _note_failed(engine, mailing, _said(error), is_final=False)
    return sent


def _send_mail(engine: Engine, settings: Settings, session: smtplib.SMTP, mailing: LeasedMailing) -> bool:
    """Whether it was accepted. Raises OSError and SMTPException when it surely was not, and the session is of no
    use."""
    notice = _notice_of(engine, mailing)
    if notice is None:
        return False
    receiver = mailing.target.removeprefix("mailto:")
    mail = compose(settings, notice, mailing.mailing_id, receiver)
    session.noop()  # before this the server has nothing of the mail
    if not in_transaction(engine, notices.note_sending, mailing):
        return False
    try:
        session.send_message(mail)
    except _SURELY_NOT_SENT as refused:
        _note_failed(engine, mailing, f"{type(refused).__name__}: {refused}", is_final=_is_permanent(refused))
        return False
    except (OSError, smtplib.SMTPException) as broken:
        _note_failed(engine, mailing, f"{_MAYBE} ({type(broken).__name__})", is_final=True)
        return False
    in_transaction(engine, notices.note_delivered, mailing.mailing_id)
    log.info("mail sent", extra={"action": "notice", "mailing": mailing.mailing_id, "notice": notice.notice_id})
    return True


def _said(error: Exception) -> str:
    """A plain SMTPException is a sentence of ours (mail_session)."""
    return str(error) if type(error) is smtplib.SMTPException else f"{type(error).__name__}: {error}"


def _is_permanent(refused: smtplib.SMTPException) -> bool:
    """Whether the server will never accept it: a code from 500, or something that it cannot do."""
    if isinstance(refused, smtplib.SMTPNotSupportedError):
        return True
    if isinstance(refused, smtplib.SMTPRecipientsRefused):
        return all(code >= 500 for code, _ in refused.recipients.values())
    return isinstance(refused, smtplib.SMTPResponseException) and refused.smtp_code >= 500


def _post(engine: Engine, settings: Settings, leased: Sequence[LeasedMailing]) -> int:
    if settings.notify_secret is None:  # it was set when the rules made these
        for mailing in leased:
            _note_failed(engine, mailing, "RAGLLAVA_NOTIFY_SECRET is not set, so nothing can be signed", is_final=False)
        return 0
    secret = settings.notify_secret.get_secret_value()
    posts: list[WebhookPost] = []
    sent: list[LeasedMailing] = []
    for mailing in leased:
        notice = _notice_of(engine, mailing)
        if notice is None:
            continue
        try:
            require_allowed(settings, mailing.target)
        except UsageError as refused:
            _note_failed(engine, mailing, str(refused), is_final=True)
            continue
        body = json.dumps(json_of_notice(notice)).encode()
        posts.append(WebhookPost(mailing.target, secret, f"notice_{mailing.mailing_id}", body))
        sent.append(mailing)
    accepted = 0
    for mailing, (error, is_final) in zip(sent, post_all(posts), strict=True):
        if error is None:
            in_transaction(engine, notices.note_delivered, mailing.mailing_id)
            accepted += 1
        else:
            _note_failed(engine, mailing, error, is_final=is_final)
    return accepted


def _notice_of(engine: Engine, mailing: LeasedMailing) -> Notice | None:
    """None if it went with its job, and the mailing with it."""
    return in_transaction(engine, notices.load_notice, mailing.notice_id)


def _note_failed(engine: Engine, mailing: LeasedMailing, error: str, *, is_final: bool) -> None:
    retry_s = None if is_final else next_delay_s(mailing.attempts, random.Random())  # noqa: S311 - jitter, no secret
    log.warning(f"not sent: {error}", extra={"action": "notice", "mailing": mailing.mailing_id, "retry_s": retry_s})
    in_transaction(engine, notices.note_failed, mailing, error[:500], retry_s)
