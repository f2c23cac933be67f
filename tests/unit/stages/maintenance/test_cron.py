"""When a cron line comes next: against a slow reference, and where clocks are moved."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ragllava.errors import UsageError
from ragllava.stages.maintenance.schedules import find_zone, first_due_after

SOME = st.datetimes(datetime(2024, 1, 1), datetime(2027, 12, 31), timezones=st.just(UTC))


def next_by_trying(minutes: set[int], hours: set[int], moment: datetime) -> datetime:
    """The first whole minute after the moment that has such a minute and hour."""
    tried = moment.replace(second=0, microsecond=0) + timedelta(minutes=1)
    while tried.minute not in minutes or tried.hour not in hours:
        tried += timedelta(minutes=1)
    return tried


@given(
    moment=SOME,
    minutes=st.sets(st.integers(0, 59), min_size=1, max_size=3),
    hours=st.sets(st.integers(0, 23), min_size=1, max_size=3),
)
def test_in_utc_it_is_the_first_minute_that_fits(moment: datetime, minutes: set[int], hours: set[int]) -> None:
    cron = f"{','.join(map(str, minutes))} {','.join(map(str, hours))} * * *"
    assert first_due_after(cron, "UTC", moment) == next_by_trying(minutes, hours, moment)


@given(moment=SOME, zone=st.sampled_from(["Europe/Berlin", "America/New_York", "Asia/Kolkata", "Pacific/Chatham"]))
def test_in_every_zone_it_comes_later_and_once_a_day(moment: datetime, zone: str) -> None:
    first = first_due_after("30 2 * * *", zone, moment)
    second = first_due_after("30 2 * * *", zone, first)
    assert moment < first < second
    days = {due.astimezone(find_zone(zone)).date() for due in (first, second)}
    assert len(days) == 2
    assert second - first >= timedelta(hours=23)


def at(text: str) -> datetime:
    return datetime.fromisoformat(text)


@pytest.mark.parametrize(
    ("cron", "moment", "due"),
    [
        # 2026-03-29 02:00 becomes 03:00, 2026-10-25 03:00 becomes 02:00 again.
        ("30 2 * * *", "2026-03-28T12:00:00+01:00", "2026-03-29T03:00:00+02:00"),
        ("30 2 * * *", "2026-10-24T12:00:00+02:00", "2026-10-25T02:30:00+02:00"),
        ("30 2 * * *", "2026-10-25T02:30:00+02:00", "2026-10-26T02:30:00+01:00"),
        ("30 2 * * *", "2026-10-25T02:10:00+01:00", "2026-10-26T02:30:00+01:00"),
        ("0 3 * * SUN", "2026-11-25T12:00:00+01:00", "2026-11-29T03:00:00+01:00"),
        ("0 0 29 2 *", "2026-11-25T12:00:00+01:00", "2028-02-29T00:00:00+01:00"),
    ],
)
def test_where_clocks_are_moved_it_comes_once(cron: str, moment: str, due: str) -> None:
    assert first_due_after(cron, "Europe/Berlin", at(moment)) == at(due)


@pytest.mark.parametrize("cron", ["", "daily", "* * * *", "0 0 * * * *", "61 * * * *", "0 25 * * *", "0 0 30 2 *"])
def test_what_is_no_cron_line_is_refused_in_one_sentence(cron: str) -> None:
    with pytest.raises(UsageError) as raised:
        first_due_after(cron, "UTC", datetime.now(UTC))
    assert repr(cron) in str(raised.value) and "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("zone", "guess"),
    [
        ("europe/berlin", "Europe/Berlin"),
        ("Europe/Berln", "Europe/Berlin"),
        ("../etc/passwd", "UTC"),
        ("Europe", "Europe/"),
        ("localtime", "not a time zone"),
    ],
)
def test_what_is_no_zone_is_refused_with_the_nearest(zone: str, guess: str) -> None:
    with pytest.raises(UsageError, match=guess):
        find_zone(zone)
