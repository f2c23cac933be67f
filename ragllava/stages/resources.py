"""The resources that the stages share in one process: the object store, the models, decoded pictures."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cached_property
from typing import TYPE_CHECKING, Any

from ragllava.errors import (
    DecoderUnavailable,
    ImageRejected,
    JobRefused,
    ModelUnavailable,
    ObjectCorrupt,
    ObjectMissing,
    ServiceUnavailable,
)
from ragllava.imaging.decode import MAX_BYTES
from ragllava.imaging.sandbox import DecoderPool, make_decoder
from ragllava.models.bundle import ModelBundle
from ragllava.models.profiles import RetrieverSource
from ragllava.prompts import ANSWER_VERSION, RERANK_VERSION
from ragllava.records import Role
from ragllava.settings import Settings
from ragllava.stores.archives.vectors import IndexView
from ragllava.stores.learning.registry import BaseVersion
from ragllava.stores.objects import ObjectStore

if TYPE_CHECKING:
    from PIL.Image import Image

    from ragllava.models.retriever import Retriever

FETCH_THREADS = 8
_DECAY = 0.5  # the weight of earlier measurements in the moving average of the pace


class AnswerPace:
    """The seconds per unit of cost in this process, a moving average; None before the first measurement.

    `of_depth` is what the answer stage keeps for each set of options (stages/answer/parts.py).
    """

    seconds_per_cost: float | None = None

    def __init__(self) -> None:
        """Nothing was measured yet."""
        self.of_depth: dict[Hashable, Any] = {}

    def learn(self, seconds: float, cost: float) -> None:
        """Add a measurement: work of this cost took so many seconds."""
        if cost <= 0:
            return
        measured, average = seconds / cost, self.seconds_per_cost
        self.seconds_per_cost = measured if average is None else _DECAY * average + (1 - _DECAY) * measured


class Resources:
    """The stores and models of one process; each is created at its first use."""

    def __init__(self, settings: Settings) -> None:
        """Makes no connection."""
        self.settings = settings
        self.models = ModelBundle(settings, serving=True)
        self.pace = AnswerPace()

    @cached_property
    def objects(self) -> ObjectStore:
        """The S3 store."""
        return ObjectStore(self.settings)

    @cached_property
    def pictures(self) -> PictureCache:
        """Decoded pictures of the archive."""
        return PictureCache(self.objects, self.decoder, self.threads, self.settings.image_cache_mib * 2**20)

    @cached_property
    def decoder(self) -> DecoderPool:
        """Child processes that decode pictures."""
        return make_decoder(self.settings)

    def fetch(self, bucket: str, key: str) -> bytes:
        """The bytes of an object of any bucket, for s3:// uris."""
        return self.objects.read_external(bucket, key, MAX_BYTES).data

    @cached_property
    def threads(self) -> ThreadPoolExecutor:
        """For uploads and downloads."""
        return ThreadPoolExecutor(FETCH_THREADS, thread_name_prefix="objects")

    def close(self) -> None:
        """End the child processes and threads that were started."""
        created = vars(self)
        if "decoder" in created:
            self.decoder.close()
        if "threads" in created:
            self.threads.shutdown()

    def warm_up(self, *, embeds: bool, answers: bool) -> dict[str, str]:
        """Load the models that are needed and use each of them once; returns their versions."""
        versions = {}
        if embeds:
            self.models.retriever.embed_texts(["warm-up"])
            versions["retriever"] = self.models.retriever.version
        if answers:
            self.models.warm_up()
            versions["reranker"] = self.models.reranker.version
            versions["generator"] = self.models.generator.version
        return versions

    def retriever_of(self, index: IndexView) -> Retriever:
        """The retriever that made an index. Raises JobRefused when this worker has another one, or none: vectors of
        different models are not comparable."""
        retriever = self.load_retriever(index.spec)
        if index.retriever != retriever.version:
            raise JobRefused(
                f"the archive is indexed by {index.retriever}, but this worker runs {retriever.version}; start workers "
                "with the profile that the archive was ingested with, or make a new index with "
                "`ragllava reindex --only stale`"
            )
        return retriever

    def load_retriever(self, spec: Mapping[str, Any] | None) -> Retriever:
        """The retriever that `spec` of an index names; None: the profile's own. Raises JobRefused when it cannot be
        loaded here."""
        if spec is None:
            return self.models.retriever
        try:
            return self.models.retriever_from(RetrieverSource(**spec))
        except ModelUnavailable as error:
            raise JobRefused(f"this worker cannot load the index's retriever: {error}") from error

    def base_versions(self) -> list[BaseVersion]:
        """The loaded base models in their two roles, for the registry."""
        profile, base, files = self.models.profile, self.models.base_version, self.models.mllm_files
        fitted = (profile.threshold, profile.threshold_curve)
        return [
            BaseVersion(Role.RERANKER, base, RERANK_VERSION, *fitted, manifest=files),
            BaseVersion(Role.GENERATOR, base, ANSWER_VERSION, manifest=files),
        ]


class PictureCache:
    """Reads pictures of the archive by content hash, decodes them, and keeps the most recent within a size limit.

    They are decoded in the child processes, as when they were ingested. Threads wait for that, so that the device does
    not.
    """

    def __init__(
        self, objects: ObjectStore, decoder: DecoderPool, threads: ThreadPoolExecutor, limit_bytes: int
    ) -> None:
        """`threads` fetch the objects. `limit_bytes` counts decoded RGB pixels."""
        self._decoder = decoder
        self._threads = threads
        self._objects = objects
        self._limit_bytes = limit_bytes
        self._used_bytes = 0
        self._cached: OrderedDict[str, Image] = OrderedDict()
        self._pending: dict[str, Future[Image | str]] = {}

    def fetch_ahead(self, hashes: Iterable[str]) -> None:
        """Start to read the pictures of the next `get_many`; they are held in memory until then.

        Pictures of an earlier call that were not requested since are dropped.
        """
        missing = [sha256 for sha256 in hashes if sha256 not in self._cached]
        for sha256 in self._pending.keys() - set(missing):
            self._pending.pop(sha256).cancel()
        for sha256 in missing:
            if sha256 not in self._pending:
                self._pending[sha256] = self._threads.submit(self._read, sha256)

    def get_many(self, hashes: Sequence[str]) -> dict[str, Image | str]:
        """Each distinct picture, or one sentence why it cannot be read.

        Raises ServiceUnavailable, and DecoderUnavailable.
        """
        requested = list(dict.fromkeys(hashes))
        missing = [sha256 for sha256 in requested if sha256 not in self._cached]
        self.fetch_ahead(missing)
        pictures: dict[str, Image | str] = {}
        try:
            for sha256 in missing:
                pictures[sha256] = self._pending.pop(sha256).result()
        except (ServiceUnavailable, DecoderUnavailable):
            self._pending.clear()  # the caller requests all of them again, later
            raise
        for sha256, picture in pictures.items():
            if not isinstance(picture, str):
                self._cached[sha256] = picture
                self._used_bytes += picture.width * picture.height * 3
        for sha256 in requested:
            if sha256 not in pictures:
                pictures[sha256] = self._cached[sha256]
                self._cached.move_to_end(sha256)
        while self._used_bytes > self._limit_bytes and len(self._cached) > 1:
            _, oldest = self._cached.popitem(last=False)
            self._used_bytes -= oldest.width * oldest.height * 3
        return pictures

    def _read(self, sha256: str) -> Image | str:
        try:
            return self._decoder.decode_for_model(self._objects.get_content(sha256))
        except (ObjectMissing, ObjectCorrupt, ImageRejected) as error:
            return str(error)
