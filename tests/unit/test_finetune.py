"""LoRA fine-tuning on tiny checkpoints of the real families: it learns, it resumes, two processes do as one."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from ragllava.errors import SettingsError, UsageError
from ragllava.models.adapters import AdapterSet
from ragllava.models.device import plan_device
from ragllava.models.generator import AnswerRequest, Generator
from ragllava.models.mllm import Mllm, load_mllm
from ragllava.models.profiles import LOCAL_DIR, Profile
from ragllava.models.reranker import Pair, Reranker
from ragllava.records import Role
from ragllava.settings import Settings
from ragllava.training.checkpoints import MANIFEST, Checkpoint, last_checkpoint, seal_checkpoint
from ragllava.training.datasets import (
    DatasetOptions,
    LabelledQuestion,
    Retrieved,
    build_answer_dataset,
    build_rank_dataset,
    write_dataset,
)
from ragllava.training.examples import AnswerExample, Evidence, Example, RankExample
from ragllava.training.finetune import FinetuneConfig, main, train
from ragllava.training.lora import linear_layers
from ragllava.training.presets import accumulation_steps, choose_settings
from ragllava.training.report import TrainingReport, read_report
from tests.families import FAMILIES, load_family, load_folder, noise_pictures, save_family

PICTURES = noise_pictures()
SMALL = {"rank": 8, "alpha": 16, "global_batch": 8, "micro_batch": 4, "learning_rate": 0.02}
PROCESS_DEADLINE_S = 180


def open_picture(image: str) -> Image.Image:
    return PICTURES[int(image.removesuffix(".png"))]


def examples_for(role: Role, count: int = 16) -> list[Example]:
    """Pictures 0 to 2 are relevant; answers follow from the first picture."""
    if role is Role.RERANKER:
        return [RankExample(f"How many {n // 6}?", "Harlow", str(n % 6), n % 6 < 3, "labelled") for n in range(count)]
    return [
        AnswerExample(
            f"Which {n // 6}?",
            ("Harlow",) * (1 + n % 2),
            tuple(str((n + place) % 6) for place in range(1 + n % 2)),
            "red" if n % 6 < 3 else "3 windows",
        )
        for n in range(count)
    ]


def configured(role: Role, result: Path, **changes: Any) -> FinetuneConfig:
    return FinetuneConfig(role, choose_settings("mini", {**SMALL, **changes}), result)


def losses(report: TrainingReport) -> list[float]:
    return [record.loss for record in report.steps]


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
    profile = Profile(name="tiny", retriever=f"{LOCAL_DIR}{tmp_path}", mllm=str(tmp_path / "model"))
    mllm = load_mllm(profile, plan_device(settings), settings)
    config = configured(Role.GENERATOR, tmp_path / "tuned", max_steps=8, token_weighting=True)
    report = train(config, examples_for(Role.GENERATOR), mllm, open_picture)
    assert sum(losses(report)[-2:]) < 0.8 * sum(losses(report)[:2])
    weights = load_file(config.result / "adapter" / "adapter_model.safetensors")
    assert {tensor.dtype for tensor in weights.values()} == {torch.float32}
    assert mllm.network.dtype is torch.bfloat16


def test_the_learning_rate_rises_and_falls_along_a_cosine(llava: Mllm, tmp_path: Path) -> None:
    import math

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


@pytest.mark.parametrize(
    ("preset", "overrides", "message"),
    [
        ("llava-2", {}, "no training preset named 'llava-2'"),
        ("mini", {"rnak": 8}, "unknown training setting 'rnak'"),
        ("mini", {"rank": 0}, "rank=0 is not possible"),
        ("mini", {"rank": "8"}, "rank='8' is not possible"),
        ("mini", {"dropout": 1.0}, "dropout=1.0 is not possible"),
        ("mini", {"diffusion_step": 1000}, "diffusion_step=1000 is not possible"),
        ("mini", {"token_weighting": 1}, "token_weighting=1 is not possible"),
    ],
)
def test_impossible_settings_are_told(preset: str, overrides: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        choose_settings(preset, overrides)


def test_the_references_settings_have_names() -> None:
    chosen = choose_settings("llava-1.5-13b", {"epochs": 2, "rank": 128})
    assert (chosen.values.rank, chosen.values.alpha, chosen.values.learning_rate) == (128, 256, 2e-4)
    assert chosen.overridden == {"epochs"}, "the same value is no change"
    assert accumulation_steps(chosen.values, devices=4) == 4
    with pytest.raises(SettingsError, match="no multiple of micro_batch=1 × 3"):
        accumulation_steps(chosen.values, devices=3)


def test_examples_of_another_role_or_none_are_refused(llava: Mllm, tmp_path: Path) -> None:
    config = configured(Role.RERANKER, tmp_path / "tuned")
    with pytest.raises(UsageError, match="not made for the reranker"):
        train(config, examples_for(Role.GENERATOR), llava, open_picture)
    with pytest.raises(UsageError, match="no examples"):
        train(config, [], llava, open_picture)


# Real processes from here on: the command that a training worker starts.


def prepare_run(folder: Path, role: Role, **settings: Any) -> Path:
    """A model, a data set, its pictures and the run file that names them."""
    save_family("llava", folder / "model")
    pictures = folder / "pictures"
    pictures.mkdir()
    for number, picture in enumerate(PICTURES):
        picture.save(pictures / f"{number}.png")
    found = tuple(Retrieved(f"{number}.png", "Harlow") for number in range(6))
    questions = [
        LabelledQuestion(f"Which {n}?", "red" if n % 2 else "3 windows", (Evidence(f"{n % 6}.png", "Ansel"),), found)
        for n in range(24)
    ]
    build = build_rank_dataset if role is Role.RERANKER else build_answer_dataset
    write_dataset(folder / "set", build(questions, DatasetOptions(seed=1, injected_share=0.5)))
    (folder / "tiny.toml").write_text(f'retriever = "local-dir:{folder}"\nmllm = "{folder / "model"}"\n')
    values = {
        "dataset": "set",
        "pictures": "pictures",
        "result": "tuned",
        "preset": "mini",
        "profile": str(folder / "tiny.toml"),
        "settings": {**SMALL, **settings},
    }
    run_file = folder / "run.json"
    run_file.write_text(json.dumps(values))
    return run_file


def train_here(run_file: Path, result: Path) -> TrainingReport:
    """The same run in this process, without a pause."""
    from ragllava.training.datasets import read_dataset

    values = json.loads(run_file.read_text())
    dataset = read_dataset(run_file.parent / "set")
    mllm = load_folder(run_file.parent / "model", run_file.parent / "home")
    config = FinetuneConfig(dataset.card.role, choose_settings("mini", values["settings"]), result)
    return train(config, dataset.examples, mllm, open_picture)


@contextmanager
def started(command: list[str], home: Path) -> Iterator[subprocess.Popen[str]]:
    """A process of its own group, gone afterwards; its words go to `<home>.log`."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "RAGLLAVA_HOME": str(home)}
    with Path(f"{home}.log").open("a") as words:
        process = subprocess.Popen(
            [sys.executable, *command], env=environment, stdout=words, stderr=words, text=True, start_new_session=True
        )
        try:
            yield process
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def wait_until(condition: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + PROCESS_DEADLINE_S
    while not condition():
        assert process.poll() is None, f"ended with {process.returncode}"
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_killed_training_goes_on_where_it_was(tmp_path: Path) -> None:
    """SIGKILL between checkpoints; dropout and picture noise go on with the same random numbers."""
    run_file = prepare_run(
        tmp_path, Role.GENERATOR, max_steps=30, steps_per_checkpoint=4, dropout=0.1, token_weighting=True
    )
    command = ["-m", "ragllava.training.finetune", str(run_file)]
    result, work = tmp_path / "tuned", tmp_path / "tuned.work"
    with started(command, tmp_path / "home") as process:
        wait_until((work / "checkpoint-8" / MANIFEST).exists, process)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    assert not result.exists()
    reached = last_checkpoint(work, json.loads((work / "checkpoint-8" / MANIFEST).read_text())["fingerprint"])
    assert reached is not None
    assert 8 <= reached.step < 30
    with started(command, tmp_path / "home") as process:
        assert process.wait(PROCESS_DEADLINE_S) == 0, Path(f"{tmp_path / 'home'}.log").read_text()
    report = read_report(result)
    assert [record.step for record in report.steps] == list(range(1, 31))
    straight = train_here(run_file, tmp_path / "straight")
    assert losses(report) == pytest.approx(losses(straight), abs=1e-4)
    assert [record.token_weight for record in report.steps] == pytest.approx(
        [record.token_weight for record in straight.steps], abs=1e-4
    )
    assert report.seconds > reached.seconds


def test_two_processes_do_as_one(tmp_path: Path) -> None:
    """`accelerate launch`, which starts one process for each GPU; here they share the processor and talk by gloo."""
    # At diffusion step 0 the noise loss makes both of its passes and is yet free of chance.
    run_file = prepare_run(
        tmp_path, Role.GENERATOR, max_steps=6, steps_per_checkpoint=3, token_weighting=True, diffusion_step=0
    )
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    launcher = ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--main_process_port", port]
    command = [*launcher, "--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
    with started([*command, "-m", "ragllava.training.finetune", str(run_file)], tmp_path / "home") as process:
        code = process.wait(PROCESS_DEADLINE_S)
    words = Path(f"{tmp_path / 'home'}.log").read_text()
    assert code == 0, words
    together = read_report(tmp_path / "tuned")
    alone = train_here(run_file, tmp_path / "alone")
    assert losses(together) == pytest.approx(losses(alone), abs=1e-4)
    assert words.count("adapter written to") == 1
    assert words.count("trained 6 steps") == 2, "two processes took part"


def test_a_run_file_that_cannot_be_read_ends_with_one_sentence(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run_file = tmp_path / "run.json"
    assert main([str(run_file)]) == 2
    run_file.write_text('{"dataset": "a", "pictures": "b", "result": "c", "presets": "mini"}')
    assert main([str(run_file)]) == 2
    run_file.write_text('{"dataset": "a", "pictures": "b", "result": "c", "preset": "mini"}')
    assert main([str(run_file)]) == 2
    sentences = [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]
    assert [
        next(part for part in ("cannot be read", "is no training run", "no complete data set") if part in sentence)
        for sentence in sentences
    ] == ["cannot be read", "is no training run", "no complete data set"]
