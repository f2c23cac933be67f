"""The retriever against open_clip used by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from open_clip.pretrained import _PRETRAINED
from PIL import Image
from safetensors.torch import save_file

from ragllava.errors import ModelUnavailable
from ragllava.models.device import plan_device
from ragllava.models.profiles import LOCAL_DIR, Profile, RetrieverSource, get_profile
from ragllava.models.retriever import Retriever, load_retriever
from ragllava.settings import Settings
from tests.support.tiny_checkpoints import noise_pictures


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    return Settings(home=tmp_path_factory.mktemp("home"), device="cpu")


@pytest.fixture(scope="module")
def retriever(settings: Settings) -> Retriever:
    return load_retriever(get_profile(settings), plan_device(settings), settings)


@pytest.fixture(scope="module")
def by_hand(settings: Settings) -> tuple[Any, Any, Any]:
    name = get_profile(settings).retriever.retriever
    network, _, preprocess = open_clip.create_model_and_transforms(name)
    return network.eval(), preprocess, open_clip.get_tokenizer(name)


def test_pictures_are_embedded_as_open_clip_does(retriever: Retriever, by_hand: tuple[Any, Any, Any]) -> None:
    network, preprocess, _ = by_hand
    pictures = noise_pictures()
    vectors = retriever.embed_images(pictures, batch_size=4)
    with torch.no_grad():
        wanted = torch.cat([network.encode_image(preprocess(picture)[None]) for picture in pictures])
    wanted /= wanted.norm(dim=1, keepdim=True)
    assert vectors.dtype == np.float32
    assert vectors.shape == (len(pictures), retriever.dim)
    np.testing.assert_allclose(vectors, wanted.numpy(), atol=1e-5)


def test_texts_are_embedded_as_open_clip_does(retriever: Retriever, by_hand: tuple[Any, Any, Any]) -> None:
    network, _, tokenizer = by_hand
    texts = ["What colour is the tower?", "", "Does a dog stand beside the barn of Ansel?"]
    with torch.no_grad():
        wanted = network.encode_text(tokenizer(texts), normalize=True)
    np.testing.assert_allclose(retriever.embed_texts(texts), wanted.numpy(), atol=1e-5)


def test_the_batch_size_changes_nothing(retriever: Retriever) -> None:
    pictures = noise_pictures()
    np.testing.assert_allclose(
        retriever.embed_images(pictures, batch_size=1), retriever.embed_images(pictures, batch_size=99), atol=1e-5
    )


def test_nothing_gives_no_rows(retriever: Retriever) -> None:
    assert retriever.embed_images([], batch_size=4).shape == (0, retriever.dim)
    assert retriever.embed_texts([]).shape == (0, retriever.dim)


def test_a_long_text_is_cut_at_its_end(retriever: Retriever) -> None:
    """What lies beyond the context cannot matter; what lies within it must, so the end token has to be kept."""
    start = "the red lighthouse of Harlow "
    long = retriever.embed_texts(
        [start + "by the sea " * 50, start + "by the sea " * 500, "a dog " + "by the sea " * 50]
    )
    np.testing.assert_allclose(long[0], long[1], atol=1e-6)
    assert float(long[0] @ long[2]) < 0.999


def test_versions_and_sizes(retriever: Retriever) -> None:
    assert retriever.version.startswith("mini-clip@")
    assert retriever.image_size == 112
    assert retriever.dim == 128


def test_a_named_architecture_takes_weights_and_preparation_of_its_tag(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = {
        "embed_dim": 16,
        "vision_cfg": {"image_size": 32, "patch_size": 16, "width": 32, "layers": 1, "head_width": 16},
        "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
    }
    (tmp_path / "tiny-test.json").write_text(json.dumps(config))
    open_clip.add_model_config(tmp_path / "tiny-test.json")
    tag = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5), "interpolation": "bicubic", "resize_mode": "squash"}
    monkeypatch.setitem(_PRETRAINED, "tiny-test", {"ours": tag})
    torch.manual_seed(1)
    network = open_clip.create_model("tiny-test").eval()
    folder = tmp_path / "owner" / "tiny"
    folder.mkdir(parents=True)
    save_file(network.state_dict(), folder / "open_clip_model.safetensors")
    settings = settings.model_copy(update={"models_dir": tmp_path})
    profile = Profile("own", RetrieverSource("tiny-test", "ours", "owner/tiny"), "unused")

    loaded = load_retriever(profile, plan_device(settings), settings)
    picture = Image.new("RGB", (64, 32), (255, 0, 0))
    # mean and deviation 0.5 put red at (1, -1, -1)
    pixels = torch.tensor([1.0, -1.0, -1.0])[None, :, None, None].expand(1, 3, 32, 32)
    with torch.no_grad():
        wanted = network.encode_image(pixels, normalize=True)
    np.testing.assert_allclose(loaded.embed_images([picture], 1), wanted.numpy(), atol=1e-5)
    assert loaded.version.startswith("owner/tiny@")

    wrong_tag = Profile("own", RetrieverSource("tiny-test", "theirs", "owner/tiny"), "unused")
    with pytest.raises(ModelUnavailable, match="its tags are: ours"):
        load_retriever(wrong_tag, plan_device(settings), settings)


def test_damaged_weights_are_told(settings: Settings, tmp_path: Path) -> None:
    (tmp_path / "open_clip_config.json").write_text('{"model_cfg": {"embed_dim": 8}}')
    (tmp_path / "open_clip_model.safetensors").write_bytes(b"not weights")
    profile = Profile("own", RetrieverSource(f"{LOCAL_DIR}{tmp_path}"), "unused")
    with pytest.raises(ModelUnavailable, match="cannot be loaded"):
        load_retriever(profile, plan_device(settings), settings)
