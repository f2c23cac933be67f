"""People are told once of each event, by a real mail server and a webhook, and never see a picture's caption there."""

from __future__ import annotations

import base64
import json
import shutil
import smtplib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from pydantic import SecretStr
from sqlalchemy import Engine, text

from ragllava.errors import SettingsError
from ragllava.jobs import figures
from ragllava.settings import Settings
from ragllava.stages.notices.deliver import process_notices
from ragllava.stages.notices.rules import parse_rules
from ragllava.stages.results.finalize import publish_missing_results
from ragllava.stores.database import in_transaction
from ragllava.stores.maintenance import notices
from ragllava.stores.maintenance.notices import MailingView, NewNotice, NoticeEvent
from ragllava.stores.objects import ObjectStore
from tests.support.job_rows import Desk
from tests.support.mail_server import Certificate, MailServer, serving_mail
from tests.support.web_receiver import check_signature, receiving

ALL = "job_ended=mailto:ops@example.org, disk_low=mailto:ops@example.org, gap_found=mailto:ops@example.org"


@pytest.fixture
def mail() -> Iterator[MailServer]:
    with serving_mail() as server:
        yield server


@pytest.fixture
def desk(engine: Engine, settings: Settings, mail: MailServer) -> Desk:
    own = {
        "tick_s": 600.0,  # workers are taken for gone after three ticks; here nobody ticks
        "smtp_host": f"127.0.0.1:{mail.port}",
        "smtp_security": "none",
        "smtp_sender": "ragllava@example.org",
        "notify_rules": ALL,
        "disk_low_gib": 0.0,
    }
    desk = Desk(engine, settings.model_copy(update=own))
    desk.live_worker()
    return desk


def end_a_job(desk: Desk) -> int:
    job_id = desk.questions_job(2, per_shard=2)
    desk.drain()
    publish_missing_results(desk.engine, ObjectStore(desk.settings))
    return job_id


def process(desk: Desk, **changed: Any) -> int:
    return process_notices(desk.engine, desk.settings.model_copy(update=changed))


def make_due(desk: Desk) -> None:
    with desk.engine.begin() as connection:
        connection.execute(text("UPDATE mailings SET not_before = now()"))


def mailings(desk: Desk) -> list[MailingView]:
    return in_transaction(desk.engine, notices.list_mailings)


def times_given_up(desk: Desk) -> float:
    """What the metric shows."""
    numbers = {
        reading.metric.name: reading.samples for reading in in_transaction(desk.engine, figures.read, desk.settings)
    }
    [sample] = numbers["ragllava_mailings_given_up_total"]
    return sample.number


def test_the_end_of_a_job_is_told_once(desk: Desk, mail: MailServer) -> None:
    job_id = end_a_job(desk)
    assert process(desk) == 1
    make_due(desk)
    publish_missing_results(desk.engine, ObjectStore(desk.settings))
    assert process(desk) == 0
    [message] = mail.accepted
    assert message["Subject"] == f"RagLLaVA: job {job_id} ended as completed"
    assert (message["To"], message["From"], mail.receivers) == (
        "ops@example.org",
        "ragllava@example.org",
        ["ops@example.org"],
    )
    assert not message.is_multipart() and message.get_content_type() == "text/plain"
    body = message.get_payload(decode=True)
    assert isinstance(body, bytes) and b"Inputs: 2 (2 answered)" in body and b"Archive: test" in body
    assert b"question 0" not in body and b"yes" not in body
    assert [row.state for row in mailings(desk)] == ["delivered"]


def test_a_refused_mail_is_sent_again_later_and_one_that_is_refused_for_good_is_not(
    desk: Desk, mail: MailServer
) -> None:
    end_a_job(desk)
    mail.answers = ["451 later"]
    assert process(desk) == 0
    [row] = mailings(desk)
    assert (row.state, row.attempts) == ("waiting", 1) and "451" in str(row.error)
    assert process(desk) == 0, "not before its time"
    make_due(desk)
    assert process(desk) == 1 and len(mail.accepted) == 1
    end_a_job(desk)
    mail.answers = ["550 never"]
    assert process(desk) == 0
    make_due(desk)
    assert process(desk) == 0
    assert [row.state for row in mailings(desk)] == ["given_up", "delivered"]
    assert times_given_up(desk) == 1


