"""LoRA fine-tuning on tiny checkpoints of the real families: it learns, and it resumes."""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from PIL import Image

from ragllava.errors import UsageError
from ragllava.models.adapters import AdapterSet
from ragllava.models.device import plan_device
from ragllava.models.generator import AnswerRequest, Generator
from ragllava.models.loading import load_mllm
from ragllava.models.mllm import Mllm
from ragllava.models.profiles import LOCAL_DIR, Profile, RetrieverSource
from ragllava.models.reranker import Pair, Reranker
from ragllava.records import Role
from ragllava.settings import Settings
from ragllava.training.data.examples import AnswerExample
from ragllava.training.finetune.checkpoints import Checkpoint, last_checkpoint, seal_checkpoint
from ragllava.training.finetune.lora import linear_layers
from ragllava.training.finetune.report import StepRecord, TrainingReport, read_report, write_report
from ragllava.training.finetune.run import train
from ragllava.whole_files import MANIFEST
from tests.support.tiny_checkpoints import FAMILIES, load_family, save_family
from tests.support.toy_training import PICTURES, configured, examples_for, losses, open_picture


@pytest.fixture
def llava(tmp_path: Path) -> Mllm:
    return load_family("llava", tmp_path / "model", tmp_path / "home")


@pytest.mark.parametrize("role", list(Role))
@pytest.mark.parametrize("family", list(FAMILIES))
def test_a_few_steps_lower_the_loss_of_every_family(tmp_path: Path, family: str, role: Role) -> None:
    mllm = load_family(family, tmp_path / "model", tmp_path / "home")
    request = AnswerRequest("Which 0?", ("Harlow",), (PICTURES[0],))
    before = Generator(mllm).answer([request], max_tokens=3, with_captions=True, batch_size=1)
    config = configured(
        role,
        tmp_path / "tuned",
        max_steps=8,
        token_weighting=role is Role.GENERATOR,
        gradient_checkpointing=role is Role.RERANKER,
        train_vision=role is Role.RERANKER,
    )
    report = train(config, examples_for(role), mllm, open_picture)
    assert len(report.steps) == 8
    assert sum(losses(report)[-2:]) < 0.8 * sum(losses(report)[:2])
    assert Generator(mllm).answer([request], max_tokens=3, with_captions=True, batch_size=1) == before, "as it was"
    adapter = AdapterSet(mllm, tmp_path / "cache").add("tuned", config.result / "adapter")
    after = Generator(mllm, adapter).answer([request], max_tokens=3, with_captions=True, batch_size=1)
    assert after[0].confidence != pytest.approx(before[0].confidence, abs=1e-3)


@pytest.mark.parametrize("family", list(FAMILIES))
def test_only_the_language_models_linear_layers_are_trained(family: str) -> None:
    import re

    network, _ = FAMILIES[family]()
    matched = {name for name, _ in network.named_modules() if re.fullmatch(linear_layers(network), name)}
    linear = {name for name, module in network.named_modules() if isinstance(module, torch.nn.Linear)}
    assert matched <= linear
    # Two layers of seven each: q, k, v, o, gate, up, down.
    assert len(matched) == 14
    assert not any(word in name for name in matched for word in ("vision", "visual", "projector", "connector", "head."))
    pattern = linear_layers(network, with_vision=True)
    seeing = {name for name, _ in network.named_modules() if re.fullmatch(pattern, name)} - matched
    head = {name for name, module in network.named_modules() if module is network.get_output_embeddings()}
    assert seeing == linear - matched - head
    assert len(seeing) >= 8
    alone = linear_layers(network, with_projector=True)
    projector = {name for name, _ in network.named_modules() if re.fullmatch(alone, name)} - matched
    assert 1 <= len(projector) < len(seeing)
    assert projector < seeing
    assert not any("attn" in name or "attention" in name for name in projector)


def test_the_projector_learns_at_its_own_rate(llava: Mllm, tmp_path: Path) -> None:
    """With a rate near 0 its layers stay as they began, while the language model's learn."""
    from safetensors.torch import load_file

    moved = {}
    for name, rate in (("still", 1e-12), ("learns", 1e-2)):
        config = configured(Role.RERANKER, tmp_path / name, max_steps=4, projector_learning_rate=rate, weight_decay=0.0)
        train(config, examples_for(Role.RERANKER), llava, open_picture)
        weights = load_file(config.result / "adapter" / "adapter_model.safetensors")
        # The second factor of a LoRA layer begins with zeros.
        for part in ("projector", "language_model"):
            second = [value for key, value in weights.items() if part in key and "lora_B" in key]
            moved[name, part] = max(float(value.abs().max()) for value in second)
    assert moved["still", "projector"] < 1e-9 < moved["learns", "projector"]
    assert moved["still", "language_model"] > 1e-4


