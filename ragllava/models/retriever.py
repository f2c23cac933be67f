"""The coarse retriever: open_clip's two encoders, one space for pictures and texts (docs/method.md 1)."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from safetensors import SafetensorError

from ragllava.errors import ModelUnavailable
from ragllava.models.checks import check_model_folder, manifest, model_version
from ragllava.models.device import DevicePlan, in_batches
from ragllava.models.profiles import LOCAL_DIR, ModelFolder, Profile, RetrieverSource, find_model
from ragllava.settings import Settings

log = logging.getLogger(__name__)

FloatArray = npt.NDArray[np.float32]
Pixels = torch.Tensor  # (3, H, W) float32: one picture as the image encoder takes it
_WEIGHTS = "open_clip_model.safetensors"
_PRECISIONS = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}
_TEXTS_PER_BATCH = 256
_Tokenizer = Callable[[list[str]], torch.Tensor]


class Retriever:
    """Embeds pictures and texts into the same space.

    `version` names the weights, `dim` is the length of a vector, `image_size` the side in pixels of the image
    encoder's input.
    """

    def __init__(self, network: Any, preprocess: Any, tokenizer: _Tokenizer, version: str, plan: DevicePlan) -> None:
        """`preprocess` turns one RGB picture into a (3, H, W) tensor; `tokenizer` cuts to the context length."""
        self.version = version
        self.image_size = int(np.max(network.visual.image_size))  # open_clip gives an int or a pair
        self._network = network
        self._preprocess = preprocess
        self._tokenizer = tokenizer
        self._plan = plan
        self.dim: int = self.embed_texts([""]).shape[1]

    @property
    def is_on_gpu(self) -> bool:
        """Whether the network runs on an accelerator."""
        return self._plan.device.type != "cpu"

    def embed_images(self, pictures: Sequence[Image.Image], batch_size: int) -> FloatArray:
        """Pictures (RGB) → (N, dim) float32, rows of length 1, in input order."""
        return self._stack(in_batches(pictures, batch_size, self._embed_pictures))

    def prepare_image(self, picture: Image.Image) -> Pixels:
        """The input of `embed_pixels` for one picture (RGB). Needs no network; thread-safe."""
        pixels: Pixels = self._preprocess(picture)
        return pixels

    def embed_pixels(self, pixels: Sequence[Pixels], batch_size: int) -> FloatArray:
        """Prepared pictures → (N, dim) float32, rows of length 1, in input order."""
        return self._stack(in_batches(pixels, batch_size, self._embed_pixels))

    def embed_texts(self, texts: Sequence[str]) -> FloatArray:
        """Texts → (N, dim) float32, rows of length 1, in input order. A text longer than the context is cut."""
        return self._stack(in_batches(texts, _TEXTS_PER_BATCH, self._embed_texts))

    def _stack(self, rows: list[FloatArray]) -> FloatArray:
        return np.stack(rows) if rows else np.zeros((0, self.dim), np.float32)

    def _embed_pictures(self, pictures: Sequence[Image.Image]) -> list[FloatArray]:
        return self._embed_pixels([self.prepare_image(picture) for picture in pictures])

    @torch.inference_mode()
    def _embed_pixels(self, pixels: Sequence[Pixels]) -> list[FloatArray]:
        batch = torch.stack(list(pixels)).to(self._plan.device, dtype=self._plan.dtype)
        return _unit_rows(self._network.encode_image(batch))

    @torch.inference_mode()
    def _embed_texts(self, texts: Sequence[str]) -> list[FloatArray]:
        tokens = self._tokenizer(list(texts))
        return _unit_rows(self._network.encode_text(tokens.to(self._plan.device)))


def load_retriever(profile: Profile, plan: DevicePlan, settings: Settings) -> Retriever:
    """Load the profile's retriever from files on this machine. Raises ModelUnavailable."""
    source = profile.retriever
    is_named = source.is_folder or source.repository is not None
    folder = find_model(source.reference if is_named else _hub_repository(source), profile, settings)
    check_model_folder(folder.path)
    version = model_version(folder, manifest(folder.path, settings.home / "cache"))
    try:
        parts = _load(source, folder, plan)
    except (RuntimeError, ValueError, OSError, KeyError, TypeError, SafetensorError) as error:
        raise ModelUnavailable(f"the retriever in {folder.path} cannot be loaded: {error}") from error
    log.info("retriever loaded: %s", version, extra={"action": "retriever_loaded"})
    return Retriever(*parts, version=version, plan=plan)


def _load(source: RetrieverSource, folder: ModelFolder, plan: DevicePlan) -> tuple[Any, Any, _Tokenizer]:
    """Network, picture preparation and tokenizer: of a folder, or of an architecture of open_clip and a tag."""
    import open_clip

    name, options = f"{LOCAL_DIR}{folder.path}", {}
    if not source.is_folder:
        tag = _pretrained(source)
        name = source.retriever
        options = {f"image_{key}": tag[key] for key in ("mean", "std", "interpolation", "resize_mode")}
        options["pretrained"] = str(folder.path / _WEIGHTS)
    network, preprocess = open_clip.create_model_from_pretrained(
        name, precision=_PRECISIONS[plan.dtype], device=plan.device, **options
    )
    tokenizer = open_clip.get_tokenizer(name) if source.is_folder else _named_tokenizer(source, folder)
    return network.eval(), preprocess, tokenizer


def _pretrained(source: RetrieverSource) -> dict[str, Any]:
    """open_clip's description of the weights of the tag. Raises ModelUnavailable."""
    import open_clip

    tag: dict[str, Any] = open_clip.get_pretrained_cfg(source.retriever, source.tag or "")
    if not tag:
        tags = ", ".join(open_clip.list_pretrained_tags_by_model(source.retriever)) or "none"
        raise ModelUnavailable(f"open_clip has no weights {source.tag!r} of {source.retriever!r}; its tags are: {tags}")
    return tag


def _hub_repository(source: RetrieverSource) -> str:
    """The hub repository of the tag's weights; open_clip gives it with a slash, and sometimes a file, at its end."""
    repository = "/".join(str(_pretrained(source).get("hf_hub") or "").split("/")[:2])
    if not repository:
        raise ModelUnavailable(
            f"open_clip names no hub repository for {source.retriever}/{source.tag}: "
            "put the weights into a folder with open_clip_config.json and give that folder"
        )
    return repository


def _named_tokenizer(source: RetrieverSource, folder: ModelFolder) -> Any:
    import open_clip
    from open_clip.tokenizer import HFTokenizer

    text = open_clip.get_model_config(source.retriever)["text_cfg"]
    if not text.get("hf_tokenizer_name"):
        return open_clip.get_tokenizer(source.retriever)
    return HFTokenizer(
        str(folder.path),
        context_length=text.get("context_length", 77),
        tokenizer_mode=text.get("tokenizer_mode"),
        **text.get("tokenizer_kwargs", {}),
    )


def _unit_rows(vectors: torch.Tensor) -> list[FloatArray]:
    return list(torch.nn.functional.normalize(vectors.float(), dim=-1).cpu().numpy())
