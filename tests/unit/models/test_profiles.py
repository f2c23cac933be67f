"""Which models run, and where their files are looked for."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import ragllava.models
from ragllava.errors import ModelUnavailable, SettingsError, UsageError
from ragllava.models.profiles import (
    LOCAL_DIR,
    RetrieverSource,
    find_model,
    get_profile,
    missing_models,
    parse_retriever,
)
from ragllava.settings import Settings


@pytest.fixture(autouse=True)
def _no_network_and_empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("looking for a model must not touch the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)


def settings(tmp_path: Path, profile: str, **more: Any) -> Settings:
    return Settings(home=tmp_path / "home", profile=profile, **more)


def test_mini_lies_in_the_package(tmp_path: Path) -> None:
    configured = settings(tmp_path, "mini")
    profile = get_profile(configured)
    package = Path(ragllava.models.__file__).parent
    assert Path(profile.retriever.reference).is_relative_to(package)
    assert Path(profile.mllm).is_relative_to(package)
    assert 0 < profile.threshold < 1
    assert missing_models(profile, configured) == []
    assert find_model(profile.mllm, profile, configured).label == "mini-llava"


@pytest.mark.parametrize(
    ("name", "repositories"),
    [
        ("base", ["timm/ViT-B-16-SigLIP2-384", "Qwen/Qwen3-VL-2B-Instruct"]),
        ("paper", ["timm/vit_large_patch14_clip_336.openai", "llava-hf/llava-1.5-13b-hf"]),
    ],
)
def test_a_missing_download_is_told_in_one_sentence(tmp_path: Path, name: str, repositories: list[str]) -> None:
    configured = settings(tmp_path, name)
    profile = get_profile(configured)
    assert missing_models(profile, configured) == repositories
    with pytest.raises(ModelUnavailable) as caught:
        find_model(profile.mllm, profile, configured)
    message = str(caught.value)
    assert all(repository in message for repository in repositories)
    assert "RAGLLAVA_MODELS_DIR" in message
    assert "\n" not in message


@pytest.mark.parametrize("spelling", ["Qwen/Qwen3-VL-2B-Instruct", "Qwen--Qwen3-VL-2B-Instruct"])
def test_the_models_folder_is_searched(tmp_path: Path, spelling: str) -> None:
    folder = tmp_path / "models" / spelling
    folder.mkdir(parents=True)
    configured = settings(tmp_path, "base", models_dir=tmp_path / "models")
    profile = get_profile(configured)
    model = find_model(profile.mllm, profile, configured)
    assert model.path == folder
    assert model.label == "Qwen/Qwen3-VL-2B-Instruct"
    assert missing_models(profile, configured) == ["timm/ViT-B-16-SigLIP2-384"]


def test_the_hub_cache_is_searched(tmp_path: Path) -> None:
    repository = tmp_path / "hub" / "models--Qwen--Qwen3-VL-2B-Instruct"
    snapshot = repository / "snapshots" / ("a" * 40)
    snapshot.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("a" * 40)
    configured = settings(tmp_path, "base")
    profile = get_profile(configured)
    assert find_model(profile.mllm, profile, configured).path.samefile(snapshot)


@pytest.mark.parametrize("suffix", [".toml", ".json"])
def test_own_models_come_from_a_file(tmp_path: Path, suffix: str) -> None:
    (tmp_path / "weights").mkdir()
    file = tmp_path / f"museum{suffix}"
    if suffix == ".toml":
        file.write_text('retriever = "local-dir:clip"\nmllm = "weights"\nthreshold = 0.25\n')
    else:
        file.write_text(json.dumps({"retriever": "local-dir:clip", "mllm": "weights", "threshold": 0.25}))
    profile = get_profile(settings(tmp_path, str(file)))
    assert profile.name == "museum"
    assert profile.retriever == RetrieverSource(f"{LOCAL_DIR}{tmp_path / 'clip'}")
    assert profile.mllm == str(tmp_path / "weights")
    assert profile.threshold == 0.25


def test_an_own_folder_that_is_missing_is_named(tmp_path: Path) -> None:
    file = tmp_path / "museum.toml"
    file.write_text('retriever = "local-dir:clip"\nmllm = "./weights"\n')
    configured = settings(tmp_path, str(file))
    profile = get_profile(configured)
    with pytest.raises(ModelUnavailable, match=r"clip does not exist; correct the path"):
        find_model(profile.retriever.reference, profile, configured)


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ('retriever = "local-dir:x"\nmllm = "y"\ncolour = "red"\n', "colour: Extra inputs are not permitted"),
        ('retriever = "local-dir:x"\n', "mllm: Field required"),
        ('retriever = "local-dir:x"\nmllm = "y"\nthreshold = 1.5\n', "threshold"),
        ('retriever = "local-dir:x"\nmllm = 3\n', "mllm: Input should be a valid string"),
        ("retriever = ", "not valid TOML"),
    ],
)
def test_a_wrong_profile_file_is_told(tmp_path: Path, text: str, part: str) -> None:
    file = tmp_path / "wrong.toml"
    file.write_text(text)
    with pytest.raises(SettingsError, match=part):
        get_profile(settings(tmp_path, str(file)))


def test_an_unknown_profile_is_told(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="RAGLLAVA_PROFILE=huge: no such profile"):
        get_profile(settings(tmp_path, "huge"))
    with pytest.raises(SettingsError, match="cannot be read"):
        get_profile(settings(tmp_path, str(tmp_path / "nowhere.toml")))


def test_profiles_and_bundle_load_no_torch() -> None:
    program = (
        "import sys; import ragllava.models.profiles, ragllava.models.bundle, ragllava.models.checks; "
        "print([name for name in ('torch', 'transformers', 'open_clip', 'PIL') if name in sys.modules])"
    )
    shown = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "[]"


def test_a_retriever_is_named_by_folder_or_by_model_and_tag(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "clip").mkdir()
    (tmp_path / "clip" / "open_clip_config.json").write_text("{}")
    monkeypatch.chdir(tmp_path)
    in_folder = RetrieverSource(f"{LOCAL_DIR}{tmp_path / 'clip'}")
    for text in ("clip", "./clip", str(tmp_path / "clip"), in_folder.retriever):
        assert parse_retriever(text) == in_folder
    assert parse_retriever("ViT-B-32/openai") == RetrieverSource("ViT-B-32", "openai")
    for text in ("ViT-B-32", "ViT-B-32/", "a/b/c", "./nowhere", ""):
        with pytest.raises(UsageError, match=r"retriever|open_clip"):
            parse_retriever(text)


def test_a_profile_file_may_name_tag_and_repository(tmp_path: Path) -> None:
    file = tmp_path / "museum.toml"
    file.write_text('retriever = "ViT-B-32"\nretriever_tag = "openai"\nretriever_repository = "a/b"\nmllm = "c/d"\n')
    profile = get_profile(settings(tmp_path, str(file)))
    assert (profile.retriever, profile.mllm) == (RetrieverSource("ViT-B-32", "openai", "a/b"), "c/d")
    assert profile.retriever.reference == "a/b"
