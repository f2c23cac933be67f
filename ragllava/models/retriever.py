"""The coarse retriever: open_clip's two towers, one space for pictures and questions (docs/method.md 1)."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from safetensors import SafetensorError

from ragllava.errors import ModelUnavailable
from ragllava.models.checks import check_model_folder, model_version
from ragllava.models.device import DevicePlan, in_batches
from ragllava.models.profiles import LOCAL_DIR, ModelFolder, Profile, find_model, retriever_reference
from ragllava.settings import Settings

log = logging.getLogger(__name__)

FloatArray = npt.NDArray[np.float32]
Pixels = torch.Tensor  # (3, H, W) float32: one picture as the image tower takes it
_WEIGHTS = "open_clip_model.safetensors"
_PRECISIONS = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}
_TEXTS_PER_BATCH = 256


class _Tokenizer(Protocol):
    def __call__(self, texts: list[str]) -> torch.Tensor: ...


class Retriever:
    """Embeds pictures and texts into the same space.

    `version` names the weights, `dim` is the length of a vector, `image_size` the side in pixels that the image
    tower sees: a picture whose shorter side is that long loses nothing.
    """

    def __init__(self, network: Any, preprocess: Any, tokenizer: _Tokenizer, version: str, plan: DevicePlan) -> None:
        """`preprocess` turns one RGB picture into a (3, H, W) tensor; `tokenizer` cuts to the context length."""
        self.version = version
        self.image_size: int = int(max(_pair(network.visual.image_size)))
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
        """The half of `embed_images` that needs no network, of one picture (RGB). Any number of threads may call it."""
        pixels: Pixels = self._preprocess(picture)
        return pixels

    def embed_pixels(self, pixels: Sequence[Pixels], batch_size: int) -> FloatArray:
        """The other half: prepared pictures → (N, dim) float32, rows of length 1, in input order."""
        return self._stack(in_batches(pixels, batch_size, self._embed_pixels))

    def embed_texts(self, texts: Sequence[str]) -> FloatArray:
        """Texts → (N, dim) float32, rows of length 1, in input order. A text beyond the context is cut at its end."""
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
    if not profile.retriever.startswith(LOCAL_DIR) and profile.retriever_repository is None:
        profile = replace(profile, retriever_repository=_known_repository(profile))
    folder = find_model(retriever_reference(profile), profile, settings)
    check_model_folder(folder.path)
    version = model_version(folder, settings.home / "cache")
    try:
        if profile.retriever.startswith(LOCAL_DIR):
            parts = _load_local(folder, plan)
        else:
            parts = _load_named(profile, folder, plan)
    except (RuntimeError, ValueError, OSError, KeyError, TypeError, SafetensorError) as error:
        raise ModelUnavailable(f"the retriever in {folder.path} cannot be loaded: {error}") from error
    log.info("retriever loaded: %s", version, extra={"action": "retriever_loaded"})
    return Retriever(*parts, version=version, plan=plan)


def _load_local(folder: ModelFolder, plan: DevicePlan) -> tuple[Any, Any, _Tokenizer]:
    import open_clip

    name = f"{LOCAL_DIR}{folder.path}"
    network, preprocess = open_clip.create_model_from_pretrained(
        name, precision=_PRECISIONS[plan.dtype], device=plan.device
    )
    return network.eval(), preprocess, open_clip.get_tokenizer(name)


def _load_named(profile: Profile, folder: ModelFolder, plan: DevicePlan) -> tuple[Any, Any, _Tokenizer]:
    """An architecture that open_clip knows by name, with the weights and the picture preparation of a tag."""
    import open_clip

    tag = _pretrained(profile)
    network, preprocess = open_clip.create_model_from_pretrained(
        profile.retriever,
        pretrained=str(folder.path / _WEIGHTS),
        precision=_PRECISIONS[plan.dtype],
        device=plan.device,
        image_mean=tag["mean"],
        image_std=tag["std"],
        image_interpolation=tag["interpolation"],
        image_resize_mode=tag["resize_mode"],
    )
    return network.eval(), preprocess, _named_tokenizer(profile, folder)


def _pretrained(profile: Profile) -> dict[str, Any]:
    """What open_clip knows of the weights that the profile names."""
    import open_clip

    tag: dict[str, Any] = open_clip.get_pretrained_cfg(profile.retriever, profile.retriever_tag or "")
    if not tag:
        known = ", ".join(open_clip.list_pretrained_tags_by_model(profile.retriever)) or "none"
        raise ModelUnavailable(
            f"open_clip knows no weights {profile.retriever_tag!r} of {profile.retriever!r}; its tags are: {known}"
        )
    return tag


def _known_repository(profile: Profile) -> str:
    """The hub repository of these weights; open_clip writes it with a slash and perhaps a file at its end."""
    repository = "/".join(str(_pretrained(profile).get("hf_hub") or "").split("/")[:2])
    if not repository:
        raise ModelUnavailable(
            f"open_clip names no hub repository for {profile.retriever}/{profile.retriever_tag}: "
            "put the weights into a folder with open_clip_config.json and give that folder"
        )
    return repository


def _named_tokenizer(profile: Profile, folder: ModelFolder) -> _Tokenizer:
    import open_clip
    from open_clip.tokenizer import HFTokenizer

    text = open_clip.get_model_config(profile.retriever)["text_cfg"]
    if not text.get("hf_tokenizer_name"):
        named: _Tokenizer = open_clip.get_tokenizer(profile.retriever)
        return named
    tokenizer: _Tokenizer = HFTokenizer(
        str(folder.path),
        context_length=text.get("context_length", 77),
        tokenizer_mode=text.get("tokenizer_mode"),
        **text.get("tokenizer_kwargs", {}),
    )
    return tokenizer


def _unit_rows(vectors: torch.Tensor) -> list[FloatArray]:
    unit = torch.nn.functional.normalize(vectors.float(), dim=-1).cpu().numpy()
    return list(unit)


def _pair(size: int | tuple[int, int]) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else size