def test_a_tuned_reranker_tells_right_from_wrong(llava: Mllm, tmp_path: Path) -> None:
    """From examples to scores through the classes that answer questions: prompt and answer tokens agree."""
    config = configured(Role.RERANKER, tmp_path / "tuned", max_steps=60, global_batch=12, micro_batch=6)
    train(config, examples_for(Role.RERANKER, 12), llava, open_picture)
    adapter = AdapterSet(llava, tmp_path / "cache").add("tuned", config.result / "adapter")
    pairs = [Pair("How many 0?", "Harlow", picture) for picture in PICTURES]
    scores = [score.value for score in Reranker(llava, adapter).relevance(pairs, batch_size=6)]
    assert min(scores[:3]) > 0.8
    assert max(scores[3:]) < 0.2


def test_a_tuned_generator_gives_the_answers(llava: Mllm, tmp_path: Path) -> None:
    config = configured(Role.GENERATOR, tmp_path / "tuned", max_steps=60, global_batch=6, micro_batch=6)
    examples = [AnswerExample("Which 0?", ("Harlow",), (str(n),), "red" if n < 3 else "3 windows") for n in range(6)]
    train(config, examples, llava, open_picture)
    adapter = AdapterSet(llava, tmp_path / "cache").add("tuned", config.result / "adapter")
    requests = [AnswerRequest("Which 0?", ("Harlow",), (picture,)) for picture in PICTURES]
    found = Generator(llava, adapter).answer(requests, max_tokens=12, with_captions=True, batch_size=6)
    assert [answer.text for answer in found] == ["red"] * 3 + ["3 windows"] * 3
    assert all(answer.note is None for answer in found), "each ended by itself"


def test_micro_batches_and_checkpointing_change_memory_not_the_result(llava: Mllm, tmp_path: Path) -> None:
    curves = []
    for number, (micro, checkpointing) in enumerate([(8, False), (4, False), (2, True)]):
        config = configured(
            Role.RERANKER, tmp_path / str(number), max_steps=4, micro_batch=micro, gradient_checkpointing=checkpointing
        )
        curves.append(losses(train(config, examples_for(Role.RERANKER), llava, open_picture)))
    assert curves[1] == pytest.approx(curves[0], abs=1e-4)
    assert curves[2] == pytest.approx(curves[0], abs=1e-4)


def test_a_base_in_half_precision_is_trained_in_mixed_precision(tmp_path: Path) -> None:
    """As on a GPU: the base stays in bfloat16, the adapter is learned and kept in float32."""
    from safetensors.torch import load_file

    save_family("llava", tmp_path / "model")
    settings = Settings(home=tmp_path / "home", device="cpu", dtype="bfloat16")
    profile = Profile("tiny", RetrieverSource(f"{LOCAL_DIR}{tmp_path}"), str(tmp_path / "model"))
    mllm = load_mllm(profile, plan_device(settings), settings)
    config = configured(Role.GENERATOR, tmp_path / "tuned", max_steps=8, token_weighting=True)
    report = train(config, examples_for(Role.GENERATOR), mllm, open_picture)
    assert sum(losses(report)[-2:]) < 0.8 * sum(losses(report)[:2])
    weights = load_file(config.result / "adapter" / "adapter_model.safetensors")
    assert {tensor.dtype for tensor in weights.values()} == {torch.float32}
    assert mllm.network.dtype is torch.bfloat16


def test_the_learning_rate_rises_and_falls_along_a_cosine(llava: Mllm, tmp_path: Path) -> None:
    config = configured(Role.RERANKER, tmp_path / "tuned", max_steps=10, warmup_share=0.2)
    report = train(config, examples_for(Role.RERANKER), llava, open_picture)
    expected = [0, 0.5] + [(1 + math.cos(math.pi * step / 8)) / 2 for step in range(8)]
    assert [record.learning_rate / 0.02 for record in report.steps] == pytest.approx(expected)


def test_the_report_says_what_was_inherited_and_what_changed(llava: Mllm, tmp_path: Path) -> None:
    config = configured(Role.RERANKER, tmp_path / "tuned", max_steps=2)
    report = train(config, examples_for(Role.RERANKER), llava, open_picture)
    assert report.settings["rank"] == {"value": 8, "origin": "overridden"}
    assert report.settings["alpha"] == {"value": 16, "origin": "overridden"}
    assert report.settings["warmup_share"] == {"value": 0.03, "origin": "mini"}
    assert report.base == llava.version
    assert report == read_report(config.result)
    assert (config.result / "curves.svg").read_text().startswith("<svg")
    adapter = json.loads((config.result / "adapter" / "adapter_config.json").read_text())
    assert adapter["task_type"] == "CAUSAL_LM"
    assert str(tmp_path) not in json.dumps(adapter), "no path of this machine travels with an adapter"


def test_a_finished_training_is_not_repeated_and_another_is_told(llava: Mllm, tmp_path: Path) -> None:
    config = configured(Role.RERANKER, tmp_path / "tuned", max_steps=2)
    report = train(config, examples_for(Role.RERANKER), llava, open_picture)
    assert not config.work.exists()

    def unreadable(image: str) -> Image.Image:
        raise AssertionError(f"{image} must not be opened again")

    assert train(config, examples_for(Role.RERANKER), llava, unreadable) == report
    with pytest.raises(UsageError, match="not the result of this training"):
        train(config, examples_for(Role.RERANKER)[1:], llava, open_picture)
    weights = config.result / "adapter" / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(UsageError, match="not the result of this training"):
        train(config, examples_for(Role.RERANKER), llava, open_picture)


