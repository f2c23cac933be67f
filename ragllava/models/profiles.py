"""Which models run: the named profiles, profiles from files, and where a model's files are.

Loads no torch: the command line and `ragllava doctor` check here which models are present before torch is loaded.
"""

from __future__ import annotations

import json
import os
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ragllava.errors import ModelUnavailable, SettingsError, UsageError
from ragllava.settings import Settings

MODEL_PACKAGES = ("torch", "torchvision", "transformers", "open_clip", "peft", "accelerate", "safetensors")
LOCAL_DIR = "local-dir:"
NATURAL_THRESHOLD = 0.5
MINI_FOLDER = Path(__file__).parent / "mini"
# The files that are downloaded; pickled weights and Python files are not (docs/reliability.md D15).
_DOWNLOADED = ("*.safetensors", "*.json", "*.jinja", "*.txt", "*.model")


@dataclass(frozen=True, slots=True)
class RetrieverSource:
    """Where a retriever comes from: `local-dir:<folder>`, or an open_clip architecture with its tag and the hub
    repository of that tag's weights (None: the one that open_clip names). Stored beside an index as these fields."""

    retriever: str
    tag: str | None = None
    repository: str | None = None

    @property
    def reference(self) -> str:
        """The folder or hub repository that holds the weights."""
        return self.retriever.removeprefix(LOCAL_DIR) if self.is_folder else self.repository or self.retriever

    @property
    def is_folder(self) -> bool:
        """Whether it is the folder of an open_clip model."""
        return self.retriever.startswith(LOCAL_DIR)


@dataclass(frozen=True, slots=True)
class Profile:
    """A set of models. `mllm` is a folder or a hub repository; `threshold` is η of the untuned reranker
    (docs/method.md 3), `threshold_curve` the fit that gave it, if there was one. `pad_pictures`: LLaVA-1.5 sees
    pictures padded to a square, as in the paper, instead of their middle square.
    """

    name: str
    retriever: RetrieverSource
    mllm: str
    threshold: float = NATURAL_THRESHOLD
    threshold_curve: dict[str, Any] | None = None
    pad_pictures: bool = False


@dataclass(frozen=True, slots=True)
class ModelFolder:
    """A model's files on this machine; `label` is the readable part of its version."""

    path: Path
    label: str


_HUB_PROFILES = {
    "base": Profile(
        "base",
        RetrieverSource("ViT-B-16-SigLIP2-384", "webli", "timm/ViT-B-16-SigLIP2-384"),
        "Qwen/Qwen3-VL-2B-Instruct",
    ),
    "paper": Profile(
        "paper",
        RetrieverSource("ViT-L-14-336-quickgelu", "openai", "timm/vit_large_patch14_clip_336.openai"),
        "llava-hf/llava-1.5-13b-hf",
        pad_pictures=True,
    ),
}


