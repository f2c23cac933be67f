"""All models of one process, loaded when first asked for. Imports torch only then."""

from __future__ import annotations

import threading
from collections import OrderedDict
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from ragllava.errors import ModelUnavailable, ServiceUnavailable
from ragllava.models.checks import digest, manifest, model_version
from ragllava.models.profiles import Profile, RetrieverSource, find_model, get_profile, with_retriever
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

# Beside the profile's own: that of the active index and that of the one being built.
_OTHER_RETRIEVERS = 2


@dataclass(frozen=True, slots=True)
class _Worn:
    """What a role computes with. `name` None: the base's own version; `adapter` None: the bare base.

    With an endpoint, `remote` is what it serves in the adapter's place; None: the bare base.
    """

    name: str | None = None
    adapter: Adapter | None = None
    remote: RemoteModel | None = None


class ModelBundle:
    """The retriever, reranker and generator of a profile.

    Each is loaded at first use, once, under a lock; who only embeds pictures never loads the MLLM. Reranker and
    generator share one base in memory, and each may wear an adapter of its own on it. Raises ModelUnavailable or
    SettingsError where a model cannot be loaded.

    Or both compute at an endpoint that has shown by golden pairs that it serves these weights
    (models/vllm/parity_gate.py). Then ModelUnavailable also means that it does not, and ServiceUnavailable that it
    does not answer.
    """

    def __init__(self, settings: Settings, *, serving: bool = False) -> None:
        """Nothing is loaded yet; a wrong profile is refused at once.

        `serving`: questions of users are answered, so RAGLLAVA_VLLM_URL counts. Who trains, judges what is not served
        yet, or measures networks, needs them in this process.
        """
        self.profile: Profile = get_profile(settings)
        self.settings = settings
        self.is_remote = serving and settings.vllm_url is not None
        self._lock = threading.RLock()
        self._worn = {role: _Worn() for role in Role}
        self._loaded: dict[str, Adapter] = {}  # by the digest of their files
        self._others: OrderedDict[RetrieverSource, Retriever] = OrderedDict()

    @property
    def retriever(self) -> Retriever:
        """The two towers of open_clip."""
        with self._lock:
            return self._retriever

    def retriever_from(self, source: RetrieverSource) -> Retriever:
        """The retriever of an index that was not made by the profile's own; the two used last stay loaded."""
        with self._lock:
            if source == RetrieverSource.of(self.profile):
                return self._retriever
            if source not in self._others:
                self._others[source] = self._load_other(source)
            self._others.move_to_end(source)
            while len(self._others) > _OTHER_RETRIEVERS:
                self._others.popitem(last=False)
            return self._others[source]

    @property
    def reranker(self) -> Reranker:
        """Scores (question, caption, picture) pairs."""
        with self._lock:
            return self._reranker

    @property
    def generator(self) -> Generator:
        """Answers from kept pictures."""
        with self._lock:
            return self._generator

    @property
    def base_version(self) -> str:
        """The version of the base that reranker and generator stand on. Reads its files and loads nothing."""
        with self._lock:
            return self._base_version

    def wear(self, role: Role, name: str | None, folder: Path | None) -> None:
        """From now on `role` computes with the adapter in `folder` (None: with the bare base).

        `name` is the version that the reranker or generator then says it is (None: that of its files). Adapters
        that no role wears any more are dropped. Call it between batches, not during one. Raises ModelUnavailable
        when the adapter does not fit; then everything is as before. An endpoint must serve the adapter under `name`:
        it is asked each time, and never serves the base in its place.
        """
        with self._lock:
            if self.is_remote:
                worn = _Worn(name, remote=self._endpoint.admit(name, folder))
            else:
                worn = _Worn(name, self._lay_on(folder) if folder else None)
            if worn != self._worn[role]:
                self._worn[role] = worn
                vars(self).pop(f"_{role}", None)  # made anew at its next use
            self._drop_unworn()

    @property
    def mllm_files(self) -> dict[str, str]:
        """The files that reranker and generator were read from, with their sha256 (docs/reliability.md D15)."""
        with self._lock:
            return dict(self._endpoint.files if self.is_remote else self._mllm.files)

    def parity(self) -> tuple[str, Parity]:
        """The name that the endpoint serves the base under, and how well its golden scores agree with the weights'.

        Only where `is_remote`. Raises ModelUnavailable where they do not agree, ServiceUnavailable.
        """
        with self._lock:
            return self._endpoint.parity()

    def warm_up(self) -> None:
        """Load what answering needs and score two pairs of one picture, so that no question waits for it."""
        from PIL import Image

        from ragllava.models.reranker import Pair

        self.retriever.embed_texts(["a question"])
        if self.is_remote:
            try:
                self._endpoint.admit()
            except ServiceUnavailable as error:
                # Nothing can be answered before it is there: who watches over workers starts this one again.
                raise ModelUnavailable(str(error)) from error
        picture = Image.new("RGB", (64, 64), "gray")
        pairs = [Pair(question, "a caption", picture) for question in ("a question", "another question")]
        self.reranker.relevance(pairs, batch_size=2)

    @cached_property
    def _plan(self) -> DevicePlan:
        from ragllava.models.device import plan_device

        return plan_device(self.settings)

    @cached_property
    def _retriever(self) -> Retriever:
        from ragllava.models.retriever import load_retriever

        return load_retriever(self.profile, self._plan, self.settings)

    def _load_other(self, source: RetrieverSource) -> Retriever:
        from ragllava.models.retriever import load_retriever

        return load_retriever(with_retriever(self.profile, source), self._plan, self.settings)

    @cached_property
    def _mllm(self) -> Mllm:
        from ragllava.models.mllm import load_mllm

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
        return model_version(folder, self.settings.home / "cache")

    @cached_property
    def _adapters(self) -> AdapterSet:
        from ragllava.models.adapters import AdapterSet

        return AdapterSet(self._mllm, self.settings.home / "cache")

    @cached_property
    def _reranker(self) -> Reranker:
        from ragllava.models.reranker import Reranker

        worn = self._worn[Role.RERANKER]
        if self.is_remote:
            from ragllava.models.vllm.models import RemoteReranker

            return RemoteReranker(worn.remote or self._endpoint.admit(), worn.name)
        return Reranker(self._mllm, worn.adapter, worn.name)

    @cached_property
    def _generator(self) -> Generator:
        from ragllava.models.generator import Generator

        worn = self._worn[Role.GENERATOR]
        if self.is_remote:
            from ragllava.models.vllm.models import RemoteGenerator

            return RemoteGenerator(worn.remote or self._endpoint.admit(), worn.name)
        return Generator(self._mllm, worn.adapter, worn.name)

    def _lay_on(self, folder: Path) -> Adapter:
        """The adapter in the folder, laid on the base unless the same bytes lie there already."""
        key = digest(manifest(folder, self.settings.home / "cache"))
        if key not in self._loaded:
            self._loaded[key] = self._adapters.add(key, folder)
        return self._loaded[key]

    def _drop_unworn(self) -> None:
        worn = [part.adapter for part in self._worn.values()]
        for key in [key for key, adapter in self._loaded.items() if adapter not in worn]:
            del self._loaded[key]
            self._adapters.remove(key)
