"""Settings: where they come from, and one sentence for each mistake in them."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr, ValidationError

from ragllava.errors import SettingsError
from ragllava.settings import Settings, load_settings, origins, read_services

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


def test_files_of_a_folder_come_between_variables_and_the_file_of_the_home(
    home: Path, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("secrets")
    for name, value in (("DATABASE_URL", DATABASE), ("TOP_K", "7"), ("TOP_N", "3")):
        (folder / f"RAGLLAVA_{name}").write_text(f"{value}\n")
    (folder / "another-program").write_text("x")
    (folder / "..data").mkdir()
    (home / "ragllava.toml").write_text("top_k = 5\ntop_n = 2\nmax_answer_tokens = 9\n")
    assert load_settings().top_k == 5
    monkeypatch.setenv("RAGLLAVA_SETTINGS_DIR", str(folder))
    monkeypatch.setenv("RAGLLAVA_TOP_N", "4")
    settings = load_settings()
    assert (settings.top_k, settings.top_n, settings.max_answer_tokens) == (7, 4, 9)
    assert settings.database_url is not None and settings.database_url.get_secret_value() == DATABASE
    where = origins(settings)
    assert (where["top_k"], where["top_n"], where["max_answer_tokens"]) == (
        "settings folder",
        "environment",
        "ragllava.toml",
    )
    (folder / "RAGLLAVA_DATABASE_URL").write_text(f"mysql://me:{PASSWORD}@db/x")
    assert mistake().startswith("RAGLLAVA_DATABASE_URL: ") and PASSWORD not in mistake()
    (folder / "RAGLLAVA_TPO_K").write_text("7")
    assert "did you mean RAGLLAVA_TOP_K?" in mistake()
    (folder / "RAGLLAVA_TPO_K").rename(folder / "RAGLLAVA_HOME")
    assert "RAGLLAVA_HOME cannot be a file there; set the variable" in mistake()
    (folder / "RAGLLAVA_HOME").unlink()
    (folder / "RAGLLAVA_DATABASE_URL").write_bytes(b"\xff")
    assert mistake().endswith("RAGLLAVA_DATABASE_URL cannot be read: it is not text in UTF-8")
    (folder / "RAGLLAVA_DATABASE_URL").unlink()
    (folder / "RAGLLAVA_DATABASE_URL").symlink_to(home / "ragllava.toml")
    assert "RAGLLAVA_DATABASE_URL leads out of its folder" in mistake()
    monkeypatch.setenv("RAGLLAVA_SETTINGS_DIR", str(folder / "nothing"))
    assert mistake().startswith("RAGLLAVA_SETTINGS_DIR: ") and "cannot be read" in mistake()
    monkeypatch.setenv("RAGLLAVA_SETTINGS_DIR", "secrets")
    assert "is not an absolute path" in mistake()


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("RAGLLAVA_TPO_K", "did you mean RAGLLAVA_TOP_K?"),
        ("RAGLLAVA_MODEL_DIR", "did you mean RAGLLAVA_MODELS_DIR?"),
        ("RAGLLAVA_PAINT", "unknown setting RAGLLAVA_PAINT; `ragllava settings`"),
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


def test_a_socket_and_https_exclude_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAGLLAVA_S3_SOCKET", "/run/s3.sock")
    monkeypatch.setenv("RAGLLAVA_S3_SECURE", "true")
    assert "RAGLLAVA_S3_SECURE=true" in mistake() and "RAGLLAVA_S3_SOCKET" in mistake()
    monkeypatch.delenv("RAGLLAVA_S3_SOCKET")
    assert load_settings().s3_secure


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


# -- ragllava.toml


def test_the_file_of_the_home_comes_after_the_environment(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (home / "ragllava.toml").write_text('profile = "base"\ntop_k = 7\ns3_secure = true\n')
    write_services(home, json.dumps({"settings": {"redis_url": BROKER}}))
    monkeypatch.setenv("RAGLLAVA_TOP_K", "9")
    settings = load_settings()
    assert (settings.profile, settings.top_k, settings.s3_secure) == ("base", 9, True)
    assert load_settings(profile="paper").profile == "paper"
    origin = origins(settings)
    assert {name: origin[name] for name in ("profile", "top_k", "redis_url", "top_n")} == {
        "profile": "ragllava.toml",
        "top_k": "environment",
        "redis_url": "embedded service",
        "top_n": "default",
    }


def test_the_file_is_that_of_the_home_that_was_given(home: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "ragllava.toml").write_text("top_k = 7\n")
    assert load_settings().top_k == Settings.model_fields["top_k"].default
    assert load_settings(home=elsewhere).top_k == 7


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("tpo_k = 7", "unknown setting tpo_k; did you mean top_k?"),
        ("RAGLLAVA_TOP_K = 7", "unknown setting RAGLLAVA_TOP_K; did you mean top_k?"),
        ("colour = 7", "unknown setting colour; `ragllava settings` lists all"),
        ('home = "/srv"', "home cannot be set here"),
        ("top_k = 0", "top_k: Input should be greater than or equal to 1, not 0"),
        ("profile = base", "is not valid TOML"),
        (f'database_url = "{PASSWORD}"', "database_url: this is not an address"),
    ],
)
def test_a_mistake_in_the_file_is_named_with_the_file(home: Path, content: str, says: str) -> None:
    (home / "ragllava.toml").write_text(content)
    text = mistake()
    assert text.startswith(str(home / "ragllava.toml"))
    assert says in text and PASSWORD not in text and "\n" not in text


@pytest.mark.parametrize("name", ["ragllava.toml", "run/services.json"])
def test_a_home_of_another_user_is_named_with_its_owner(home: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    write_services(home, "{}")
    (home / name).write_text("")
    read = Path.read_text

    def refuse(path: Path, *args: Any, **options: Any) -> str:
        if path == home / name:
            raise PermissionError(13, "Permission denied", str(path))
        return read(path, *args, **options)

    monkeypatch.setattr(Path, "read_text", refuse)
    monkeypatch.setattr(os, "geteuid", lambda: home.stat().st_uid + 1)
    text = mistake()
    assert f"{home / name} cannot be read (Permission denied)" in text
    assert f"belongs to the user {home.owner()}; set RAGLLAVA_HOME" in text


def test_a_service_that_does_not_run_is_named_with_the_home(home: Path) -> None:
    with pytest.raises(SettingsError, match=f"no database runs in the home {home}: "):
        load_settings().require_database()
