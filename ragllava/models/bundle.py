"""All models of one process, each loaded at first use. Torch is imported only then."""

from __future__ import annotations

import threading
from collections import OrderedDict
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from ragllava.errors import ModelUnavailable, ServiceUnavailable
from ragllava.models.checks import digest, manifest, mllm_manifest, model_version
from ragllava.models.profiles import Profile, RetrieverSource, find_model, get_profile
from ragllava.records import Role
from ragllava.settings import Settings

if TYPE_CHECKING:
    from ragllava.models.adapters import Adapter, AdapterSet
    from ragllava.models.device import DevicePlan
    from ragllava.models.generator import Generator
    from ragllava.models.mllm import Mllm
    from ragllava.models.reranker import Reranker
    from ragllava.models.retriever import Retriever
    from ragllava.models.vllm.golden import Parity
    from ragllava.models.vllm.models import RemoteModel
    from ragllava.models.vllm.parity_gate import EndpointModels

_OTHER_RETRIEVERS = 2  # beside the profile's own: that of the active index and that of the index being built


@dataclass(frozen=True, slots=True)
class _Applied:
    """What a role computes with. `name` None: the base's own version; `adapter` None: the base alone.

    With an endpoint, `remote` is the served model that stands for the adapter; None: the base alone.
    """

    name: str | None = None
    adapter: Adapter | None = None
    remote: RemoteModel | None = None


