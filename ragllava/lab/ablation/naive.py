"""A base that was never trained with a wrong picture, for the noise ablation.

The shipped mini models are trained with wrong pictures: with them every way of fine-tuning looks robust. So the last
layers of the language model are reinitialized and trained again, on questions without wrong pictures.
"""

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from transformers import AutoConfig

from ragllava.errors import UsageError
from ragllava.lab.mini_recipe.examples import Pack, PackSampler
from ragllava.lab.mini_recipe.export import export_llava
from ragllava.lab.mini_recipe.language import PackedLlava, measure_packs, tower_features
from ragllava.lab.mini_recipe.loop import StageSchedule, StageTask, train
from ragllava.lab.mini_recipe.packing import Packer
from ragllava.lab.mini_recipe.pool import draw_pool
from ragllava.lab.mini_recipe.precision import training_precision
from ragllava.lab.mini_recipe.recipe import open_llava
from ragllava.postcards.questions import TWO_IMAGE_TYPES
from ragllava.whole_files import folder_sha256, folder_written_whole, write_whole

_FIRST_PICTURE_SEED = 50_000_000  # in neither pool of the mini models' recipe
_MEASURED_PACKS = 60
_WARM_UP_STEPS = 20


@dataclass(frozen=True, slots=True)
class NaiveRecipe:
    """How a base is made naive: the number of last layers that are reinitialized, and their training."""

    layers: int = 2
    steps: int = 150
    pictures: int = 3000
    packs_per_step: tuple[int, int] = (16, 16)  # of one picture, of two
    peak_rate: float = 1.2e-3


def make_naive(shipped: Path, folder: Path, recipe: NaiveRecipe) -> Path:
    """The naive model, a folder in `folder`. An interrupted training is resumed; a finished one is not repeated.

    `shipped` is the folder of a LLaVA such as the mini model's. Raises UsageError for another family, and if `folder`
    has a naive model made from other weights or by another recipe.
    """
    finished, origin_file = folder / "naive", folder / "naive.json"
    origin = json.dumps({"files": folder_sha256(shipped), "recipe": asdict(recipe)}, indent=1)
    if origin_file.exists() and origin_file.read_text() != origin:
        raise UsageError(
            f"{finished} was made from other weights than {shipped} or by another recipe; remove {folder} or choose "
            "another folder"
        )
    if finished.exists() and origin_file.exists():
        return finished
    family = AutoConfig.from_pretrained(shipped, local_files_only=True).model_type
    if family != "llava":
        raise UsageError(f"{shipped}: only a LLaVA such as the mini model can be made naive, but this is a {family}")
    llava, processor = open_llava(shipped, from_weights=True)
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(origin_file, origin)
    pool = draw_pool(folder / "pictures", recipe.pictures, _FIRST_PICTURE_SEED)
    precision = training_precision()
    features, _ = tower_features(llava.model.vision_tower, pool, precision)
    network = PackedLlava(llava, precision)
    reinitialize_last_layers(llava, recipe.layers)
    packer, sampler = Packer(processor, llava.config.image_seq_length), PackSampler(pool.attributes, "train")
    schedule = StageSchedule(recipe.steps, recipe.peak_rate, _WARM_UP_STEPS)
    train(folder / "naive.work", network, _task(network, packer, sampler, features, recipe.packs_per_step), schedule)
    with folder_written_whole(finished) as part:
        export_llava(llava, shipped, part)
    return finished


def reinitialize_last_layers(llava: Any, count: int) -> None:
    """Give the last `count` layers of the language model random weights; only they will be trained."""
    torch.manual_seed(0)
    for parameter in llava.parameters():
        parameter.requires_grad_(False)
    spread: float = llava.config.text_config.initializer_range
    for parameter in llava.model.language_model.layers[-count:].parameters():
        (nn.init.normal_(parameter, std=spread) if parameter.ndim > 1 else nn.init.ones_(parameter)).requires_grad_()


def pack_about_one(sampler: PackSampler, rng: random.Random) -> Pack:
    """A picture and questions that it answers."""
    pack = sampler.one_picture_pack(rng)
    return replace(pack, endings=tuple(ending for ending in pack.endings if not ending.judges_relevance))


def pack_about_two(sampler: PackSampler, rng: random.Random) -> Pack:
    """Two pictures and questions that need both."""
    while True:
        pack = sampler.several_pictures_pack(rng)
        endings = tuple(ending for ending in pack.endings if ending.task in TWO_IMAGE_TYPES)
        if len(pack.shown) == 2 and endings:
            return replace(pack, endings=endings)


def _task(
    network: PackedLlava, packer: Packer, sampler: PackSampler, features: torch.Tensor, packs_per_step: tuple[int, int]
) -> StageTask:
    def backward(step: int) -> dict[str, float]:
        rng = random.Random(f"naive {step}")  # noqa: S311 - repeatable on purpose
        packs = [pack_about_one(sampler, rng) for _ in range(packs_per_step[0])]
        packs += [pack_about_two(sampler, rng) for _ in range(packs_per_step[1])]
        batch = packer.batch(packs)
        logits, labels, weights = network(batch, features[batch.pictures])
        loss = (functional.cross_entropy(logits, labels, reduction="none") * weights).sum() / weights.sum()
        torch.autograd.backward(loss)
        return {"loss": loss.item()}

    def measure() -> Mapping[str, float]:
        rng = random.Random("measure naive")  # noqa: S311 - repeatable on purpose
        packs = [draw(sampler, rng) for draw in (pack_about_one, pack_about_two) for _ in range(_MEASURED_PACKS)]
        return measure_packs(network, packer, packs, features)

    return StageTask(backward, measure)
