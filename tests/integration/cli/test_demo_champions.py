"""Which versions `demo --learn` begins with, on a real registry."""

from __future__ import annotations

from io import StringIO

import pytest
from rich.console import Console
from sqlalchemy import Engine

from ragllava.cli.demo.learn import LearningDemo
from ragllava.cli.demo.run import Demo
from ragllava.client import Client
from ragllava.records import Role
from ragllava.settings import Settings
from ragllava.stores.learning import registry
from ragllava.stores.learning.registry import AdapterVersion, BaseVersion

FORMER, LOADED = "mini-llava@11111111", "mini-llava@22222222"
TRAINED = "reranker-5@0000aaaa"


@pytest.fixture
def settings(settings: Settings) -> Settings:
    return settings.model_copy(update={"profile": "mini"})


def begin(settings: Settings, engine: Engine, archives: list[str]) -> tuple[str | None, str]:
    """The champion after the reset of a demo of seed 2, where one trained for `archives` was; and what is printed."""
    with engine.begin() as connection:
        for name in (FORMER, LOADED):
            registry.ensure_champions(connection, "mini", [BaseVersion(Role.RERANKER, name, "rerank-1", 0.5)])
        registry.register_adapter(connection, adapter(archives))
        registry.promote(connection, "mini", Role.RERANKER, TRAINED, "for the test")
    printed = StringIO()
    with Client(settings) as client:
        LearningDemo(client, Demo(Console(file=printed, width=500), seed=2, images=60, questions=90)).reset()
        champion = client.models.champion(Role.RERANKER)
    return champion.version.name if champion else None, printed.getvalue()


def adapter(archives: list[str]) -> AdapterVersion:
    return AdapterVersion(
        role=Role.RERANKER,
        name=TRAINED,
        profile="mini",
        prompt="rerank-1",
        threshold=0.4,
        adapter_sha256="ab" * 32,
        base=FORMER,
        training={"archives": archives},
    )


def test_what_a_demo_of_another_seed_trained_is_replaced_by_the_base_that_workers_have(
    settings: Settings, engine: Engine
) -> None:
    """Else the figures before would show what that demo learned, and nothing would be left to learn."""
    champion, printed = begin(settings, engine, ["shifted-postcards-1-400-800", "in_domain-postcards-1-400-800"])
    assert champion == LOADED
    assert printed == f"the reranker begins with the base again, not with {TRAINED}\n"


def test_what_was_trained_for_an_archive_of_the_user_stays_and_is_said(settings: Settings, engine: Engine) -> None:
    champion, printed = begin(settings, engine, ["holidays", "shifted-postcards-1-400-800"])
    assert champion == TRAINED
    assert printed == (
        f"the reranker begins with {TRAINED}, which was trained for holidays; the figures show what is learned beyond "
        "it\n"
    )