class ModelBundle:
    """The retriever, reranker and generator of a profile.

    Each is loaded once, at first use, under a lock; a process that only embeds pictures never loads the MLLM. Reranker
    and generator share one base in memory, and each may have an adapter of its own. Raises ModelUnavailable or
    SettingsError when a model cannot be loaded.

    With an endpoint, reranker and generator compute there, after golden pairs have shown that it serves the same
    weights (models/vllm/parity_gate.py). ModelUnavailable then also means that it does not serve them, and
    ServiceUnavailable that it does not answer.
    """

    def __init__(self, settings: Settings, *, serving: bool = False) -> None:
        """Loads nothing. Raises SettingsError for a wrong profile.

        `serving`: the process answers questions of users, so RAGLLAVA_VLLM_URL applies. Training, the evaluation of
        versions that are not served yet, and measurements need the networks in this process.
        """
        self.profile: Profile = get_profile(settings)
        self.settings = settings
        self.is_remote = serving and settings.vllm_url is not None
        self._lock = threading.RLock()
        self._applied = {role: _Applied() for role in Role}
        self._adapters_by_digest: dict[str, Adapter] = {}
        self._retrievers: OrderedDict[RetrieverSource, Retriever] = OrderedDict()

    @property
    def retriever(self) -> Retriever:
        """The profile's own retriever."""
        return self.retriever_from(self.profile.retriever)

    def retriever_from(self, source: RetrieverSource) -> Retriever:
        """The retriever of an index. The profile's own and the two used last stay loaded."""
        from ragllava.models.retriever import load_retriever

        with self._lock:
            if source not in self._retrievers:
                profile = replace(self.profile, retriever=source)
                self._retrievers[source] = load_retriever(profile, self._plan, self.settings)
            self._retrievers.move_to_end(source)
            others = [loaded for loaded in self._retrievers if loaded != self.profile.retriever]
            for unused in others[:-_OTHER_RETRIEVERS]:
                del self._retrievers[unused]
            return self._retrievers[source]

    @property
    def reranker(self) -> Reranker:
        """Scores pairs of a question and a picture."""
        with self._lock:
            return self._reranker

    @property
    def generator(self) -> Generator:
        """Answers from pictures."""
        with self._lock:
            return self._generator

    @property
    def base_version(self) -> str:
        """The version of the base of reranker and generator. Reads its files and loads nothing."""
        with self._lock:
            return self._base_version

    def apply_adapter(self, role: Role, name: str | None, folder: Path | None) -> None:
        """From now on `role` computes with the adapter in `folder` (None: with the base alone).

        `name` becomes the version of the reranker or generator (None: the version of its files). Adapters that no role
        uses any more are evicted. Call it between batches. Raises ModelUnavailable when the adapter does not fit; then
        nothing changes. An endpoint must serve the adapter under `name`; this is checked at every call.
        """
        with self._lock:
            if self.is_remote:
                applied = _Applied(name, remote=self._endpoint.admit(name, folder))
            else:
                applied = _Applied(name, self._load_adapter(folder) if folder else None)
            if applied != self._applied[role]:
                self._applied[role] = applied
                vars(self).pop(f"_{role}", None)  # created again at its next use
            self._evict_unused_adapters()

    @property
    def mllm_files(self) -> dict[str, str]:
        """The files of the base, with their sha256 (docs/reliability.md D15)."""
        with self._lock:
            return dict(self._endpoint.files if self.is_remote else self._mllm.files)

    def parity(self) -> tuple[str, Parity]:
        """The endpoint's name of the base, and how well its golden scores agree with those of the weights.

        Only if `is_remote`. Raises ModelUnavailable when they do not agree, and ServiceUnavailable.
        """
        with self._lock:
            return self._endpoint.parity()

    def warm_up(self) -> None:
        """Load what answering needs and score two pairs of one picture, so that the first question does not wait."""
        from PIL import Image

        from ragllava.models.reranker import Pair

        self.retriever.embed_texts(["a question"])
        if self.is_remote:
            try:
                self._endpoint.admit()
            except ServiceUnavailable as error:
                # Nothing can be answered without the endpoint; the supervisor of the workers starts this one again.
                raise ModelUnavailable(str(error)) from error
        picture = Image.new("RGB", (64, 64), "gray")
        pairs = [Pair(question, "a caption", picture) for question in ("a question", "another question")]
        self.reranker.relevance(pairs, batch_size=2)

    @cached_property
    def _plan(self) -> DevicePlan:
        from ragllava.models.device import plan_device

        return plan_device(self.settings)

    @cached_property
    def _mllm(self) -> Mllm:
        from ragllava.models.loading import load_mllm

        return load_mllm(self.profile, self._plan, self.settings)

    @cached_property
    def _endpoint(self) -> EndpointModels:
        from ragllava.models.vllm.parity_gate import EndpointModels

        return EndpointModels(self.profile, self._plan, self.settings)

    @cached_property
    def _base_version(self) -> str:
        if self.is_remote:
            return self._endpoint.version
        folder = find_model(self.profile.mllm, self.profile, self.settings)
        return model_version(
            folder, mllm_manifest(folder.path, self.settings.home / "cache", pad_pictures=self.profile.pad_pictures)
        )

    @cached_property
    def _adapters(self) -> AdapterSet:
        from ragllava.models.adapters import AdapterSet

        return AdapterSet(self._mllm, self.settings.home / "cache")

    @cached_property
    def _reranker(self) -> Reranker:
        from ragllava.models.reranker import Reranker

        applied = self._applied[Role.RERANKER]
        if self.is_remote:
            from ragllava.models.vllm.models import RemoteReranker

            return RemoteReranker(applied.remote or self._endpoint.admit(), applied.name)
        return Reranker(self._mllm, applied.adapter, applied.name)

    @cached_property
    def _generator(self) -> Generator:
        from ragllava.models.generator import Generator

        applied = self._applied[Role.GENERATOR]
        if self.is_remote:
            from ragllava.models.vllm.models import RemoteGenerator

            return RemoteGenerator(applied.remote or self._endpoint.admit(), applied.name)
        return Generator(self._mllm, applied.adapter, applied.name)

    def _load_adapter(self, folder: Path) -> Adapter:
        """The adapter in the folder, loaded unless the same bytes are loaded already."""
        key = digest(manifest(folder, self.settings.home / "cache"))
        if key not in self._adapters_by_digest:
            self._adapters_by_digest[key] = self._adapters.add(key, folder)
        return self._adapters_by_digest[key]

    def _evict_unused_adapters(self) -> None:
        used = [applied.adapter for applied in self._applied.values()]
        for key in [key for key, adapter in self._adapters_by_digest.items() if adapter not in used]:
            del self._adapters_by_digest[key]
            self._adapters.remove(key)