def test_checkpoints_are_handed_over_whole_and_one_of_another_training_is_told(llava: Mllm, tmp_path: Path) -> None:
    seen: list[tuple[str, bool]] = []
    config = configured(Role.RERANKER, tmp_path / "tuned", max_steps=6, steps_per_checkpoint=2)

    def hand_over(folder: Path) -> None:
        seen.append((folder.name, (folder / MANIFEST).exists()))
        if len(seen) == 2:
            raise ConnectionError("the object store is gone")

    with pytest.raises(ConnectionError):
        train(config, examples_for(Role.RERANKER), llava, open_picture, on_checkpoint=hand_over)
    assert seen == [("checkpoint-2", True), ("checkpoint-4", True)]
    assert not config.result.exists()
    with pytest.raises(UsageError, match="a training with other data, settings or base model"):
        train(config, examples_for(Role.RERANKER)[1:], llava, open_picture)
    with_less_memory = configured(
        Role.RERANKER, config.result, max_steps=6, steps_per_checkpoint=2, micro_batch=2, gradient_checkpointing=True
    )
    report = train(with_less_memory, examples_for(Role.RERANKER), llava, open_picture, on_checkpoint=hand_over)
    assert seen[2:] == [("checkpoint-6", True)], "went on from step 4"
    straight = configured(Role.RERANKER, tmp_path / "straight", max_steps=6)
    assert losses(report) == pytest.approx(
        losses(train(straight, examples_for(Role.RERANKER), llava, open_picture)), abs=1e-5
    )


def test_a_training_killed_after_its_last_step_only_finishes(llava: Mllm, tmp_path: Path) -> None:
    config = configured(Role.RERANKER, tmp_path / "tuned", max_steps=3, steps_per_checkpoint=3)

    def die(folder: Path) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(config, examples_for(Role.RERANKER), llava, open_picture, on_checkpoint=die)
    report = train(config, examples_for(Role.RERANKER), llava, open_picture, on_checkpoint=die)
    assert [record.step for record in report.steps] == [1, 2, 3]


def test_torn_checkpoints_do_not_count(tmp_path: Path) -> None:
    def checkpoint(step: int) -> Path:
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        (folder / "weights").write_bytes(b"0123456789")
        seal_checkpoint(Checkpoint(folder, "this", step, 30, 1.5))
        return folder

    checkpoint(5)
    cut, unsealed, sealed_half = checkpoint(10), checkpoint(15), checkpoint(20)
    (cut / "weights").write_bytes(b"01234")
    (unsealed / MANIFEST).unlink()
    (sealed_half / MANIFEST).write_text('{"fingerprint": "this", ')
    found = last_checkpoint(tmp_path, "this")
    assert found is not None
    assert found.step == 5
    assert not found.finished
    assert last_checkpoint(tmp_path / "nowhere", "this") is None


def test_examples_of_another_role_or_none_are_refused(llava: Mllm, tmp_path: Path) -> None:
    config = configured(Role.RERANKER, tmp_path / "tuned")
    with pytest.raises(UsageError, match="not made for the reranker"):
        train(config, examples_for(Role.GENERATOR), llava, open_picture)
    with pytest.raises(UsageError, match="no examples"):
        train(config, [], llava, open_picture)


def test_a_training_that_diverges_ends_with_the_step_and_what_to_change(llava: Mllm, tmp_path: Path) -> None:
    config = configured(Role.RERANKER, tmp_path / "tuned", max_steps=8, learning_rate=1e30)
    with pytest.raises(UsageError, match=r"diverged at step \d: its \w+ is (nan|inf); lower learning_rate=1e"):
        train(config, examples_for(Role.RERANKER), llava, open_picture)
    assert not config.result.exists()


def test_a_gradient_that_is_no_number_is_kept_as_none(tmp_path: Path) -> None:
    """As the first steps in float16 have it, whose loss is scaled too high at first; JSON and Postgres know no NaN."""
    steps = tuple(StepRecord(step, 1.0, 1e-3, norm, 1.0) for step, norm in enumerate((math.inf, math.nan, 0.5), 1))
    report = TrainingReport(Role.RERANKER, "tiny@0", "ab", 9, 1.0, {}, steps)
    write_report(report, tmp_path)

    def forbidden(name: str) -> None:
        raise AssertionError(f"{name} is no JSON")

    json.loads((tmp_path / "report.json").read_text(), parse_constant=forbidden)
    assert [record.gradient_norm for record in read_report(tmp_path).steps] == [None, None, 0.5]
    (tmp_path / "report.json").write_text(json.dumps(asdict(report)))
    assert [record.gradient_norm for record in read_report(tmp_path).steps] == [None, None, 0.5], "one of before"
