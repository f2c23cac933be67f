"""All models of one process, loaded when first asked for. Imports torch only then."""

from __future__ import annotations

import threading
from functools import cached_property
from typing import TYPE_CHECKING

from ragllava.models.profiles import Profile, get_profile
from ragllava.settings import Settings

if TYPE_CHECKING:
    from ragllava.models.device import DevicePlan
    from ragllava.models.generator import Generator
    from ragllava.models.mllm import Mllm
    from ragllava.models.reranker import Reranker
    from ragllava.models.retriever import Retriever


class ModelBundle:
    """The retriever, reranker and generator of a profile.

    Each is loaded at first use, once, under a lock; who only embeds pictures never loads the MLLM. Reranker and
    generator share one base in memory. Raises ModelUnavailable or SettingsError where a model cannot be loaded.
    """

    def __init__(self, settings: Settings) -> None:
        """Nothing is loaded yet; a wrong profile is refused at once."""
        self.profile: Profile = get_profile(settings)
        self._settings = settings
        self._lock = threading.RLock()

    @property
    def retriever(self) -> Retriever:
        """The two towers of open_clip."""
        with self._lock:
            return self._retriever

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
    def mllm_files(self) -> dict[str, str]:
        """The files that reranker and generator were read from, with their sha256 (RELIABILITY D15)."""
        with self._lock:
            return dict(self._mllm.files)

    def warm_up(self) -> None:
        """Load what answering needs and score one pair, so that the first question does not wait (R19)."""
        from PIL import Image

        from ragllava.models.reranker import Pair

        self.retriever.embed_texts(["a question"])
        self.reranker.relevance([Pair("a question", "a caption", Image.new("RGB", (64, 64), "gray"))], batch_size=1)

    @cached_property
    def _plan(self) -> DevicePlan:
        from ragllava.models.device import plan_device

        return plan_device(self._settings)

    @cached_property
    def _retriever(self) -> Retriever:
        from ragllava.models.retriever import load_retriever

        return load_retriever(self.profile, self._plan, self._settings)

    @cached_property
    def _mllm(self) -> Mllm:
        from ragllava.models.mllm import load_mllm

        return load_mllm(self.profile, self._plan, self._settings)

    @cached_property
    def _reranker(self) -> Reranker:
        from ragllava.models.reranker import Reranker

        return Reranker(self._mllm)

    @cached_property
    def _generator(self) -> Generator:
        from ragllava.models.generator import Generator

        return Generator(self._mllm)
