"""What callers have used of their quotas, by day."""

from __future__ import annotations

from datetime import date

import pytest
from sqlalchemy import Engine, literal

from ragllava.client import Client
from ragllava.errors import QuotaExceeded
from ragllava.settings import Settings
from ragllava.stores.access import usage
from ragllava.stores.access.keys import AccessRole, Limits, Principal
from ragllava.stores.access.tenancy import acting
from ragllava.stores.access.usage import add_questions, give_back_questions, questions_today

SUNDAY, MONDAY = date(2026, 11, 29), date(2026, 11, 30)


def let_it_be(day: date, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(usage, "_TODAY", literal(day))


def test_what_is_given_back_after_midnight_is_none_of_the_new_day(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    with engine.begin() as connection:
        let_it_be(SUNDAY, monkeypatch)
        sums = [add_questions(connection, "ann", number).questions for number in (5, 2)]
        assert (sums, add_questions(connection, "bob", 1).day) == ([5, 7], SUNDAY)
        let_it_be(MONDAY, monkeypatch)
        give_back_questions(connection, "ann", 5, SUNDAY)
        assert questions_today(connection, "ann") == 0
        assert add_questions(connection, "ann", 3) == usage.Counted(MONDAY, 3)
        give_back_questions(connection, "ann", 2, SUNDAY)
        assert questions_today(connection, "ann") == 3
        let_it_be(SUNDAY, monkeypatch)
        assert (questions_today(connection, "ann"), questions_today(connection, "bob")) == (0, 1)


def test_a_job_that_is_not_made_gives_back_to_the_day_that_it_was_admitted_on(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    ann = Principal("ann", AccessRole.ASK, None, Limits(questions_per_day=3))
    with Client(settings, for_tenants=True) as client, acting(client.access.scope_of(ann)):
        let_it_be(SUNDAY, monkeypatch)
        with pytest.raises(InterruptedError), client.access.admitted(ann, 3):
            let_it_be(MONDAY, monkeypatch)
            with client.access.admitted(ann, 2):
                pass
            raise InterruptedError
        with pytest.raises(QuotaExceeded, match="has asked 2; 2 more"), client.access.admitted(ann, 2):
            pass
        let_it_be(SUNDAY, monkeypatch)
        with client.access.admitted(ann, 3):
            pass
