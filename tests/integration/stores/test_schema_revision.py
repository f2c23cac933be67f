"""A database of another version: every command says so in one sentence, before it does anything."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator

import pytest
from alembic.config import Config
from alembic.script import ScriptDirectory
from sqlalchemy import Engine, create_engine, make_url, text
from sqlalchemy.pool import NullPool

import migrations
from ragllava.client import Client
from ragllava.errors import SchemaMismatch
from ragllava.settings import Settings
from ragllava.stores.schema import REVISION
from ragllava.stores.schema_revision import stated_floor
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


def set_revision(engine: Engine, revision: str, oldest: str | None = None) -> None:
    """As a migration to it would leave the database, whose programs have at least the revision `oldest`."""
    with engine.begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = :revision"), {"revision": revision})
        connection.execute(text(f"COMMENT ON TABLE alembic_version IS '{stated_floor(oldest or revision)}'"))


def drop_tables(engine: Engine) -> None:
    with engine.begin() as connection:
        connection.execute(text("DROP SCHEMA public CASCADE; CREATE SCHEMA public"))


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
        ("before the rights", "this database user has no rights on the tables"),
    ],
)
def test_a_database_of_another_version_is_named_in_one_sentence(
    words: list[str], revision: str | None, says: str, run: Run, owner: Engine, settings: Settings
) -> None:
    if revision is None:
        drop_tables(owner)
    elif revision == "before the rights":  # as the first migration leaves it for a moment
        with owner.begin() as connection:
            role = str(make_url(settings.require_database()).username)
            connection.execute(text(f"REVOKE ALL ON ALL TABLES IN SCHEMA public FROM {role}"))
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


def test_the_server_does_not_start_on_tables_of_another_version(settings: Settings, owner: Engine) -> None:
    set_revision(owner, "0999")
    command = [sys.executable, "-m", "ragllava", "serve", "--port", "1"]
    environment = os.environ | environment_of(settings)
    served = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert served.returncode == 1
    assert "revision 0999, newer than this version" in served.stderr and "Traceback" not in served.stderr


def test_a_newer_database_whose_tables_only_grew_is_used(run: Run, owner: Engine) -> None:
    set_revision(owner, "0999", oldest=REVISION)
    code, _, err = run("archive", "list")
    assert (code, err) == (0, "")
    set_revision(owner, "0999", oldest="0998")
    assert run("archive", "list")[0] == 1


def test_check_says_how_the_database_stands_and_changes_nothing(run: Run, owner: Engine, settings: Settings) -> None:
    def checked() -> tuple[int, str]:
        code, out, err = run("migrate", "--check")
        assert err == "" and len(out.splitlines()) == 1
        return code, out

    assert checked() == (0, f"the database is up to date, at revision {REVISION}\n")
    set_revision(owner, "0999", oldest=REVISION)
    code, said = checked()
    assert code == 0 and "0999, newer than this version" in said and "can use it" in said
    set_revision(owner, "0999")
    code, said = checked()
    assert code == 5 and "install the version that migrated it" in said
    assert migrations.current(settings.require_database()) == "0999"
    behind = len(list((ROOT / "migrations" / "versions").glob("[0-9]*.py")))
    set_revision(owner, "0005")
    code, said = checked()
    assert code == 4 and f"at revision 0005, {behind - 5} migrations behind" in said and "ragllava migrate" in said
    assert migrations.current(settings.require_database()) == "0005"
    drop_tables(owner)
    code, said = checked()
    assert code == 4 and f"without tables, {behind} migrations behind" in said


def test_the_way_back_needs_a_version_that_there_was(run: Run, owner: Engine, settings: Settings) -> None:
    for version, says in {
        "0.9.9": "there is no version or revision 0.9.9; versions are 0.1.0, 0.2.0, revisions 0001 to",
        "base": "there is no version or revision base",
    }.items():
        code, out, err = run("migrate", "--back-to", version)
        assert (code, out) == (1, "") and says in err
    set_revision(owner, "0004")
    assert "no way back" in run("migrate", "--back-to", "0.2.0")[2]
    set_revision(owner, "0999")
    assert "newer than this version" in run("migrate", "--back-to", "0.2.0")[2]
    set_revision(owner, REVISION)
    assert run("migrate", "--check", "--words")[0] == 2


def test_each_released_version_has_a_revision() -> None:
    headings = re.findall(r"^## \[(\d.+?)\]", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert headings and set(headings) <= set(migrations.RELEASES)


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