def test_without_a_mail_server_nothing_is_lost(desk: Desk, mail: MailServer) -> None:
    end_a_job(desk)
    end_a_job(desk)
    assert process(desk, smtp_host="127.0.0.1:1") == 0
    assert [(row.state, row.attempts) for row in mailings(desk)] == [("waiting", 1)] * 2
    make_due(desk)
    assert process(desk) == 2
    assert len({message["Message-ID"] for message in mail.accepted}) == 2


def test_a_mail_of_which_nobody_knows_whether_it_was_accepted_is_not_sent_twice(
    desk: Desk, mail: MailServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The effect happens, then the sender ends."""
    end_a_job(desk)

    def die(*_args: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as dying:
        dying.setattr(notices, "note_delivered", die)
        with pytest.raises(KeyboardInterrupt):
            process(desk)
    assert len(mail.accepted) == 1
    for host in ("127.0.0.1:1", f"127.0.0.1:{mail.port}"):  # the server is away, then it is back
        make_due(desk)
        assert process(desk, smtp_host=host) == 0 and len(mail.accepted) == 1
    [row] = mailings(desk)
    assert row.state == "given_up" and "may have arrived" in str(row.error)


def test_who_has_lost_the_lease_of_a_mailing_neither_sends_it_nor_lets_it_be_sent_again(desk: Desk) -> None:
    end_a_job(desk)
    rules = parse_rules(desk.settings)
    with desk.engine.begin() as connection:
        [notice] = notices.new_notices(connection, 10)
        notices.address(connection, notice.notice_id, [rule.target for rule in rules if rule.fits(notice)])
        [late] = notices.lease_due(connection, 10, 0.0)
        [mine] = notices.lease_due(connection, 10, 60.0)
        assert not notices.note_sending(connection, late)
        assert notices.note_sending(connection, mine) and not notices.note_sending(connection, mine)
        notices.note_failed(connection, late, "the session broke", 0.0)
        notices.note_failed(connection, late, "the session broke", None)
    assert [row.state for row in mailings(desk)] == ["sending"]
    assert times_given_up(desk) == 0


def test_a_server_that_cannot_take_the_mail_has_surely_not_got_it(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    end_a_job(desk)

    def refuse(*_args: object) -> None:
        raise smtplib.SMTPNotSupportedError("no SMTPUTF8")

    monkeypatch.setattr(smtplib.SMTP, "send_message", refuse)
    assert process(desk) == 0
    [row] = mailings(desk)
    assert row.state == "given_up" and "no SMTPUTF8" in str(row.error) and "may have arrived" not in str(row.error)


# Encryption and login


@pytest.fixture
def signed_in(desk: Desk) -> Desk:
    """A desk that sends nothing without STARTTLS and a login; one mail waits."""
    own = {"smtp_security": "starttls", "smtp_user": "ragllava", "smtp_password": SecretStr("open sesame")}
    desk = replace(desk, settings=desk.settings.model_copy(update=own))
    end_a_job(desk)
    return desk


def test_a_mail_over_starttls_with_the_right_login(
    signed_in: Desk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serving_mail(Certificate.make(tmp_path), password="open sesame") as server:
        where = f"127.0.0.1:{server.port}"
        assert process(signed_in, smtp_host=where) == 0
        [row] = mailings(signed_in)
        assert "the certificate of the mail server 127.0.0.1 is not trusted (self-signed" in str(row.error)
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "certificate.pem"))
        make_due(signed_in)
        assert process(signed_in, smtp_host=where, smtp_password=SecretStr("open barley")) == 0
        [row] = mailings(signed_in)
        assert (row.state, row.attempts) == ("waiting", 2)
        assert row.error is not None and "refuses the login with code 535; check RAGLLAVA_SMTP_USER" in row.error
        assert "barley" not in row.error
        assert server.accepted == []
        make_due(signed_in)
        assert process(signed_in, smtp_host=where) == 1
    assert server.logins[-1] == ("ragllava", "open sesame", True)
    assert set(server.logins[:-1]) == {("ragllava", "open barley", True)}, "by each method, and encrypted"
    assert len(server.accepted) == 1
    assert [row.state for row in mailings(signed_in)] == ["delivered"]


def test_nothing_is_sent_in_the_clear_to_a_server_without_starttls(signed_in: Desk) -> None:
    """It would take the login and the mail."""
    with serving_mail(password="open sesame") as server:
        where = f"127.0.0.1:{server.port}"
        assert process(signed_in, smtp_host=where) == 0
        [row] = mailings(signed_in)
        assert (row.state, row.attempts, server.logins, server.accepted) == ("waiting", 1, [], [])
        assert row.error is not None and row.error.startswith("the mail server 127.0.0.1 does not offer STARTTLS, so")
        make_due(signed_in)
        assert process(signed_in, smtp_host=where, smtp_security="none") == 1
    assert server.logins == [("ragllava", "open sesame", False)]


def test_a_server_that_takes_no_login(signed_in: Desk, mail: MailServer) -> None:
    assert process(signed_in, smtp_security="none") == 0
    [row] = mailings(signed_in)
    assert row.state == "waiting" and "takes no login over this connection" in str(row.error)
    assert mail.accepted == []


class _Usage(NamedTuple):
    total: int
    used: int
    free: int


def test_a_low_disk_is_told_once_until_it_is_not_low_any_more(
    desk: Desk, mail: MailServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    for free_gib in (3, 2, 4.1, 9, 9, 1):
        usage = _Usage(100 * 2**30, 0, int(free_gib * 2**30))
        monkeypatch.setattr(shutil, "disk_usage", lambda _path, usage=usage: usage)
        process(desk, disk_low_gib=4.0)
    assert [message["Subject"] for message in mail.accepted] == [
        "RagLLaVA: 3 GiB of disk are left",
        "RagLLaVA: 1 GiB of disk are left",
    ]


def test_rules_choose_by_event_and_archive(desk: Desk, mail: MailServer) -> None:
    rules = (
        "job_failed=mailto:a@example.org\ntraining_refused=mailto:b@example.org\njob_ended:other=mailto:c@example.org"
    )
    end_a_job(desk)
    for event, facts in (
        (NoticeEvent.TRAINING_REFUSED, {"role": "reranker", "version": "v"}),
        (NoticeEvent.GAP_FOUND, {"gaps": {"test": {"lost": 2}}}),
    ):
        in_transaction(desk.engine, notices.announce, NewNotice(event, "job 7", facts, job_id=None))
    assert process(desk, notify_rules=rules) == 1
    assert mail.receivers == ["b@example.org"]
    assert process(desk) == 0, "the rules of then hold"


def test_a_webhook_is_signed(desk: Desk) -> None:
    secret = "whsec_" + base64.b64encode(b"0123456789abcdef").decode()
    with receiving() as receiver:
        job_id = end_a_job(desk)
        own = {
            "notify_rules": f"job_ended={receiver.address}/x",
            "notify_secret": SecretStr(secret),
            "webhook_hosts": receiver.address,
        }
        receiver.statuses = [503]
        assert process(desk, **own) == 0
        make_due(desk)
        assert process(desk, **own | {"notify_rules": "", "notify_secret": None}) == 0
        assert (mailings(desk)[0].state, len(receiver.received)) == ("waiting", 1), (
            "nothing is sent without a signature"
        )
        make_due(desk)
        assert process(desk, **own) == 1
        (first, _), (headers, body) = receiver.received
        check_signature(secret, headers, body)
        assert first["webhook-id"] == headers["webhook-id"]
        sent = json.loads(body)
        assert (sent["type"], sent["data"]["job"], sent["data"]["state"]) == ("job.ended", job_id, "completed")
        end_a_job(desk)
        assert process(desk, **own | {"webhook_hosts": ""}) == 0
        assert mailings(desk)[0].state == "given_up"


@pytest.mark.parametrize(
    "rules",
    [
        "nothing=mailto:a@b.org",
        "job_ended",
        "job_ended=a@b.org",
        "job_ended=mailto:a b",
        "job_ended=https://example.org",
    ],
)
def test_wrong_rules_are_refused_before_anything_is_done(settings: Settings, rules: str) -> None:
    own = {"notify_rules": rules, "smtp_host": "mail", "smtp_sender": "a@b.org"}
    with pytest.raises(SettingsError, match="RAGLLAVA_NOTIFY"):
        parse_rules(settings.model_copy(update=own))
    for broken in ({"smtp_host": "mail:smtp"}, {"notify_secret": SecretStr("whsec_no base64")}):
        with pytest.raises(SettingsError, match=r"is no port|is not base64"):
            parse_rules(settings.model_copy(update=broken))
    with pytest.raises(SettingsError, match="RAGLLAVA_SMTP_HOST"):
        parse_rules(settings.model_copy(update={"notify_rules": "disk_low=mailto:a@b.org"}))
