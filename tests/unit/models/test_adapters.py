"""Many LoRA adapters on one base."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model

from ragllava.errors import ModelUnavailable
from ragllava.models.adapters import AdapterSet
from ragllava.models.generator import AnswerRequest, Generator
from ragllava.models.mllm import Mllm
from ragllava.models.reranker import Pair, Reranker
from tests.support.tiny_checkpoints import FAMILIES, load_family, noise_pictures

# peft 0.21 reads an attribute that transformers 5.23 has renamed.
pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")

TARGETS = r".*language_model.*\.(q_proj|v_proj)"


@pytest.fixture
def mllm(tmp_path: Path) -> Mllm:
    return load_family("llava", tmp_path / "model", tmp_path / "home")


@pytest.fixture
def adapters(mllm: Mllm, tmp_path: Path) -> AdapterSet:
    return AdapterSet(mllm, tmp_path / "cache")


def write_adapter(folder: Path, seed: int, rank: int = 4) -> Path:
    """A random adapter, as peft saves one after training."""
    torch.manual_seed(seed)
    network, _ = FAMILIES["llava"]()
    trained = get_peft_model(network, LoraConfig(r=rank, target_modules=TARGETS, task_type="CAUSAL_LM"))
    for name, parameter in trained.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=0.5)
    trained.save_pretrained(folder)
    return folder


def pairs() -> list[Pair]:
    return [Pair("What colour?", f"Harlow {number}", picture) for number, picture in enumerate(noise_pictures())]


def scores(reranker: Reranker) -> list[float]:
    return [score.value for score in reranker.relevance(pairs(), batch_size=3)]


def test_an_adapter_changes_scores_and_the_base_keeps_its_own(mllm: Mllm, adapters: AdapterSet, tmp_path: Path) -> None:
    base = Reranker(mllm)
    before = scores(base)
    tuned = Reranker(mllm, adapters.add("ranker", write_adapter(tmp_path / "a", seed=1)))
    assert scores(base) == before, "loaded, but not in use"
    assert max(abs(after - bare) for after, bare in zip(scores(tuned), before, strict=True)) > 0.01
    assert scores(base) == before, "exactly as before"
    assert tuned.version.startswith(f"{base.version}+ranker@")


def test_two_adapters_do_not_mix(mllm: Mllm, adapters: AdapterSet, tmp_path: Path) -> None:
    first_folder, second_folder = write_adapter(tmp_path / "a", seed=1), write_adapter(tmp_path / "b", seed=2, rank=2)
    first = Reranker(mllm, adapters.add("first", first_folder))
    alone = scores(first)
    second = Reranker(mllm, adapters.add("second", second_folder))
    of_second = scores(second)
    assert scores(first) == alone
    assert of_second != pytest.approx(alone, abs=0.01)

    other_base = load_family("llava", tmp_path / "again", tmp_path / "home")
    other_set = AdapterSet(other_base, tmp_path / "cache")
    assert scores(Reranker(other_base, other_set.add("second", second_folder))) == pytest.approx(of_second, abs=1e-6)


def test_an_adapter_computes_base_plus_scaled_product(mllm: Mllm, adapters: AdapterSet, tmp_path: Path) -> None:
    """LoRA's definition, merged by hand into the weights of a second copy."""
    from safetensors.torch import load_file

    folder = write_adapter(tmp_path / "a", seed=3)
    tuned = scores(Reranker(mllm, adapters.add("ranker", folder)))
    merged = load_family("llava", tmp_path / "again", tmp_path / "home")
    settings = json.loads((folder / "adapter_config.json").read_text())
    weights = load_file(folder / "adapter_model.safetensors")
    for name, down in weights.items():
        if name.endswith("lora_A.weight"):
            up = weights[name.replace("lora_A", "lora_B")]
            module = merged.network.get_submodule(name.removeprefix("base_model.model.").removesuffix(".lora_A.weight"))
            module.weight.data += settings["lora_alpha"] / settings["r"] * up @ down
    assert tuned == pytest.approx(scores(Reranker(merged)), abs=1e-5)


