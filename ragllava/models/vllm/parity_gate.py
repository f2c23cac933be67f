"""Admit those models of an endpoint that score the golden pairs as the weights do.

The weights are those of the checkpoint, and of adapters, on this machine; so results of the endpoint have the same
version as results of this process.
"""

from __future__ import annotations

import gc
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch

from ragllava.errors import ModelUnavailable, ScoreRejected
from ragllava.models.adapters import AdapterSet
from ragllava.models.checks import Manifest, digest, manifest, mllm_manifest, model_version
from ragllava.models.device import DevicePlan
from ragllava.models.generator import Generator
from ragllava.models.loading import load_mllm, load_without_weights
from ragllava.models.mllm import Mllm
from ragllava.models.profiles import Profile, find_model
from ragllava.models.reranker import Reranker
from ragllava.models.vllm.endpoint import Endpoint, ServedModel
from ragllava.models.vllm.golden import GoldenFiles, GoldenScores, Parity, compare, score_golden
from ragllava.models.vllm.models import RemoteGenerator, RemoteModel, RemoteReranker
from ragllava.settings import Settings

log = logging.getLogger(__name__)

_CHECK_AGAIN_S = 300.0  # an endpoint may be restarted with other weights at any time


@dataclass(frozen=True, slots=True)
class _Admission:
    model: RemoteModel
    parity: Parity
    checked_at: float


class EndpointModels:
    """The base of a profile and adapters on it, as an endpoint serves them. Not thread-safe."""

    def __init__(self, profile: Profile, plan: DevicePlan, settings: Settings) -> None:
        """Sends nothing yet. Raises ModelUnavailable if the profile's checkpoint is not on this machine."""
        self._profile = profile
        self._plan = plan
        self._settings = settings
        self._folder = find_model(profile.mllm, profile, settings)
        self._golden = GoldenFiles(settings)
        self._endpoint = Endpoint(settings)
        self._admitted: dict[tuple[str, str | None], _Admission] = {}

    @cached_property
    def files(self) -> Manifest:
        """The checkpoint's files with their sha256; without weights on this machine, those of its golden scores."""
        cache = self._settings.home / "cache"
        files = mllm_manifest(self._folder.path, cache, pad_pictures=self._profile.pad_pictures)
        if any(name.endswith(".safetensors") for name in files):
            return files
        complete = self._golden.complete(files)
        if complete is None:
            raise ModelUnavailable(
                f"{self._folder.path} has no weights, and there are no golden scores of them: run `ragllava doctor` "
                "on a machine with the weights, and set RAGLLAVA_VLLM_GOLDEN_DIR to a copy of its <home>/cache/golden"
            )
        return complete

    @cached_property
    def version(self) -> str:
        """The version of the base, as if it were loaded here."""
        return model_version(self._folder, self.files)

    def admit(self, name: str | None = None, adapter: Path | None = None) -> RemoteModel:
        """The base, or the adapter that the endpoint serves under `name`, after its golden scores were checked.

        They are checked again after some minutes. Raises ModelUnavailable when the endpoint does not serve the model,
        or when its scores differ from those of the weights; ServiceUnavailable.
        """
        return self._admission(name, adapter).model

    def parity(self) -> tuple[str, Parity]:
        """The endpoint's name of the base, and how well its scores agree. Raises as `admit`."""
        admission = self._admission(None, None)
        return admission.model.name, admission.parity

    def _admission(self, name: str | None, adapter: Path | None) -> _Admission:
        served_name = self._find_served(name, adapter)
        key = served_name, digest(manifest(adapter, self._settings.home / "cache")) if adapter else None
        admission = self._admitted.pop(key, None)
        if admission is None or time.monotonic() - admission.checked_at > _CHECK_AGAIN_S:
            if admission is None:
                model = RemoteModel(self._endpoint, served_name, self._mllm, self._settings.vllm_requests)
            else:
                model = admission.model
            admission = _Admission(model, self._check(model, key[1], adapter), time.monotonic())
        self._admitted[key] = admission
        return admission

    def _find_served(self, name: str | None, adapter: Path | None) -> str:
        try:
            served = self._endpoint.served()
        except ScoreRejected as error:
            raise ModelUnavailable(str(error)) from error
        if adapter is None:
            return self._base_among(served)
        if name is None or name not in (model.name for model in served):
            raise ModelUnavailable(
                f"the endpoint {self._endpoint.url} does not serve {name}; start it with --enable-lora "
                f"--lora-modules '{name}={adapter}'"
            )
        return name

    def _base_among(self, served: Sequence[ServedModel]) -> str:
        bases = [model.name for model in served if model.parent is None]
        wanted = self._settings.vllm_model
        if wanted is None and len(bases) == 1:
            return bases[0]
        if wanted is None or wanted not in bases:
            raise ModelUnavailable(
                f"the endpoint {self._endpoint.url} serves {', '.join(bases) or 'no model'}; set "
                f"RAGLLAVA_VLLM_MODEL to its name of {self._folder.path}"
            )
        return wanted

    def _check(self, model: RemoteModel, adapter: str | None, folder: Path | None) -> Parity:
        settings = self._settings
        expected = self._golden.find(self.files, adapter) or self._score_here(adapter, folder)
        try:
            actual = score_golden(RemoteReranker(model), RemoteGenerator(model), settings.top_n)
            parity = compare(expected, actual, settings.vllm_tolerance)
        except (ModelUnavailable, ScoreRejected) as error:
            weights = f"the adapter in {folder} on {self.version}" if folder else self.version
            raise ModelUnavailable(
                f"the endpoint {self._endpoint.url} must not serve: its {model.name} is not {weights} within "
                f"RAGLLAVA_VLLM_TOLERANCE={settings.vllm_tolerance:g}: {error}"
            ) from error
        log.info(
            f"{self._endpoint.url} serves {model.name}: {parity}",
            extra={"action": "parity_held", "model": model.name, "largest": parity.largest},
        )
        return parity

    def _score_here(self, adapter: str | None, folder: Path | None) -> GoldenScores:
        """The scores of the weights, which are loaded for this purpose only, once for each version."""
        mllm = load_mllm(self._profile, self._plan, self._settings)
        loaded = AdapterSet(mllm, self._settings.home / "cache").add(adapter, folder) if adapter and folder else None
        scores = score_golden(Reranker(mllm, loaded), Generator(mllm, loaded))
        self._golden.keep(self.files, adapter, scores)
        del mllm, loaded
        gc.collect()  # adapters and their base reference each other
        if self._plan.device.type == "cuda":
            torch.cuda.empty_cache()
        return scores

    @cached_property
    def _mllm(self) -> Mllm:
        pads = self._profile.pad_pictures
        return load_without_weights(self._folder.path, self.version, self.files, self._plan, pad_pictures=pads)
