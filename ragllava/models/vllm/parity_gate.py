"""Which models of an endpoint may serve: those that score the golden pairs as the weights themselves do.

The weights are those of the checkpoint, and of adapters, on this machine; so what an endpoint computes bears the same
version as what this process would compute.
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
from ragllava.models.checks import Manifest, digest, manifest
from ragllava.models.device import DevicePlan
from ragllava.models.generator import Generator
from ragllava.models.mllm import Mllm, load_mllm, load_without_weights
from ragllava.models.profiles import Profile, find_model
from ragllava.models.reranker import Reranker
from ragllava.models.vllm.endpoint import Endpoint, ServedModel
from ragllava.models.vllm.golden import GoldenFiles, GoldenScores, Parity, compare, score_golden
from ragllava.models.vllm.models import RemoteGenerator, RemoteModel, RemoteReranker
from ragllava.settings import Settings

log = logging.getLogger(__name__)

_CHECK_AGAIN_S = 300.0  # an endpoint may be started anew, with other weights, at any time


@dataclass(frozen=True, slots=True)
class _Admission:
    model: RemoteModel
    parity: Parity
    checked_at: float


class EndpointModels:
    """The base of a profile and adapters on it, as an endpoint serves them. Not for several threads at once."""

    def __init__(self, profile: Profile, plan: DevicePlan, settings: Settings) -> None:
        """Asks for nothing yet. Raises ModelUnavailable where the profile's checkpoint is not on this machine."""
        self._profile = profile
        self._plan = plan
        self._settings = settings
        self._folder = find_model(profile.mllm, profile, settings)
        self._golden = GoldenFiles(settings)
        self._endpoint = Endpoint(settings)
        self._admitted: dict[tuple[str, str | None], _Admission] = {}

    @cached_property
    def files(self) -> Manifest:
        """The checkpoint's files with their sha256; where its weights are elsewhere, as its golden scores name them."""
        found = manifest(self._folder.path, self._settings.home / "cache")
        if any(name.endswith(".safetensors") for name in found):
            return found
        whole = self._golden.complete(found)
        if whole is None:
            raise ModelUnavailable(
                f"{self._folder.path} holds no weights, and there are no golden scores of them: run `ragllava doctor` "
                f"where they are, and let RAGLLAVA_VLLM_GOLDEN_DIR name a copy of <its home>/cache/golden"
            )
        return whole

    @cached_property
    def version(self) -> str:
        """The version of the base, as of one that is loaded here."""
        return f"{self._folder.label}@{digest(self.files)[:8]}"

    def admit(self, name: str | None = None, adapter: Path | None = None) -> RemoteModel:
        """The base, or the adapter that the endpoint serves under `name`, after it has shown that it is what it should.

        That is shown again when it is some minutes old. Raises ModelUnavailable when the endpoint does not serve it,
        or computes otherwise than the weights; ServiceUnavailable.
        """
        return self._admission(name, adapter).model

    def parity(self) -> tuple[str, Parity]:
        """The name that the endpoint serves the base under, and how well it agrees. Raises as `admit`."""
        admission = self._admission(None, None)
        return admission.model.name, admission.parity

    def _admission(self, name: str | None, adapter: Path | None) -> _Admission:
        served_name = self._find_served(name, adapter)
        key = served_name, digest(manifest(adapter, self._settings.home / "cache")) if adapter else None
        known = self._admitted.pop(key, None)
        if known is None or time.monotonic() - known.checked_at > _CHECK_AGAIN_S:
            model = known.model if known else self._model(served_name)
            known = _Admission(model, self._check(model, key[1], adapter), time.monotonic())
        self._admitted[key] = known
        return known

    def _find_served(self, name: str | None, adapter: Path | None) -> str:
        try:
            served = self._endpoint.served()
        except ScoreRejected as error:
            raise ModelUnavailable(str(error)) from error
        if adapter is None:
            return self._base_among(served)
        if name is None or name not in (model.name for model in served):
            raise ModelUnavailable(
                f"the endpoint {self._endpoint.url} serves no {name}; start it with --enable-lora "
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
                f"the endpoint {self._endpoint.url} serves {', '.join(bases) or 'no model'}; let RAGLLAVA_VLLM_MODEL "
                f"name the one that is {self._folder.path}"
            )
        return wanted

    def _model(self, served_name: str) -> RemoteModel:
        return RemoteModel(self._endpoint, served_name, self._mllm, self._settings.vllm_requests)

    def _check(self, model: RemoteModel, adapter: str | None, folder: Path | None) -> Parity:
        settings = self._settings
        expected = self._golden.find(self.files, adapter) or self._score_here(adapter, folder)
        try:
            found = score_golden(RemoteReranker(model), RemoteGenerator(model), settings.top_n)
            parity = compare(expected, found, settings.vllm_tolerance)
        except (ModelUnavailable, ScoreRejected) as error:
            what = f"the adapter in {folder} on {self.version}" if folder else self.version
            raise ModelUnavailable(
                f"the endpoint {self._endpoint.url} must not serve: its {model.name} is not {what} within "
                f"RAGLLAVA_VLLM_TOLERANCE={settings.vllm_tolerance:g}: {error}"
            ) from error
        log.info(
            f"{self._endpoint.url} serves {model.name}: {parity}",
            extra={"action": "parity_held", "model": model.name, "largest": parity.largest},
        )
        return parity

    def _score_here(self, adapter: str | None, folder: Path | None) -> GoldenScores:
        """By the weights themselves, which are loaded for this alone and only once in the life of a version."""
        mllm = load_mllm(self._profile, self._plan, self._settings)
        laid = AdapterSet(mllm, self._settings.home / "cache").add(adapter, folder) if adapter and folder else None
        scores = score_golden(Reranker(mllm, laid), Generator(mllm, laid))
        self._golden.keep(self.files, adapter, scores)
        del mllm, laid
        gc.collect()  # adapters and their base hold on to each other
        if self._plan.device.type == "cuda":
            torch.cuda.empty_cache()
        return scores

    @cached_property
    def _mllm(self) -> Mllm:
        return load_without_weights(self._folder.path, self.version, self.files, self._plan)
