"""Model versions and their champions."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
from sqlalchemy import Connection, Engine, text
from sqlalchemy.exc import IntegrityError

from ragllava.errors import UsageError
from ragllava.records import Role
from ragllava.stores.learning import registry
from ragllava.stores.learning.registry import AdapterVersion, BaseVersion, ModelVersion

RERANKER = BaseVersion(
    Role.RERANKER, "mllm@1", "rerank-1", threshold=0.4, threshold_curve={"value": 0.4}, manifest={"model": "ab" * 32}
)
GENERATOR = BaseVersion(Role.GENERATOR, "mllm@1", "answer-1")


def names_by_state(engine: Engine, profile: str = "mini") -> dict[str, list[str]]:
    by_state: dict[str, list[str]] = {}
    with engine.connect() as connection:
        rows = connection.execute(
            text("SELECT state, role, name FROM model_versions WHERE profile = :profile ORDER BY role, name"),
            {"profile": profile},
        )
        for row in rows:
            by_state.setdefault(row.state, []).append(f"{row.role} {row.name}")
    return by_state


def test_the_first_worker_registers_the_bases_as_champions(engine: Engine) -> None:
    with engine.begin() as connection:
        assert registry.champion(connection, Role.RERANKER, "mini") is None
        champions = registry.ensure_champions(connection, "mini", [RERANKER, GENERATOR])
    assert set(champions) == {Role.RERANKER, Role.GENERATOR}
    with engine.begin() as connection:
        reranker = registry.champion(connection, Role.RERANKER, "mini")
        assert reranker is not None
        assert reranker == champions[Role.RERANKER]
        assert (reranker.name, reranker.prompt, reranker.threshold, reranker.adapter_sha256) == (
            "mllm@1",
            "rerank-1",
            0.4,
            None,
        )
        assert champions[Role.GENERATOR].threshold is None
        assert registry.champion(connection, Role.RERANKER, "paper") is None
        stored = connection.execute(text("SELECT threshold_curve, manifest FROM model_versions ORDER BY role")).all()
    assert [tuple(row) for row in stored] == [(None, {}), ({"value": 0.4}, {"model": "ab" * 32})]


def test_registering_bases_again_changes_nothing(engine: Engine) -> None:
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
        assert running.result(timeout=60).name == "mllm@2"
    assert names_by_state(engine)["champion"] == ["generator mllm@1", "reranker mllm@2"]


def test_profiles_have_their_own_champions_of_the_same_base(engine: Engine) -> None:
    with engine.begin() as connection:
        registry.ensure_champions(connection, "mini", [RERANKER])
        registry.ensure_champions(connection, "find-noisy", [replace(RERANKER, threshold=0.9)])
        mini = registry.champion(connection, Role.RERANKER, "mini")
        mine = registry.champion(connection, Role.RERANKER, "find-noisy")
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
        champion = registry.ensure_champions(connection, "mini", [replace(RERANKER, name="mllm@2")])[Role.RERANKER]
    assert (champion.name, champion.adapter_sha256) == ("tuned@7", "ab")
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


# Adapters, promotions and the way back

TUNED = AdapterVersion(
    role=Role.RERANKER,
    name="tuned@1",
    profile="mini",
    prompt="rerank-1",
    threshold=0.7,
    threshold_curve={"value": 0.7},
    adapter_sha256="cd" * 32,
    manifest={"adapter_config.json": "ef" * 32},
    base="mllm@1",
    training={"job": 7, "snapshot": "s1"},
)


@pytest.fixture
def mini(engine: Engine) -> Iterator[Connection]:
    """A transaction on a database whose profile mini has its bases as champions."""
    with engine.begin() as connection:
        registry.ensure_champions(connection, "mini", [RERANKER, GENERATOR])
        yield connection


def promotions_of(connection: Connection) -> list[tuple[str, str | None, str]]:
    rows = connection.execute(
        text("""
            SELECT version.name, replaced.name AS replaced, reason FROM promotions
            JOIN model_versions AS version ON version.id = version_id
            LEFT JOIN model_versions AS replaced ON replaced.id = replaced_id
            WHERE promotions.role = 'reranker' ORDER BY promotions.id
        """)
    )
    return [(row.name, row.replaced, row.reason) for row in rows]


def state_of(connection: Connection, name: str, role: Role = Role.RERANKER) -> str:
    return registry.find_version(connection, "mini", name, role).state


def promote(connection: Connection, *names: str) -> None:
    for name in names:
        registry.promote(connection, "mini", Role.RERANKER, name, "a test")


def with_tuned(connection: Connection, *names: str) -> None:
    for name in names:
        registry.register_adapter(connection, replace(TUNED, name=name))


def test_an_adapter_is_registered_with_all_its_data(mini: Connection) -> None:
    version = registry.register_adapter(mini, TUNED)
    assert (version.base, version.base_name, version.adapter_sha256) == ("mllm@1", "mllm@1", "cd" * 32)
    assert (version.manifest, version.training) == (TUNED.manifest, TUNED.training)
    view = registry.find_version(mini, "mini", "tuned@1")
    assert (view.version, view.state, view.threshold_curve) == (version, "candidate", {"value": 0.7})
    assert view.promoted_at is None
    assert registry.champion(mini, Role.RERANKER, "mini") != version


def test_registering_again_changes_nothing_and_other_weights_need_another_name(mini: Connection) -> None:
    first = registry.register_adapter(mini, TUNED)
    promote(mini, "tuned@1")
    assert registry.register_adapter(mini, TUNED) == first
    assert state_of(mini, "tuned@1") == "champion"
    with pytest.raises(UsageError, match=r"tuned@1 is registered with other weights"):
        registry.register_adapter(mini, replace(TUNED, adapter_sha256="00" * 32))


def test_a_new_challenger_retires_the_previous_one(mini: Connection) -> None:
    registry.register_adapter(mini, replace(TUNED, name="first", state="challenger"))
    registry.register_adapter(mini, replace(TUNED, name="writer", role=Role.GENERATOR, state="challenger"))
    registry.register_adapter(mini, replace(TUNED, name="elsewhere", profile="paper", state="challenger"))
    registry.register_adapter(mini, replace(TUNED, name="refused"))
    assert state_of(mini, "first") == "challenger", "a candidate retires no challenger"
    registry.register_adapter(mini, replace(TUNED, name="second", state="challenger"))
    assert (state_of(mini, "first"), state_of(mini, "second")) == ("retired", "challenger")
    assert state_of(mini, "writer", Role.GENERATOR) == "challenger"
    assert registry.find_version(mini, "paper", "elsewhere").state == "challenger"


def test_promotion_and_rollback_carry_the_threshold(mini: Connection) -> None:
    with_tuned(mini, "tuned@1")
    version = registry.promote(mini, "mini", Role.RERANKER, "tuned@1", "passed its gate")
    assert (version.name, version.threshold) == ("tuned@1", 0.7)
    assert registry.champion(mini, Role.RERANKER, "mini") == version
    assert state_of(mini, "mllm@1") == "retired"
    back = registry.rollback(mini, "mini", Role.RERANKER)
    assert (back.name, back.threshold) == ("mllm@1", 0.4)
    assert registry.champion(mini, Role.RERANKER, "mini") == back
    assert state_of(mini, "tuned@1") == "retired"
    generator = registry.champion(mini, Role.GENERATOR, "mini")
    assert generator is not None and generator.name == "mllm@1"
    first, *later = promotions_of(mini)
    assert first[:2] == ("mllm@1", None)
    assert later == [("tuned@1", "mllm@1", "passed its gate"), ("mllm@1", None, "rollback of tuned@1")]


def test_each_rollback_goes_further_back_until_nothing_is_left(mini: Connection) -> None:
    with_tuned(mini, "a", "b", "c")
    promote(mini, "a", "b", "c")
    names = [registry.rollback(mini, "mini", Role.RERANKER).name for _ in range(3)]
    assert names == ["b", "a", "mllm@1"]
    with pytest.raises(UsageError, match="no earlier version"):
        registry.rollback(mini, "mini", Role.RERANKER)
    promote(mini, "c")
    assert registry.rollback(mini, "mini", Role.RERANKER).name == "mllm@1"


def test_a_version_that_was_champion_before_is_left_like_any_other(mini: Connection) -> None:
    with_tuned(mini, "a", "b")
    promote(mini, "a", "b", "a")
    assert registry.rollback(mini, "mini", Role.RERANKER).name == "b"
    promote(mini, "a", "b")
    assert [registry.rollback(mini, "mini", Role.RERANKER).name for _ in range(2)] == ["a", "mllm@1"]


def test_the_champion_is_not_promoted_again_and_unknown_names_are_refused(mini: Connection) -> None:
    promote(mini, "mllm@1")
    assert len(promotions_of(mini)) == 1
    with pytest.raises(UsageError, match="profile mini has no reranker version nobody"):
        promote(mini, "nobody")
    with pytest.raises(UsageError, match="no earlier version"):
        registry.rollback(mini, "paper", Role.RERANKER)


def test_a_champion_from_before_the_log_can_be_rolled_back_to(mini: Connection) -> None:
    mini.execute(text("DELETE FROM promotions"))
    with_tuned(mini, "a")
    promote(mini, "a")
    assert registry.rollback(mini, "mini", Role.RERANKER).name == "mllm@1"


def test_promotions_at_the_same_time_come_one_after_the_other(
    engine: Engine, wait_for_waiter: Callable[[], None]
) -> None:
    def promote_second() -> ModelVersion:
        with engine.begin() as connection:
            return registry.promote(connection, "mini", Role.RERANKER, "b", "a test")

    with engine.begin() as connection:
        registry.ensure_champions(connection, "mini", [RERANKER])
        with_tuned(connection, "a", "b")
    with ThreadPoolExecutor(1) as threads:
        with engine.begin() as connection:
            promote(connection, "a")
            running = threads.submit(promote_second)
            wait_for_waiter()
        assert running.result(timeout=60).name == "b"
    with engine.begin() as connection:
        assert [name for name, _, _ in promotions_of(connection)] == ["mllm@1", "a", "b"]
        assert registry.rollback(connection, "mini", Role.RERANKER).name == "a"


def test_exchanged_bases_leave_a_promotion_but_no_way_back(mini: Connection) -> None:
    registry.ensure_champions(mini, "mini", [replace(RERANKER, name="mllm@2")])
    assert [row[:2] for row in promotions_of(mini)] == [("mllm@1", None), ("mllm@2", None)]
    with pytest.raises(UsageError, match="no earlier version"):
        registry.rollback(mini, "mini", Role.RERANKER)


def test_versions_are_listed_by_role_and_found_by_the_beginning_of_their_name(mini: Connection) -> None:
    with_tuned(mini, "tuned@1", "tuned@12", "other@3")
    listed = registry.list_versions(mini, "mini")
    assert [(view.version.role.value, view.version.name) for view in listed] == [
        ("generator", "mllm@1"),
        ("reranker", "other@3"),
        ("reranker", "tuned@12"),
        ("reranker", "tuned@1"),
        ("reranker", "mllm@1"),
    ]
    assert [view.version.name for view in registry.list_versions(mini, role=Role.GENERATOR)] == ["mllm@1"]
    assert registry.list_versions(mini, "paper") == []
    assert registry.find_version(mini, "mini", "o").version.name == "other@3"
    assert registry.find_version(mini, "mini", "tuned@1").version.name == "tuned@1", "whole names go first"
    with pytest.raises(UsageError, match=r"tuned may be any of 2 versions .*; write more of the name"):
        registry.find_version(mini, "mini", "tuned")
    with pytest.raises(UsageError, match=r"mllm@1 may be any of 2 versions .*; add --role"):
        registry.find_version(mini, "mini", "mllm@1")
    with pytest.raises(UsageError, match="profile mini has no version x"):
        registry.find_version(mini, "mini", "x")


def test_the_versions_that_were_tried_against_the_champion_are_counted_since_its_promotion(engine: Engine) -> None:
    def tried(name: str, against: str, role: Role = Role.RERANKER) -> AdapterVersion:
        story = {"gate": {"champion": against}}
        return AdapterVersion(role, name, "p", profile="mini", adapter_sha256=name, base="mllm@1", training=story)

    def count() -> int:
        with engine.begin() as connection:
            champion = registry.champion(connection, Role.RERANKER, "mini")
            assert champion is not None
            return registry.count_tries(connection, champion)

    with engine.begin() as connection:
        registry.ensure_champions(connection, "mini", [RERANKER, GENERATOR])
    assert count() == 0
    for version in (tried("a", "mllm@1"), tried("b", "mllm@1"), tried("c", "mllm@1", Role.GENERATOR)):
        with engine.begin() as connection:
            registry.register_adapter(connection, version)
    assert count() == 2
    with engine.begin() as connection:
        registry.promote(connection, "mini", Role.RERANKER, "b", "a test")
    assert count() == 0
    with engine.begin() as connection:
        registry.register_adapter(connection, tried("d", "b"))
    assert count() == 1
    with engine.begin() as connection:
        registry.rollback(connection, "mini", Role.RERANKER)
    assert count() == 0, "from here on it is tried again"


def test_a_version_that_is_evaluated_again_is_one_try_more(engine: Engine) -> None:
    story = {"gate": {"champion": "mllm@1", "passed": False}, "archives": ["harbour"]}
    tuned = AdapterVersion(
        Role.RERANKER, "a", "p", threshold=0.5, profile="mini", adapter_sha256="a", base="mllm@1", training=story
    )
    with engine.begin() as connection:
        champion = registry.ensure_champions(connection, "mini", [RERANKER])[Role.RERANKER]
        assert registry.newest_refused(connection, champion) is None
    with engine.begin() as connection:
        made = registry.register_adapter(connection, tuned)
        registry.register_adapter(connection, replace(tuned, name="b", adapter_sha256="b", state="challenger"))
        refused = registry.newest_refused(connection, champion)
        assert refused is not None and refused.name == "a", "the challenger was not refused"
    found = {"gate": {"champion": "mllm@1", "passed": True}}
    with engine.begin() as connection:
        registry.record_contest(connection, made, found, 0.4, None, passed=False)
        assert registry.count_tries(connection, champion) == 3
    with engine.begin() as connection:
        registry.record_contest(connection, made, found, 0.3, None, passed=True)
        assert registry.count_tries(connection, champion) == 4
        views = {view.version.name: view for view in registry.list_versions(connection, "mini", Role.RERANKER)}
        assert (views["a"].state, views["b"].state) == ("challenger", "retired")
        assert views["a"].version.threshold == 0.3
        training = views["a"].version.training or {}
        assert training["archives"] == ["harbour"] and len(training["earlier"]) == 2
        with pytest.raises(UsageError, match="a became challenger while it was evaluated again"):
            registry.record_contest(connection, made, found, 0.3, None, passed=False)