def test_reranker_and_generator_share_one_base(mllm: Mllm, adapters: AdapterSet, tmp_path: Path) -> None:
    addresses = {name: parameter.data_ptr() for name, parameter in mllm.network.named_parameters()}
    ranker = adapters.add("ranker", write_adapter(tmp_path / "a", seed=1))
    writer = adapters.add("writer", write_adapter(tmp_path / "b", seed=2))
    after = {
        name.replace(".base_layer", ""): p.data_ptr()
        for name, p in mllm.network.named_parameters()
        if "lora_" not in name
    }
    assert after == addresses, "the same memory, no copy"

    request = AnswerRequest("Which?", ("Harlow",), (noise_pictures()[0],))
    reranker, generator = Reranker(mllm, ranker), Generator(mllm, writer)
    ranked, answered = scores(reranker), generator.answer([request], max_tokens=4, with_captions=True, batch_size=1)
    plain = Generator(mllm).answer([request], max_tokens=4, with_captions=True, batch_size=1)
    assert answered != plain
    assert scores(reranker) == ranked
    assert generator.answer([request], max_tokens=4, with_captions=True, batch_size=1) == answered


def test_uses_nest_and_end_with_an_error(mllm: Mllm, adapters: AdapterSet, tmp_path: Path) -> None:
    base = Reranker(mllm)
    before = scores(base)
    adapters.add("ranker", write_adapter(tmp_path / "a", seed=1))
    with pytest.raises(ZeroDivisionError), adapters.use("ranker"):
        tuned = scores(base)
        with adapters.use(None):
            assert scores(base) == before
        assert scores(base) == tuned
        raise ZeroDivisionError
    assert tuned != pytest.approx(before, abs=0.01)
    assert scores(base) == before


def test_unknown_and_repeated_names_are_errors(adapters: AdapterSet, tmp_path: Path) -> None:
    with pytest.raises(ModelUnavailable, match="no adapter named 'ranker'"), adapters.use("ranker"):
        pass
    folder = write_adapter(tmp_path / "a", seed=1)
    adapters.add("ranker", folder)
    with pytest.raises(ModelUnavailable, match="loaded already"):
        adapters.add("ranker", folder)


def test_an_adapter_in_use_cannot_be_removed(mllm: Mllm, adapters: AdapterSet, tmp_path: Path) -> None:
    bare = scores(Reranker(mllm))
    first = Reranker(mllm, adapters.add("first", write_adapter(tmp_path / "a", seed=1)))
    adapters.add("second", write_adapter(tmp_path / "b", seed=2))
    alone = scores(first)
    with adapters.use("second"), pytest.raises(ModelUnavailable, match="not loaded, or in use"):
        adapters.remove("second")
    adapters.remove("second")
    assert scores(first) == alone
    with pytest.raises(ModelUnavailable, match="'second' cannot be evicted"):
        adapters.remove("second")
    adapters.remove("first")
    assert scores(Reranker(mllm)) == bare


@pytest.mark.parametrize("damage", ["rank", "targets", "weights", "pickle"])
def test_an_adapter_that_does_not_fit_leaves_the_base_as_it_was(
    mllm: Mllm, adapters: AdapterSet, tmp_path: Path, damage: str
) -> None:
    base = Reranker(mllm)
    before = scores(base)
    folder = write_adapter(tmp_path / "a", seed=1)
    config = json.loads((folder / "adapter_config.json").read_text())
    if damage == "rank":
        config["r"] = 5
    elif damage == "targets":
        config["target_modules"] = r".*language_model.*\.(k_proj|q_proj|v_proj)"
    elif damage == "weights":
        (folder / "adapter_model.safetensors").write_bytes(b"short")
    else:
        (folder / "adapter_model.bin").write_bytes(b"")
    (folder / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(ModelUnavailable):
        adapters.add("ranker", folder)
    assert scores(base) == before
    adapters.add("ranker", write_adapter(tmp_path / "b", seed=1))
    assert scores(base) == before
