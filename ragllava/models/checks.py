"""What is looked at before a model folder is loaded (docs/reliability.md D15), and the version that its bytes give it.

A folder is refused when it holds pickled weights or Python files, when a configuration names code to run, or when
shards of the weights are missing. Loads no torch.
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

log = logging.getLogger(__name__)

Manifest = dict[str, str]  # file name → sha256 (hex)

_REFUSED_SUFFIXES = frozenset(
    {".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".py", ".pyc", ".so", ".h5", ".msgpack"}
)
_DOCUMENTS = frozenset({".md", ".png", ".jpg", ".gitattributes", ".lock"})  # no part in any score
# Keys that make transformers or open_clip import or fetch code, at any depth.
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
# These may name a built-in kind of attention, but not a hub repository of compiled kernels (`owner/name`).
_KERNEL_KEYS = frozenset({"_attn_implementation", "attn_implementation", "_experts_implementation"})
# Keys of a LoRA adapter that we understand; `_ADAPTER_INERT` are notes of its maker that nothing reads.
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
    """Refuse what must not be loaded. Raises ModelUnavailable with the file and the reason."""
    names = _check_files(folder, needs_weights=needs_weights)
    for name in names:
        if name.endswith(".json") and not name.endswith("tokenizer.json"):
            _check_config(folder, name)
    if needs_weights:
        _check_shards(folder, names)


def check_adapter_folder(folder: Path) -> dict[str, Any]:
    """Refuse an adapter that is not a plain LoRA in safetensors; return its settings that we understand."""
    _check_files(folder)
    config = _read_json(folder, "adapter_config.json")
    if not isinstance(config, dict) or config.get("peft_type") != "LORA":
        raise ModelUnavailable(f"{folder}/adapter_config.json: only adapters of peft_type LORA are loaded")
    for key, value in config.items():
        if key not in ADAPTER_KEYS | _ADAPTER_INERT and value:
            raise ModelUnavailable(f"{folder}/adapter_config.json: the key {key!r} is not allowed; remove it")
    return {key: value for key, value in config.items() if key in ADAPTER_KEYS}


def model_version(folder: ModelFolder, cache_folder: Path) -> str:
    """The readable label and the first eight hex digits of the digest, as in `mini-llava@1f3a9c02`."""
    return f"{folder.label}@{digest(manifest(folder.path, cache_folder))[:8]}"


def digest(files: Manifest) -> str:
    """One sha256 (hex) for a manifest, the same in any order of files."""
    lines = "".join(f"{name}\0{files[name]}\n" for name in sorted(files))
    return hashlib.sha256(lines.encode()).hexdigest()


def manifest(folder: Path, cache_folder: Path) -> Manifest:
    """The sha256 of every file of the folder that can change a score.

    Hashing 26 GB takes a minute, so hashes are kept in `<cache_folder>/model-hashes.json` under path, size and
    modification time. A cache that cannot be written is no error: the next start hashes again.
    """
    cache_file = cache_folder / "model-hashes.json"
    cache = _read_cache(cache_file)
    found: Manifest = {}
    fresh: Manifest = {}
    for name in _file_names(folder):
        if Path(name).suffix.lower() in _DOCUMENTS or Path(name).name.startswith((".", "LICENSE")):
            continue
        file = (folder / name).resolve()
        status = file.stat()
        key = f"{file}:{status.st_size}:{status.st_mtime_ns}"
        found[name] = cache.get(key) or fresh.setdefault(key, _sha256(file))
    if fresh:
        _write_cache(cache_file, cache | fresh)
    return found


def _file_names(folder: Path) -> list[str]:
    names = []
    for place, _, files in os.walk(folder):
        names += [str((Path(place) / name).relative_to(folder)) for name in files]
    # The hub keeps its own notes beside a download.
    return sorted(name for name in names if not name.startswith(".cache"))


def _check_files(folder: Path, *, needs_weights: bool = True) -> list[str]:
    if not folder.is_dir():
        raise ModelUnavailable(f"{folder}: there is no such model folder")
    names = _file_names(folder)
    for name in names:
        if Path(name).suffix.lower() in _REFUSED_SUFFIXES:
            raise ModelUnavailable(
                f"{folder}/{name}: a model folder may hold no {Path(name).suffix} files, which can run code when "
                "loaded; keep the .safetensors weights and remove this file"
            )
    if needs_weights and not any(name.endswith(".safetensors") for name in names):
        raise ModelUnavailable(f"{folder}: no .safetensors weights here; no other format is loaded")
    return names


def _check_config(folder: Path, name: str) -> None:
    for key in _code_keys(_read_json(folder, name)):
        raise ModelUnavailable(
            f"{folder}/{name}: the key {key!r} names code to run, which RagLLaVA never does; "
            "use a model that transformers supports itself"
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


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _read_cache(file: Path) -> Manifest:
    try:
        return dict(json.loads(file.read_text()))
    except (OSError, ValueError):
        return {}


def _write_cache(file: Path, cache: Manifest) -> None:
    aside = file.with_name(f"{file.name}.{os.getpid()}")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        aside.write_text(json.dumps(cache, indent=1))
        aside.replace(file)
    except OSError as error:
        log.info("model hashes not kept", extra={"action": "hashes_not_kept", "reason": str(error)})
