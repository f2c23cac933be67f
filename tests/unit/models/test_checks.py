"""What is refused before a model folder is loaded, and the version that its bytes give it."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from ragllava.errors import ModelUnavailable
from ragllava.models.checks import (
    check_adapter_folder,
    check_model_folder,
    digest,
    manifest,
    model_version,
)
from ragllava.models.profiles import ModelFolder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "model"
    made.mkdir()
    (made / "model.safetensors").write_bytes(b"weights")
    (made / "config.json").write_text('{"model_type": "llava", "text_config": {"_attn_implementation": "sdpa"}}')
    return made


def test_a_plain_folder_passes(folder: Path) -> None:
    check_model_folder(folder)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "a.pt", "a.PTH", "x/a.pkl", "modeling.py", "a.ckpt"])
def test_files_that_can_run_code_are_refused(folder: Path, name: str) -> None:
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_bytes(b"")
    with pytest.raises(ModelUnavailable, match="can run code") as caught:
        check_model_folder(folder)
    assert Path(name).name in str(caught.value)


@pytest.mark.parametrize(
    "config",
    [
        {"auto_map": {"AutoModel": "modeling.Evil"}},
        {"text_config": {"auto_map": {"AutoModel": "owner/name--modeling.Evil"}}},
        {"_attn_implementation_internal": "owner/kernel"},
        {"vision_config": {"attn_implementation": "owner/kernel@main"}},
        {"list": [{"custom_pipelines": {"a": {}}}]},
    ],
)
@pytest.mark.parametrize("file", ["config.json", "processor_config.json", "tokenizer_config.json"])
def test_configurations_that_name_code_are_refused(folder: Path, config: dict[str, Any], file: str) -> None:
    (folder / file).write_text(json.dumps(config))
    with pytest.raises(ModelUnavailable, match="names code to run"):
        check_model_folder(folder)


def test_weights_must_be_safetensors_and_complete(folder: Path) -> None:
    shards = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
    (folder / "model.safetensors").rename(folder / shards["a"])
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": shards}))
    with pytest.raises(ModelUnavailable, match=r"model-00002-of-00002\.safetensors is missing"):
        check_model_folder(folder)
    (folder / shards["a"]).unlink()
    with pytest.raises(ModelUnavailable, match=r"no \.safetensors weights"):
        check_model_folder(folder)
    with pytest.raises(ModelUnavailable, match="no such model folder"):
        check_model_folder(folder / "nowhere")


def write_adapter(folder: Path, **keys: Any) -> Path:
    folder.mkdir()
    (folder / "adapter_model.safetensors").write_bytes(b"weights")
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 8} | keys))
    return folder


def test_an_adapter_keeps_only_keys_that_are_understood(tmp_path: Path) -> None:
    adapter = write_adapter(tmp_path / "a", lora_alpha=16, base_model_name_or_path="/elsewhere", use_dora=False)
    assert check_adapter_folder(adapter) == {"peft_type": "LORA", "r": 8, "lora_alpha": 16}


@pytest.mark.parametrize(
    ("keys", "part"),
    [
        ({"peft_type": "PROMPT_TUNING"}, "LORA"),
        ({"auto_mapping": {"base_model_class": "X", "parent_library": "evil"}}, "auto_mapping"),
        ({"megatron_config": {"a": 1}}, "megatron_config"),
        ({"something_new": 1}, "something_new"),
    ],
)
def test_other_adapters_are_refused(tmp_path: Path, keys: dict[str, Any], part: str) -> None:
    with pytest.raises(ModelUnavailable, match=part):
        check_adapter_folder(write_adapter(tmp_path / "a", **keys))


def test_the_version_follows_what_can_change_a_score(folder: Path, tmp_path: Path) -> None:
    def version() -> str:
        return model_version(ModelFolder(folder, "mini-llava"), manifest(folder, tmp_path / "cache"))

    first = version()
    assert first.startswith("mini-llava@")
    assert len(first) == len("mini-llava@") + 8
    (folder / "README.md").write_text("a story")
    assert version() == first
    (folder / "config.json").write_text("{}")
    assert version() != first


def test_the_digest_depends_on_names_and_bytes_only() -> None:
    files = {"a": "1", "b": "2"}
    assert digest(files) == digest(dict(reversed(files.items())))
    assert len({digest(files), digest({"a": "2", "b": "1"}), digest({"a1": "", "b": "2"})}) == 3


def test_hashes_are_kept_until_the_file_changes(folder: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    true_hash = manifest(folder, cache)["model.safetensors"]
    kept = json.loads((cache / "model-hashes.json").read_text())
    (cache / "model-hashes.json").write_text(json.dumps(dict.fromkeys(kept, "from the cache")))
    assert manifest(folder, cache)["model.safetensors"] == "from the cache"
    os.utime(folder / "model.safetensors", ns=(1, 1))
    assert manifest(folder, cache)["model.safetensors"] == true_hash


def test_a_damaged_or_unwritable_cache_is_no_error(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "model-hashes.json").write_text("{")
    (tmp_path / "file").write_text("")
    assert manifest(folder, tmp_path / "cache") == manifest(folder, tmp_path / "file")
