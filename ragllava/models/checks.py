"""Checks of a model folder before it is loaded (docs/reliability.md D15), and its version, which depends on its bytes.

A folder is refused if it has pickled weights or Python files, if a configuration names code to run, or if shards of the
weights are missing. Loads no torch.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ragllava.errors import ModelUnavailable
from ragllava.models.profiles import ModelFolder
from ragllava.whole_files import file_sha256, write_whole

log = logging.getLogger(__name__)

Manifest = dict[str, str]  # file name → sha256 (hex)

_REFUSED_SUFFIXES = frozenset(
    {".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".py", ".pyc", ".so", ".h5", ".msgpack"}
)
_DOCUMENTS = frozenset({".md", ".png", ".jpg", ".gitattributes", ".lock"})  # cannot change a score
# Keys, at any depth, that make transformers or open_clip import or download code.
_CODE_KEYS = frozenset(
    {
        "auto_map",
        "custom_code",
        "custom_pipelines",
        "trust_remote_code",
        "_attn_implementation_internal",
        "_experts_implementation_internal",
        "kernel_config",
    }
)
# These may name a built-in attention, but not a hub repository of compiled kernels (`owner/name`).
_KERNEL_KEYS = frozenset({"_attn_implementation", "attn_implementation", "_experts_implementation"})
# Keys of a LoRA adapter that are supported; those of `_ADAPTER_INERT` have no effect.
ADAPTER_KEYS = frozenset(
    {
        "peft_type", "r", "lora_alpha", "lora_dropout", "target_modules", "exclude_modules", "rank_pattern",
        "alpha_pattern", "use_rslora", "fan_in_fan_out", "bias", "layers_to_transform", "layers_pattern",
        "init_lora_weights",
    }
)  # fmt: skip
_ADAPTER_INERT = frozenset(
    {"base_model_name_or_path", "revision", "task_type", "inference_mode", "peft_version", "runtime_config",
     "megatron_core", "qalora_group_size"}
)  # fmt: skip


def check_model_folder(folder: Path, *, needs_weights: bool = True) -> None:
    """Raise ModelUnavailable, with the file and the reason, for a folder that must not be loaded."""
    names = _check_files(folder, needs_weights=needs_weights)
    for name in names:
        if name.endswith(".json") and not name.endswith("tokenizer.json"):
            _check_config(folder, name)
    if needs_weights:
        _check_shards(folder, names)


def check_adapter_folder(folder: Path) -> dict[str, Any]:
    """The settings of an adapter that are supported. ModelUnavailable if it is not a plain LoRA in safetensors."""
    _check_files(folder)
    config = _read_json(folder, "adapter_config.json")
    if not isinstance(config, dict) or config.get("peft_type") != "LORA":
        raise ModelUnavailable(f"{folder}/adapter_config.json: only adapters of peft_type LORA are loaded")
    for key, value in config.items():
        if key not in ADAPTER_KEYS | _ADAPTER_INERT and value:
            raise ModelUnavailable(f"{folder}/adapter_config.json: the key {key!r} is not allowed; remove it")
    return {key: value for key, value in config.items() if key in ADAPTER_KEYS}


def model_version(folder: ModelFolder, files: Manifest) -> str:
    """The folder's label and the first eight hex digits of the digest of its files, as in `mini-llava@1f3a9c02`."""
    return f"{folder.label}@{digest(files)[:8]}"


def digest(files: Manifest) -> str:
    """One sha256 (hex) for a manifest, the same in any order of files."""
    lines = "".join(f"{name}\0{files[name]}\n" for name in sorted(files))
    return hashlib.sha256(lines.encode()).hexdigest()


def mllm_manifest(folder: Path, cache_folder: Path, *, pad_pictures: bool) -> Manifest:
    """The manifest of an MLLM. What its profile changes about it is a line of its own, so it is another version."""
    return manifest(folder, cache_folder) | ({"pad_pictures": "true"} if pad_pictures else {})


def manifest(folder: Path, cache_folder: Path) -> Manifest:
    """The sha256 of every file of the folder that can change a score.

    Hashing 26 GB takes a minute, so hashes are kept in `<cache_folder>/model-hashes.json` under path, size and
    modification time. A cache that cannot be written is not an error: the next start hashes again.
    """
    cache_file = cache_folder / "model-hashes.json"
    cache = _read_cache(cache_file)
    files: Manifest = {}
    fresh: Manifest = {}
    for name in _file_names(folder):
        if Path(name).suffix.lower() in _DOCUMENTS or Path(name).name.startswith((".", "LICENSE")):
            continue
        file = (folder / name).resolve()
        status = file.stat()
        key = f"{file}:{status.st_size}:{status.st_mtime_ns}"
        files[name] = cache.get(key) or fresh.setdefault(key, file_sha256(file))
    if fresh:
        write_cache(cache_file, cache | fresh)
    return files


def _file_names(folder: Path) -> list[str]:
    names = (str((Path(path) / name).relative_to(folder)) for path, _, files in os.walk(folder) for name in files)
    # The hub keeps files of its own beside a download.
    return sorted(name for name in names if not name.startswith(".cache"))


def _check_files(folder: Path, *, needs_weights: bool = True) -> list[str]:
    if not folder.is_dir():
        raise ModelUnavailable(f"{folder}: no such model folder")
    names = _file_names(folder)
    for name in names:
        if Path(name).suffix.lower() in _REFUSED_SUFFIXES:
            raise ModelUnavailable(
                f"{folder}/{name}: {Path(name).suffix} files can run code when loaded, and are not allowed in a model "
                "folder; keep the .safetensors weights and remove this file"
            )
    if needs_weights and not any(name.endswith(".safetensors") for name in names):
        raise ModelUnavailable(f"{folder}: no .safetensors weights; no other format is loaded")
    return names


def _check_config(folder: Path, name: str) -> None:
    for key in _code_keys(_read_json(folder, name)):
        raise ModelUnavailable(
            f"{folder}/{name}: the key {key!r} names code to run, which RagLLaVA does not allow; "
            "use a model of a family that is part of transformers"
        )


def _code_keys(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        for key, inner in value.items():
            if (key in _CODE_KEYS and inner) or (key in _KERNEL_KEYS and "/" in str(inner)):
                yield key
            yield from _code_keys(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _code_keys(inner)


def _check_shards(folder: Path, names: list[str]) -> None:
    for index in (name for name in names if name.endswith(".safetensors.index.json")):
        content = _read_json(folder, index)
        weight_map = content.get("weight_map", {}) if isinstance(content, dict) else {}
        missing = sorted(set(weight_map.values()) - set(names))
        if missing:
            raise ModelUnavailable(f"{folder}: the download is incomplete, {missing[0]} is missing; download it again")


def _read_json(folder: Path, name: str) -> Any:
    try:
        return json.loads((folder / name).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ModelUnavailable(f"{folder}: {name} is missing") from None
    except ValueError as error:
        raise ModelUnavailable(f"{folder}/{name}: not valid JSON ({error}); download it again") from None


def _read_cache(file: Path) -> Manifest:
    try:
        return dict(json.loads(file.read_text()))
    except (OSError, ValueError):
        return {}


def write_cache(file: Path, content: dict[str, Any]) -> None:
    """Replace the JSON file. A folder that cannot be written is logged only: the content is computed again."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_whole(file, json.dumps(content, indent=1))
    except OSError as error:
        log.info("%s not written", file.name, extra={"action": "cache_not_written", "reason": str(error)})
