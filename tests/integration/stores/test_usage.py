"""What callers have used of their quotas, by day."""

from __future__ import annotations

from sqlalchemy import Engine

from ragllava.stores.access.usage import add_questions, questions_today


def test_questions_that_are_given_back_after_midnight_are_none_of_the_new_day(engine: Engine) -> None:
    with engine.begin() as connection:
        assert add_questions(connection, "ann", -5) == 0, "they were counted yesterday"
        assert [add_questions(connection, "ann", number) for number in (3, -1, -4, 2)] == [3, 2, 0, 2]
        assert (questions_today(connection, "ann"), questions_today(connection, "bob")) == (2, 0)