class _ProfileFile(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    name: str = ""
    retriever: str = Field(min_length=1)
    retriever_tag: str | None = None
    retriever_repository: str | None = None
    mllm: str = Field(min_length=1)
    threshold: float = Field(default=NATURAL_THRESHOLD, ge=0, le=1)
    threshold_curve: dict[str, Any] | None = None
    pad_pictures: bool = False


def get_profile(settings: Settings) -> Profile:
    """The profile that RAGLLAVA_PROFILE names: mini, base, paper, or the path of a .toml or .json file.

    The file has the fields of Profile, and `retriever_tag` and `retriever_repository` beside `retriever`. Its paths are
    relative to the file. Raises SettingsError.
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
        "use mini, base, paper or the path of a .toml or .json file"
    )


def _mini_profile() -> Profile:
    fitted = json.loads((MINI_FOLDER / "profile.json").read_text())
    retriever = RetrieverSource(f"{LOCAL_DIR}{MINI_FOLDER / 'clip'}")
    return Profile("mini", retriever, str(MINI_FOLDER / "llava"), float(fitted["threshold"]), fitted["threshold_curve"])


def _read_profile(path: Path) -> Profile:
    try:
        text = path.read_text(encoding="utf-8")
        values = _ProfileFile.model_validate(tomllib.loads(text) if path.suffix == ".toml" else json.loads(text))
    except OSError as error:
        raise SettingsError(f"RAGLLAVA_PROFILE={path}: cannot be read ({error.strerror})") from None
    except ValidationError as error:
        problem = error.errors()[0]
        field = "".join(f"{name}: " for name in problem["loc"][:1])
        raise SettingsError(f"RAGLLAVA_PROFILE={path}: {field}{problem['msg']}") from None
    except ValueError as error:
        raise SettingsError(f"RAGLLAVA_PROFILE={path}: is not valid {path.suffix[1:].upper()} ({error})") from None
    source = RetrieverSource(values.retriever, values.retriever_tag, values.retriever_repository)
    if source.is_folder:
        source = RetrieverSource(f"{LOCAL_DIR}{(path.parent / source.reference).absolute()}")
    folder, mllm = path.parent / values.mllm, values.mllm
    if mllm.startswith(".") or folder.is_dir():
        mllm = str(folder.absolute())
    return Profile(
        values.name or path.stem, source, mllm, values.threshold, values.threshold_curve, values.pad_pictures
    )


def parse_retriever(text: str) -> RetrieverSource:
    """The retriever that a user names: the folder of an open_clip model, or `MODEL/TAG` as listed by open_clip.

    Raises UsageError for anything else.
    """
    folder = Path(text.removeprefix(LOCAL_DIR))
    if text.startswith((LOCAL_DIR, "/", ".")) or folder.is_dir():
        if not (folder / "open_clip_config.json").is_file():
            raise UsageError(f"{folder}: not the folder of an open_clip model; it has no open_clip_config.json")
        return RetrieverSource(f"{LOCAL_DIR}{folder.absolute()}")
    model, slash, tag = text.partition("/")
    if not (model and slash and tag) or "/" in tag:
        raise UsageError(f"{text!r} is not a retriever: give a folder, or MODEL/TAG, as in ViT-B-16-SigLIP2-384/webli")
    return RetrieverSource(model, tag)


def missing_models(profile: Profile, settings: Settings) -> list[str]:
    """The models of `profile` that are not on this machine. Never uses the network."""
    references = (profile.retriever.reference, profile.mllm)
    return [reference for reference in references if _locate(reference, settings) is None]


def missing_packages() -> list[str]:
    """The model libraries that are not installed: those of the extra `models`."""
    return [name for name in MODEL_PACKAGES if find_spec(name) is None]


def packages_advice(missing: Sequence[str]) -> str:
    """One sentence: what to install."""
    return f"the models need {', '.join(missing)}, not installed here: run `pip install 'ragllava[models]'`"


def require_models(settings: Settings) -> None:
    """Raise ModelUnavailable when model libraries are missing, or models of the profile that must not be downloaded."""
    if packages := missing_packages():
        raise ModelUnavailable(packages_advice(packages))
    profile = get_profile(settings)
    if os.environ.get("HF_HUB_OFFLINE") != "0" and missing_models(profile, settings):
        raise ModelUnavailable(download_advice(profile, settings))


def find_model(reference: str, profile: Profile, settings: Settings) -> ModelFolder:
    """The folder of a model: `reference` is a folder or a hub repository.

    Searches RAGLLAVA_MODELS_DIR, then the hub's cache. Downloads the repository only if HF_HUB_OFFLINE=0 allows it.
    Raises ModelUnavailable with what to download and where to put it.
    """
    folder = _locate(reference, settings)
    if folder is None and not _is_path(reference) and os.environ.get("HF_HUB_OFFLINE") == "0":
        folder = _download(reference)
    if folder is None:
        raise ModelUnavailable(download_advice(profile, settings))
    return ModelFolder(folder, f"{profile.name}-{folder.name}" if _is_path(reference) else reference)


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
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(reference, local_files_only=True))
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
    """One sentence: which models of `profile` are missing and what to do. Call it only if `missing_models` has some."""
    missing = missing_models(profile, settings)
    folders = [reference for reference in missing if _is_path(reference)]
    if folders:
        return f"profile {profile.name}: the folder {folders[0]} does not exist; correct the path in the profile"
    refused = "--exclude '*.bin' --exclude '*.pth' --exclude '*.pt'"
    target = f" --local-dir {settings.models_dir}/" if settings.models_dir else ""
    commands = " and ".join(f"`hf download {name} {refused}{target and target + name}`" for name in missing)
    return (
        f"profile {profile.name} needs {' and '.join(missing)}, not found on this machine: run {commands}, "
        "or put copies under RAGLLAVA_MODELS_DIR/<repository>, or set HF_HUB_OFFLINE=0 to let RagLLaVA download them"
    )
