"""A database of another version: every command says so in one sentence, before it does anything."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from alembic.config import Config
from alembic.script import ScriptDirectory
from sqlalchemy import Engine, create_engine, text
from sqlalchemy.pool import NullPool

import migrations
from ragllava.client import Client
from ragllava.errors import SchemaMismatch
from ragllava.settings import Settings
from ragllava.stores.schema import REVISION
from tests.conftest import environment_of
from tests.support.pages import ROOT
from tests.support.run_command import Run, runner

COMMANDS = [
    ["jobs", "list"],
    ["archive", "list"],
    ["ask", "what?", "--archive", "cards"],
    ["schedule", "list"],
    ["noisy", "list", "--archive", "cards"],
    ["models", "list"],
    ["status"],
    ["doctor"],
]


@pytest.fixture
def run(settings: Settings, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    for name, value in environment_of(settings).items():
        monkeypatch.setenv(name, value)
    return runner(monkeypatch, capsys)


@pytest.fixture
def owner(settings: Settings) -> Iterator[Engine]:
    """Connections of the role that may change the tables."""
    engine = create_engine(settings.require_database_owner(), poolclass=NullPool)
    yield engine
    engine.dispose()


def set_revision(engine: Engine, revision: str) -> None:
    with engine.begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = :revision"), {"revision": revision})


def test_the_revision_of_the_declared_tables_is_that_of_the_newest_migration() -> None:
    config = Config()
    config.set_main_option("script_location", str(ROOT / "migrations"))
    config.set_main_option("path_separator", "os")
    assert ScriptDirectory.from_config(config).get_current_head() == REVISION


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
@pytest.mark.parametrize(
    ("revision", "says"),
    [
        ("0004", "revision 0004, older than this version"),
        ("0999", "revision 0999, newer than this version"),
        (None, "the database has no tables yet"),
    ],
)
def test_a_database_of_another_version_is_named_in_one_sentence(
    words: list[str], revision: str | None, says: str, run: Run, owner: Engine
) -> None:
    if revision is None:
        with owner.begin() as connection:
            connection.execute(text("DROP SCHEMA public CASCADE; CREATE SCHEMA public"))
    else:
        set_revision(owner, revision)
    code, out, err = run(*words)
    assert code == 1
    text_of = out if words[0] in ("status", "doctor") else err
    [sentence] = [line for line in text_of.splitlines() if says in line]
    assert "ragllava migrate" in sentence or "install the version that migrated it" in sentence
    assert "Traceback" not in out + err


def test_a_newer_database_is_not_migrated(run: Run, owner: Engine, settings: Settings) -> None:
    set_revision(owner, "0999")
    code, out, err = run("migrate")
    assert (code, out) == (1, "")
    assert "newer than this version" in err and len(err.splitlines()) == 1
    assert migrations.current(settings.require_database()) == "0999"


def test_the_revision_is_compared_once_and_leaves_no_transaction_open(settings: Settings, owner: Engine) -> None:
    with Client(settings) as client:
        assert client.archives.names() == []
        set_revision(owner, "0999")
        assert client.archives.names() == []
        with client.engine.connect() as connection:
            idle = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND state = :state"
            assert connection.scalar(text(idle), {"state": "idle in transaction"}) == 0
    with Client(settings) as client, pytest.raises(SchemaMismatch):
        client.archives.names()
