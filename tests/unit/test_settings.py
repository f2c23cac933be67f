"""Settings: where they come from, and one sentence for each mistake in them."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from pydantic import SecretStr, ValidationError

from ragllava.errors import SettingsError
from ragllava.settings import Settings, load_settings, read_services

PASSWORD = "pass-word-of-mine"
DATABASE = f"postgresql://me:{PASSWORD}@db.example:5432/pictures"
BROKER = f"redis://:{PASSWORD}@broker.example:6379/0"


@pytest.fixture(autouse=True)
def home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """An empty home, and no other setting."""
    for name in list(os.environ):
        if name.startswith("RAGLLAVA_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("RAGLLAVA_HOME", str(tmp_path))
    return tmp_path


def write_services(home: Path, content: str) -> Path:
    path = home / "run" / "services.json"
    path.parent.mkdir()
    path.write_text(content)
    return path


def mistake(**overrides: object) -> str:
    with pytest.raises(SettingsError) as caught:
        load_settings(**overrides)
    return str(caught.value)


def test_overrides_come_before_the_environment_and_that_before_the_embedded_services(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_services(home, json.dumps({"settings": {"s3_endpoint": "127.0.0.1:1", "redis_url": BROKER}}))
    monkeypatch.setenv("RAGLLAVA_S3_ENDPOINT", "store.example:9000")
    monkeypatch.setenv("RAGLLAVA_TOP_K", "7")
    settings = load_settings(top_k=9)
    assert settings.top_k == 9
    assert settings.s3_endpoint == "store.example:9000"
    assert settings.require_redis() == BROKER
    assert load_settings().top_k == 7


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("RAGLLAVA_TPO_K", "did you mean RAGLLAVA_TOP_K?"),
        ("RAGLLAVA_MODEL_DIR", "did you mean RAGLLAVA_MODELS_DIR?"),
        ("RAGLLAVA_COLOUR", "unknown setting RAGLLAVA_COLOUR; `ragllava doctor`"),
    ],
)
def test_an_unknown_variable_is_named(name: str, says: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "1")
    assert name in mistake()
    assert says in mistake()


@pytest.mark.parametrize(
    ("name", "value"), [("TOP_K", "many"), ("TOP_K", "0"), ("DTYPE", "float8"), ("LEASE_S", "-1"), ("S3_SECURE", "hm")]
)
def test_a_wrong_value_is_named_with_its_variable(name: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(f"RAGLLAVA_{name}", value)
    text = mistake()
    assert text.startswith(f"RAGLLAVA_{name}: ")
    assert text.endswith(f"not {value!r}")
    assert "\n" not in text


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("DATABASE_URL", f"mysql://me:{PASSWORD}@db.example/pictures"),
        ("DATABASE_URL", f"me:{PASSWORD}@db.example"),
        ("DATABASE_URL", f"postgresql://me:{PASSWORD}@db.example:port/pictures"),
        ("REDIS_URL", f"http://:{PASSWORD}@broker.example"),
        ("REDIS_URL", PASSWORD),
    ],
)
def test_a_wrong_address_is_refused_without_its_password(
    name: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(f"RAGLLAVA_{name}", value)
    text = mistake()
    assert text.startswith(f"RAGLLAVA_{name}: ")
    assert "://user:password@host:port/name" in text
    assert PASSWORD not in text


def test_a_heartbeat_too_slow_for_its_lease_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAGLLAVA_HEARTBEAT_S", "31")
    assert "RAGLLAVA_HEARTBEAT_S=31" in mistake()
    assert "RAGLLAVA_LEASE_S=60" in mistake()
    monkeypatch.setenv("RAGLLAVA_LEASE_S", "62")
    assert load_settings().heartbeat_s == 31


def test_an_empty_variable_is_one_that_is_not_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAGLLAVA_DATABASE_URL", "")
    monkeypatch.setenv("RAGLLAVA_TOP_K", "")
    assert load_settings().database_url is None
    assert load_settings().top_k == Settings.model_fields["top_k"].default


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        "[]",
        "{}",
        '{"settings": 5}',
        '{"settings": {"colour": "red"}}',
        '{"settings": {"redis_url": 5}}',
    ],
)
def test_a_damaged_services_file_is_named_with_what_to_do(content: str, home: Path) -> None:
    path = write_services(home, content)
    text = mistake()
    assert f"{path} is damaged" in text
    assert "remove it" in text


def test_a_folder_in_place_of_the_services_file_is_named(home: Path) -> None:
    path = home / "run" / "services.json"
    path.mkdir(parents=True)
    assert str(path) in mistake()


def test_without_services_nothing_is_read_and_what_is_missing_is_named(home: Path) -> None:
    assert read_services(home / "run" / "services.json") == {}
    settings = load_settings()
    for require, variable in (
        (settings.require_database, "RAGLLAVA_DATABASE_URL"),
        (settings.require_redis, "RAGLLAVA_REDIS_URL"),
    ):
        with pytest.raises(SettingsError, match=f"`ragllava up`, or set {variable}"):
            require()


@pytest.mark.parametrize("scheme", ["postgresql", "postgres", "postgresql+psycopg"])
def test_every_name_for_postgres_leads_to_psycopg(scheme: str) -> None:
    settings = Settings(database_url=SecretStr(DATABASE.replace("postgresql", scheme)))
    assert settings.require_database() == DATABASE.replace("postgresql", "postgresql+psycopg")


def test_the_home_is_a_whole_path(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/user/")
    assert Settings(home=Path("pictures")).home == tmp_path / "pictures"
    assert Settings(home=Path("~/pictures")).home == Path("/home/user/pictures")


def test_no_password_is_ever_printed() -> None:
    settings = Settings(
        database_url=SecretStr(DATABASE), redis_url=SecretStr(BROKER), s3_secret_key=SecretStr(PASSWORD)
    )
    assert PASSWORD not in f"{settings!r} {settings} {settings.model_dump()} {settings.model_dump_json()}"


def test_settings_cannot_be_changed() -> None:
    settings = Settings()
    with pytest.raises(ValidationError, match="frozen"):
        settings.top_k = 3
