"""Model versions and their champions."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
from sqlalchemy import Engine, text
from sqlalchemy.exc import IntegrityError

from ragllava.records import Role
from ragllava.stores import registry
from ragllava.stores.registry import BaseVersion, ModelVersion

RERANKER = BaseVersion(
    Role.RERANKER, "mllm@1", "rerank-1", threshold=0.4, threshold_curve={"value": 0.4}, manifest={"model": "ab" * 32}
)
GENERATOR = BaseVersion(Role.GENERATOR, "mllm@1", "answer-1")


def names_by_state(engine: Engine, profile: str = "mini") -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    with engine.connect() as connection:
        rows = connection.execute(
            text("SELECT state, role, name FROM model_versions WHERE profile = :profile ORDER BY role, name"),
            {"profile": profile},
        )
        for row in rows:
            found.setdefault(row.state, []).append(f"{row.role} {row.name}")
    return found


def test_the_first_worker_registers_the_bases_as_champions(engine: Engine) -> None:
    with engine.begin() as connection:
        assert registry.champion(connection, Role.RERANKER, "mini") is None
        champions = registry.ensure_champions(connection, "mini", [RERANKER, GENERATOR])
    assert set(champions) == {Role.RERANKER, Role.GENERATOR}
    with engine.begin() as connection:
        found = registry.champion(connection, Role.RERANKER, "mini")
        assert found is not None
        assert found == champions[Role.RERANKER]
        assert (found.name, found.prompt, found.threshold, found.adapter_sha256) == ("mllm@1", "rerank-1", 0.4, None)
        assert champions[Role.GENERATOR].threshold is None
        assert registry.champion(connection, Role.RERANKER, "paper") is None
        stored = connection.execute(text("SELECT threshold_curve, manifest FROM model_versions ORDER BY role")).all()
    assert [tuple(row) for row in stored] == [(None, {}), ({"value": 0.4}, {"model": "ab" * 32})]


def test_doing_it_again_changes_nothing(engine: Engine) -> None:
    with engine.begin() as connection:
        first = registry.ensure_champions(connection, "mini", [RERANKER, GENERATOR])
        # An operator's own threshold outlives the next start of a worker.
        connection.execute(text("UPDATE model_versions SET threshold = 0.7 WHERE role = 'reranker'"))
    with engine.begin() as connection:
        again = registry.ensure_champions(connection, "mini", [RERANKER, GENERATOR])
    assert again == first | {Role.RERANKER: replace(first[Role.RERANKER], threshold=0.7)}
    assert names_by_state(engine) == {"champion": ["generator mllm@1", "reranker mllm@1"]}


def test_workers_that_start_together_do_it_one_after_the_other(
    engine: Engine, wait_for_waiter: Callable[[], None]
) -> None:
    newer = replace(RERANKER, name="mllm@2")

    def start() -> ModelVersion:
        with engine.begin() as connection:
            return registry.ensure_champions(connection, "mini", [newer])[Role.RERANKER]

    with ThreadPoolExecutor(1) as threads:
        with engine.begin() as connection:
            registry.ensure_champions(connection, "mini", [RERANKER, GENERATOR])
            running = threads.submit(start)
            wait_for_waiter()
        assert running.result(timeout=10).name == "mllm@2"
    assert names_by_state(engine)["champion"] == ["generator mllm@1", "reranker mllm@2"]


def test_profiles_have_their_own_champions_of_the_same_base(engine: Engine) -> None:
    with engine.begin() as connection:
        registry.ensure_champions(connection, "mini", [RERANKER])
        registry.ensure_champions(connection, "mine", [replace(RERANKER, threshold=0.9)])
        mini = registry.champion(connection, Role.RERANKER, "mini")
        mine = registry.champion(connection, Role.RERANKER, "mine")
    assert mini is not None and mine is not None
    assert (mini.threshold, mine.threshold) == (0.4, 0.9)


def test_exchanged_weights_take_the_place_of_the_old_ones_and_back(engine: Engine) -> None:
    newer = replace(RERANKER, name="mllm@2", threshold=0.6)
    with engine.begin() as connection:
        old = registry.ensure_champions(connection, "mini", [RERANKER, GENERATOR])[Role.RERANKER]
        new = registry.ensure_champions(connection, "mini", [newer])[Role.RERANKER]
    assert (new.name, new.threshold) == ("mllm@2", 0.6)
    assert names_by_state(engine) == {
        "champion": ["generator mllm@1", "reranker mllm@2"],
        "retired": ["reranker mllm@1"],
    }
    with engine.begin() as connection:
        assert registry.ensure_champions(connection, "mini", [RERANKER])[Role.RERANKER] == old


def test_a_trained_champion_stays(engine: Engine) -> None:
    with engine.begin() as connection:
        registry.ensure_champions(connection, "mini", [RERANKER])
        connection.execute(text("UPDATE model_versions SET state = 'retired'"))
        connection.execute(
            text("""
                INSERT INTO model_versions (role, name, profile, state, prompt, threshold, adapter_sha256, manifest)
                VALUES ('reranker', 'tuned@7', 'mini', 'champion', 'rerank-1', 0.3, 'ab', '{}')
            """)
        )
    with engine.begin() as connection:
        found = registry.ensure_champions(connection, "mini", [replace(RERANKER, name="mllm@2")])[Role.RERANKER]
    assert (found.name, found.adapter_sha256) == ("tuned@7", "ab")
    assert names_by_state(engine)["candidate"] == ["reranker mllm@2"]


def test_the_database_itself_refuses_a_second_champion(engine: Engine) -> None:
    with engine.begin() as connection:
        registry.ensure_champions(connection, "mini", [RERANKER])
    with pytest.raises(IntegrityError, match="uq_model_versions_champion"), engine.begin() as connection:
        connection.execute(
            text("""
                INSERT INTO model_versions (role, name, profile, state, prompt, manifest)
                VALUES ('reranker', 'another', 'mini', 'champion', 'rerank-1', '{}')
            """)
        )
