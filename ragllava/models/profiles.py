"""Which models run: the named profiles, own ones from a file, and where a model's files lie.

Loads no torch: the command line and `ragllava doctor` ask here what is present before anything heavy starts.
"""

from __future__ import annotations

import json
import os
import tomllib
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from ragllava.errors import ModelUnavailable, SettingsError, UsageError
from ragllava.settings import Settings

LOCAL_DIR = "local-dir:"
NATURAL_THRESHOLD = 0.5
_MINI = Path(__file__).parent / "mini"
# What a download needs. Pickled weights and Python files are left behind (docs/reliability.md D15).
_DOWNLOADED = ("*.safetensors", "*.json", "*.jinja", "*.txt", "*.model")


@dataclass(frozen=True, slots=True)
class Profile:
    """The models of one set-up.

    `retriever` is an open_clip architecture with its `retriever_tag` and the hub repository of that tag's weights
    (`retriever_repository`), or `local-dir:<folder>`. `mllm` is a folder or a hub repository. `threshold` is η of
    the untuned reranker (docs/method.md 3), `threshold_curve` the fit it came from, if there was one.
    """

    name: str
    retriever: str
    mllm: str
    retriever_tag: str | None = None
    retriever_repository: str | None = None
    threshold: float = NATURAL_THRESHOLD
    threshold_curve: dict[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class RetrieverSource:
    """Where a retriever comes from, in a profile's words: an open_clip architecture with its tag and the hub
    repository of that tag's weights (None: the one that open_clip knows), or `local-dir:<folder>`."""

    retriever: str
    tag: str | None = None
    repository: str | None = None

    @classmethod
    def of(cls, profile: Profile) -> RetrieverSource:
        """Where the profile's own retriever comes from."""
        return cls(profile.retriever, profile.retriever_tag, profile.retriever_repository)

    def as_json(self) -> dict[str, Any]:
        """As stored beside an index; `RetrieverSource(**stored)` reads it."""
        return {"retriever": self.retriever, "tag": self.tag, "repository": self.repository}


@dataclass(frozen=True, slots=True)
class ModelFolder:
    """A model's files on this machine; `label` is the readable half of its version."""

    path: Path
    label: str


_HUB_PROFILES = {
    "base": Profile(
        name="base",
        retriever="ViT-B-16-SigLIP2-384",
        retriever_tag="webli",
        retriever_repository="timm/ViT-B-16-SigLIP2-384",
        mllm="Qwen/Qwen3-VL-2B-Instruct",
    ),
    "paper": Profile(
        name="paper",
        retriever="ViT-L-14-336-quickgelu",
        retriever_tag="openai",
        retriever_repository="timm/vit_large_patch14_clip_336.openai",
        mllm="llava-hf/llava-1.5-13b-hf",
    ),
}


def get_profile(settings: Settings) -> Profile:
    """The profile that RAGLLAVA_PROFILE names: mini, base, paper, or the path of a .toml or .json file.

    The file has the fields of Profile; its paths are relative to the file. Raises SettingsError.
    """
    if settings.profile == "mini":
        return _mini_profile()
    if settings.profile in _HUB_PROFILES:
        return _HUB_PROFILES[settings.profile]
    path = Path(settings.profile)
    if path.suffix in (".toml", ".json"):
        return _read_profile(path)
    raise SettingsError(
        f"RAGLLAVA_PROFILE={settings.profile}: no such profile; "
        "say mini, base, paper or the path of a .toml or .json file"
    )


def _mini_profile() -> Profile:
    fitted = json.loads((_MINI / "profile.json").read_text())
    return Profile(
        name="mini",
        retriever=f"{LOCAL_DIR}{_MINI / 'clip'}",
        mllm=str(_MINI / "llava"),
        threshold=float(fitted["threshold"]),
        threshold_curve=fitted["threshold_curve"],
    )


def _read_profile(path: Path) -> Profile:
    try:
        text = path.read_text(encoding="utf-8")
        values = tomllib.loads(text) if path.suffix == ".toml" else json.loads(text)
    except OSError as error:
        raise SettingsError(f"RAGLLAVA_PROFILE={path}: cannot be read ({error.strerror})") from None
    except ValueError as error:
        raise SettingsError(f"RAGLLAVA_PROFILE={path}: is not valid {path.suffix[1:].upper()} ({error})") from None
    if not isinstance(values, dict):
        raise SettingsError(f"RAGLLAVA_PROFILE={path}: must hold one table of fields")
    values.setdefault("name", path.stem)
    _check_fields(path, values)
    if values["retriever"].startswith(LOCAL_DIR):
        folder = path.parent / values["retriever"].removeprefix(LOCAL_DIR)
        values["retriever"] = f"{LOCAL_DIR}{folder.absolute()}"
    if values["mllm"].startswith(".") or (path.parent / values["mllm"]).is_dir():
        values["mllm"] = str((path.parent / values["mllm"]).absolute())
    return Profile(**values)


def _check_fields(path: Path, values: dict[str, Any]) -> None:
    known = {field.name for field in fields(Profile)}
    for name, value in values.items():
        if name not in known:
            raise SettingsError(
                f"RAGLLAVA_PROFILE={path}: unknown field {name!r}; known are {', '.join(sorted(known))}"
            )
        if name not in ("threshold", "threshold_curve") and not isinstance(value, str):
            raise SettingsError(f"RAGLLAVA_PROFILE={path}: {name} must be a text")
    for name in ("retriever", "mllm"):
        if not values.get(name):
            raise SettingsError(f"RAGLLAVA_PROFILE={path}: the field {name!r} is missing")
    threshold = values.get("threshold", NATURAL_THRESHOLD)
    if not isinstance(threshold, int | float) or not 0 <= threshold <= 1:
        raise SettingsError(f"RAGLLAVA_PROFILE={path}: threshold must be a number from 0 to 1, not {threshold!r}")


def parse_retriever(text: str) -> RetrieverSource:
    """The retriever that a person names: the folder of an open_clip model, or `MODEL/TAG` as open_clip lists them.

    Raises UsageError for anything else.
    """
    folder = Path(text.removeprefix(LOCAL_DIR))
    if text.startswith((LOCAL_DIR, "/", ".")) or folder.is_dir():
        if not (folder / "open_clip_config.json").is_file():
            raise UsageError(f"{folder}: this is no folder of an open_clip model; it has no open_clip_config.json")
        return RetrieverSource(f"{LOCAL_DIR}{folder.absolute()}")
    model, slash, tag = text.partition("/")
    if not (model and slash and tag) or "/" in tag:
        raise UsageError(f"{text!r} names no retriever: give a folder, or MODEL/TAG, as in ViT-B-16-SigLIP2-384/webli")
    return RetrieverSource(model, tag)


def with_retriever(profile: Profile, source: RetrieverSource) -> Profile:
    """The same profile with another retriever."""
    return replace(
        profile, retriever=source.retriever, retriever_tag=source.tag, retriever_repository=source.repository
    )


def retriever_reference(profile: Profile) -> str:
    """The folder or hub repository that holds the retriever's weights."""
    if profile.retriever.startswith(LOCAL_DIR):
        return profile.retriever.removeprefix(LOCAL_DIR)
    return profile.retriever_repository or profile.retriever


def missing_models(profile: Profile, settings: Settings) -> list[str]:
    """The references of `profile` that are not on this machine; empty when all is there. Never uses the network."""
    references = (retriever_reference(profile), profile.mllm)
    return [reference for reference in references if _locate(reference, settings) is None]


def require_models(settings: Settings) -> None:
    """Raise ModelUnavailable, before anything is started, when the profile's models are not to be had."""
    profile = get_profile(settings)
    if os.environ.get("HF_HUB_OFFLINE") != "0" and missing_models(profile, settings):
        raise ModelUnavailable(download_advice(profile, settings))


def find_model(reference: str, profile: Profile, settings: Settings) -> ModelFolder:
    """The folder of a model: `reference` is a folder or a hub repository.

    A repository is looked for in RAGLLAVA_MODELS_DIR, then in the hub's cache. It is downloaded only where the
    user allows that by HF_HUB_OFFLINE=0. Raises ModelUnavailable with what to download and where to put it.
    """
    found = _locate(reference, settings)
    if found is None and not _is_path(reference) and os.environ.get("HF_HUB_OFFLINE") == "0":
        found = _download(reference)
    if found is None:
        raise ModelUnavailable(download_advice(profile, settings))
    label = f"{profile.name}-{found.name}" if _is_path(reference) else reference
    return ModelFolder(found, label)


def _is_path(reference: str) -> bool:
    """A hub repository is `owner/name`; a folder is given by its absolute path (_read_profile makes it so)."""
    return Path(reference).is_absolute()


def _locate(reference: str, settings: Settings) -> Path | None:
    if _is_path(reference):
        return Path(reference) if Path(reference).is_dir() else None
    if settings.models_dir is not None:
        for name in (reference, reference.replace("/", "--"), reference.replace("/", "_")):
            if (settings.models_dir / name).is_dir():
                return settings.models_dir / name
    return _cached_snapshot(reference)


def _cached_snapshot(repository: str) -> Path | None:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(repository, local_files_only=True))
    except (LocalEntryNotFoundError, HFValidationError):
        return None


def _download(repository: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(repository, allow_patterns=list(_DOWNLOADED)))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise ModelUnavailable(f"the model {repository} could not be downloaded: {error}") from None


def download_advice(profile: Profile, settings: Settings) -> str:
    """One sentence: which models of `profile` this machine lacks and what to do. Only for what `missing_models` has."""
    missing = missing_models(profile, settings)
    folders = [reference for reference in missing if _is_path(reference)]
    if folders:
        return f"profile {profile.name}: the folder {folders[0]} does not exist; correct the path in the profile"
    commands = " and ".join(f"`{_download_command(repository, settings)}`" for repository in missing)
    return (
        f"profile {profile.name} needs {' and '.join(missing)}, not found on this machine: run {commands}, "
        "or put copies under RAGLLAVA_MODELS_DIR/<repository>, or set HF_HUB_OFFLINE=0 to let RagLLaVA download them"
    )


def _download_command(repository: str, settings: Settings) -> str:
    refused = " ".join(f"--exclude '{pattern}'" for pattern in ("*.bin", "*.pth", "*.pt"))
    where = f" --local-dir {settings.models_dir / repository}" if settings.models_dir else ""
    return f"hf download {repository} {refused}{where}"
