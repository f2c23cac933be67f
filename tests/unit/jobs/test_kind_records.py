"""The records of the kinds of job that ship."""

from __future__ import annotations

import inspect
from dataclasses import replace
from enum import StrEnum
from pkgutil import resolve_name

import pytest

from ragllava.errors import UsageError
from ragllava.jobs.kinds import INGEST, KINDS, Kind, kind_of
from ragllava.records import JobKind
from workers.app import TASK_OF_QUEUE


class Half(StrEnum):
    DEAD = "dead"


def test_every_named_kind_has_a_record() -> None:
    assert list(KINDS) == list(JobKind)


@pytest.mark.parametrize("kind", KINDS.values(), ids=lambda kind: kind.name)
def test_what_a_record_names_exists(kind: Kind) -> None:
    assert kind.queue in TASK_OF_QUEUE
    assert list(inspect.signature(kind.load_stage()).parameters) == ["context"]
    assert kind.finish is None or callable(resolve_name(kind.finish))
    assert {kind.refused, *kind.bad, *kind.also_retried} <= set(kind.statuses)
    assert kind.refused in kind.retried


def test_a_kind_whose_enum_lacks_what_the_queue_writes_is_refused() -> None:
    with pytest.raises(ValueError, match="Half lacks cancelled, which the queue writes"):
        replace(INGEST, statuses=Half)


def test_a_kind_of_another_version_is_named() -> None:
    with pytest.raises(UsageError, match="no jobs of the kind 'chore'"):
        kind_of("chore")
