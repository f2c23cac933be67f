"""`ragllava mailings`: what was sent, what waits and what failed; and again."""

from __future__ import annotations

import json

from sqlalchemy import Engine, text

from ragllava.settings import Settings
from ragllava.stages.notices.deliver import process_notices
from ragllava.stores.database import in_transaction
from ragllava.stores.maintenance import notices
from ragllava.stores.maintenance.notices import NewNotice, NoticeEvent
from tests.support.mail_server import serving_mail
from tests.support.run_command import Run


def test_what_failed_is_shown_with_its_reason_and_sent_again(run: Run, engine: Engine, settings: Settings) -> None:
    assert run("mailings", "list")[1].startswith("nothing was sent, and nothing waits; RAGLLAVA_NOTIFY_RULES says")
    assert run("mailings", "retry", "--all")[:2] == (0, "none was given up\n")
    new = NewNotice(NoticeEvent.GAP_FOUND, "job 7", {"gaps": {"cards": {"lost": 2}}})
    in_transaction(engine, notices.announce, new)
    with serving_mail() as server:
        rules = {
            "smtp_host": f"127.0.0.1:{server.port}",
            "smtp_security": "none",
            "smtp_sender": "ragllava@example.org",
            "notify_rules": "gap_found=mailto:a@example.org, gap_found=mailto:b@example.org",
            "disk_low_gib": 0.0,
        }
        own = settings.model_copy(update=rules)
        server.answers = ["550 never", "451 later"]
        assert process_notices(engine, own) == 0
        with engine.begin() as connection:  # its 8 to 12 s may be over before the list is read
            later = text("UPDATE mailings SET not_before = now() + interval '1 hour' WHERE state = 'waiting'")
            assert connection.execute(later).rowcount == 1
        by_state = {row["state"]: row for row in json.loads(run("mailings", "list", "--json")[1])}
        failed, waiting = by_state["given_up"], by_state["waiting"]
        assert (failed["attempts"], failed["next_try_at"]) == (1, None) and "550" in failed["error"]
        assert "451" in waiting["error"] and waiting["next_try_at"] and waiting["delivered_at"] is None
        both = [failed["mailing_id"], waiting["mailing_id"]]
        table = run("mailings", "list")[1]
        assert "gap_found" in table and "550" in table and "next try 20" in table
        [only] = json.loads(run("mailings", "list", "--state", "given_up", "--json")[1])
        assert only == failed
        assert run("mailings", "list", "--state", "sending")[1] == "no mailing is sending\n"

        code, out, err = run("mailings", "retry", failed["mailing_id"], max(both) + 1)
        assert (code, out) == (1, "") and err.startswith("ragllava: there is no mailing ")
        assert process_notices(engine, own) == 0, "neither of them"
        code, out, _ = run("mailings", "retry", *both)
        assert (code, out) == (0, "2 of them at the next tick; `ragllava mailings list` shows the outcome\n")
        assert process_notices(engine, own) == 2
        assert sorted(server.receivers) == ["a@example.org", "b@example.org"]
        code, _, err = run("mailings", "retry", failed["mailing_id"])
        assert code == 1 and "was delivered; only one that waits or was given up is sent again" in err

        with engine.begin() as connection:
            connection.execute(text("UPDATE mailings SET state = 'given_up' WHERE target LIKE '%b@%'"))
        assert run("mailings", "retry", "--all")[1].startswith("1 of them at the next tick")
        assert process_notices(engine, own) == 1
        assert len(server.accepted) == 3


def test_ids_or_all_but_not_both(run: Run) -> None:
    for words in ((), ("1", "--all")):
        code, _, err = run("mailings", "retry", *words)
        assert code == 2 and "name the ids that `ragllava mailings list` shows, or --all" in err
