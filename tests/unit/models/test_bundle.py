"""Reranker and generator on one base, each with its own adapter."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ragllava.errors import ModelUnavailable
from ragllava.models.bundle import ModelBundle
from ragllava.models.generator import AnswerRequest, GeneratedAnswer
from ragllava.models.reranker import Pair
from ragllava.records import Role
from ragllava.settings import Settings
from tests.support.random_adapters import write_random_adapter
from tests.support.tiny_checkpoints import load_folder, noise_pictures, save_family


@pytest.fixture
def model_folder(tmp_path: Path) -> Path:
    save_family("llava", tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def bundle(model_folder: Path, tmp_path: Path) -> ModelBundle:
    profile = tmp_path / "tiny.json"
    profile.write_text(json.dumps({"retriever": "local-dir:none", "mllm": str(model_folder)}))
    return ModelBundle(Settings(home=tmp_path / "home", profile=str(profile), device="cpu"))


def adapter(bundle: ModelBundle, folder: Path, seed: int) -> Path:
    return write_random_adapter(folder, bundle.reranker.mllm.network, seed)


def scores(bundle: ModelBundle) -> list[float]:
    pairs = [Pair("What colour?", f"Harlow {number}", picture) for number, picture in enumerate(noise_pictures())]
    return [score.value for score in bundle.reranker.relevance(pairs, batch_size=3)]


def answer(bundle: ModelBundle) -> GeneratedAnswer:
    request = AnswerRequest("Which?", ("Harlow",), (noise_pictures()[0],))
    return bundle.generator.answer([request], max_tokens=4, with_captions=True, batch_size=1)[0]


def test_each_role_computes_with_its_own_adapter(bundle: ModelBundle, tmp_path: Path) -> None:
    bare_scores, bare_answer = scores(bundle), answer(bundle)
    bundle.apply_adapter(Role.RERANKER, "ranker-1", adapter(bundle, tmp_path / "a", seed=1))
    tuned_scores = scores(bundle)
    assert max(abs(tuned - bare) for tuned, bare in zip(tuned_scores, bare_scores, strict=True)) > 0.01
    assert answer(bundle) == bare_answer, "the generator still computes with the base alone"

    bundle.apply_adapter(Role.GENERATOR, "writer-1", adapter(bundle, tmp_path / "b", seed=2))
    assert answer(bundle) != bare_answer
    assert scores(bundle) == tuned_scores
    assert (bundle.reranker.version, bundle.generator.version) == ("ranker-1", "writer-1")
    assert bundle.reranker.mllm is bundle.generator.mllm, "one base in memory"


def test_without_an_adapter_nothing_differs_from_a_base_that_never_had_one(
    bundle: ModelBundle, model_folder: Path, tmp_path: Path
) -> None:
    before = scores(bundle), answer(bundle)
    weights = sum(parameter.numel() for parameter in bundle.reranker.mllm.network.parameters())
    folder = adapter(bundle, tmp_path / "a", seed=1)
    for role in Role:
        bundle.apply_adapter(role, "tuned", folder)
    assert sum(parameter.numel() for parameter in bundle.reranker.mllm.network.parameters()) > weights
    for role in Role:
        bundle.apply_adapter(role, None, None)
    assert (scores(bundle), answer(bundle)) == before
    network = bundle.reranker.mllm.network
    assert [name for name, _ in network.named_parameters()] == [
        name for name, _ in load_folder(model_folder, tmp_path / "home").network.named_parameters()
    ]
    assert sum(parameter.numel() for parameter in network.parameters()) == weights
    assert bundle.reranker.version == bundle.base_version


def test_an_adapter_that_comes_back_computes_as_before(bundle: ModelBundle, tmp_path: Path) -> None:
    first, second = adapter(bundle, tmp_path / "a", seed=1), adapter(bundle, tmp_path / "b", seed=2)
    bundle.apply_adapter(Role.GENERATOR, "writer", second)
    written = answer(bundle)
    bundle.apply_adapter(Role.RERANKER, "first", first)
    of_first = scores(bundle)
    bundle.apply_adapter(Role.RERANKER, "second", second)
    of_second = scores(bundle)
    assert of_second != pytest.approx(of_first, abs=0.01)
    bundle.apply_adapter(Role.RERANKER, "first", first)
    assert scores(bundle) == of_first
    assert answer(bundle) == written


def test_adapters_that_no_role_uses_are_evicted(bundle: ModelBundle, tmp_path: Path) -> None:
    first, second = adapter(bundle, tmp_path / "a", seed=1), adapter(bundle, tmp_path / "b", seed=2)

    def size() -> int:
        return sum(parameter.numel() for parameter in bundle.reranker.mllm.network.parameters())

    bare = size()
    bundle.apply_adapter(Role.RERANKER, "first", first)
    with_first = size()
    bundle.apply_adapter(Role.GENERATOR, "first for the generator", first)
    assert size() == with_first > bare, "the same bytes are loaded once"
    bundle.apply_adapter(Role.GENERATOR, "second", second)
    assert size() - bare == 2 * (with_first - bare)
    bundle.apply_adapter(Role.RERANKER, "second", second)
    assert size() == with_first
    bundle.apply_adapter(Role.RERANKER, "base", None)
    bundle.apply_adapter(Role.GENERATOR, "base", None)
    assert size() == bare


def test_a_base_can_have_a_registered_name(bundle: ModelBundle) -> None:
    bare = scores(bundle)
    bundle.apply_adapter(Role.RERANKER, "the base", None)
    assert bundle.reranker.version == "the base"
    assert bundle.generator.version == bundle.base_version == bundle.reranker.mllm.version
    assert scores(bundle) == bare


def test_other_bytes_in_the_same_folder_are_another_adapter(bundle: ModelBundle, tmp_path: Path) -> None:
    folder = adapter(bundle, tmp_path / "a", seed=1)
    bundle.apply_adapter(Role.RERANKER, "tuned", folder)
    of_first = scores(bundle)
    second = adapter(bundle, tmp_path / "b", seed=2)
    (second / "adapter_model.safetensors").replace(folder / "adapter_model.safetensors")
    bundle.apply_adapter(Role.RERANKER, "tuned", folder)
    assert scores(bundle) != pytest.approx(of_first, abs=0.01)


def test_an_adapter_that_does_not_fit_leaves_the_role_as_it_was(bundle: ModelBundle, tmp_path: Path) -> None:
    bundle.apply_adapter(Role.RERANKER, "tuned", adapter(bundle, tmp_path / "a", seed=1))
    before = scores(bundle)
    damaged = adapter(bundle, tmp_path / "b", seed=2)
    (damaged / "adapter_model.safetensors").write_bytes(b"short")
    with pytest.raises(ModelUnavailable, match="does not fit"):
        bundle.apply_adapter(Role.RERANKER, "damaged", damaged)
    assert bundle.reranker.version == "tuned"
    assert scores(bundle) == before


def test_the_base_has_its_version_before_it_is_loaded(bundle: ModelBundle) -> None:
    version = bundle.base_version
    bundle.apply_adapter(Role.RERANKER, version, None)
    assert "_mllm" not in vars(bundle), "nothing was loaded"
    assert version == bundle.reranker.mllm.version
