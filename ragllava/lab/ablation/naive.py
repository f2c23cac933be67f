"""A base that never saw a wrong picture, for the noise ablation.

The shipped mini models learned to answer beside wrong pictures: on them every way of fine-tuning looks robust. So the
last layers of the language model are drawn anew and learn again, from questions whose pictures are all right.
"""

from __future__ import annotations

import json
import logging
import random
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from ragllava.errors import UsageError
from ragllava.lab.mini_recipe.examples import Pack, World
from ragllava.lab.mini_recipe.export import export_llava
from ragllava.lab.mini_recipe.language import PackedLlava, measure_packs, tower_features
from ragllava.lab.mini_recipe.loop import Lesson, Pace, train
from ragllava.lab.mini_recipe.packing import Packer
from ragllava.lab.mini_recipe.pool import draw_pool
from ragllava.postcards.questions import TWO_IMAGE_TYPES
from ragllava.whole_files import folder_sha256, folder_written_whole, write_whole

log = logging.getLogger(__name__)

_FIRST_PICTURE_SEED = 50_000_000  # neither those that the mini models practise on, nor those they are measured on
_MEASURED_PACKS = 60
_WARM_UP_STEPS = 20


@dataclass(frozen=True, slots=True)
class NaiveRecipe:
    """How a base is made naive: so many last layers drawn anew, and how they learn again."""

    layers: int = 2
    steps: int = 150
    pictures: int = 3000
    packs_per_step: tuple[int, int] = (16, 16)  # of one picture, of two
    peak_rate: float = 1.2e-3


def make_naive(shipped: Path, folder: Path, recipe: NaiveRecipe) -> Path:
    """The naive model, a folder in `folder`. Training goes on where it was stopped; a finished one is not repeated.

    `shipped` is the folder of a LLaVA such as the mini model's. Raises UsageError for another family, and where
    `folder` has one that was made from other weights, or by another recipe.
    """
    finished, origin = folder / "naive", folder / "naive.json"
    made_from = json.dumps({"files": folder_sha256(shipped), "recipe": asdict(recipe)}, indent=1)
    if origin.exists() and origin.read_text() != made_from:
        raise UsageError(
            f"{finished} is made from other weights than {shipped}, or by another recipe; remove {folder}, or choose "
            "another folder"
        )
    if finished.exists() and origin.exists():
        return finished
    llava, processor = _open_llava(shipped)
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(origin, made_from)
    pool = draw_pool(folder / "pictures", recipe.pictures, _FIRST_PICTURE_SEED)
    features, _ = tower_features(llava.model.vision_tower, pool)
    network = PackedLlava(llava)
    draw_last_layers_anew(llava, recipe.layers)
    lesson = _lesson(network, Packer(processor, llava.config.image_seq_length), World(pool.attributes, "train"),
                     features, recipe.packs_per_step)  # fmt: skip
    pace = Pace(recipe.steps, recipe.peak_rate, _WARM_UP_STEPS)
    train(folder / "naive.work", network, lesson, pace)
    with folder_written_whole(finished) as part:
        export_llava(llava, shipped, part)
    return finished


def draw_last_layers_anew(llava: Any, count: int) -> None:
    """Give the language model's last `count` layers random weights; only they will be trained."""
    torch.manual_seed(0)
    for parameter in llava.parameters():
        parameter.requires_grad_(False)
    spread: float = llava.config.text_config.initializer_range
    for parameter in llava.model.language_model.layers[-count:].parameters():
        (nn.init.normal_(parameter, std=spread) if parameter.ndim > 1 else nn.init.ones_(parameter)).requires_grad_()


def pack_about_one(world: World, rng: random.Random) -> Pack:
    """A picture and what it answers."""
    pack = world.one_picture_pack(rng)
    return replace(pack, endings=tuple(ending for ending in pack.endings if not ending.judges_relevance))


def pack_about_two(world: World, rng: random.Random) -> Pack:
    """Two pictures and questions that need both."""
    while True:
        pack = world.several_pictures_pack(rng)
        endings = tuple(ending for ending in pack.endings if ending.task in TWO_IMAGE_TYPES)
        if len(pack.shown) == 2 and endings:
            return replace(pack, endings=endings)


def _open_llava(folder: Path) -> tuple[Any, Any]:
    from transformers import AutoConfig, AutoProcessor, LlavaForConditionalGeneration

    family = AutoConfig.from_pretrained(folder, local_files_only=True).model_type
    if family != "llava":
        raise UsageError(f"{folder}: only a LLaVA such as the mini model can be made naive, this one is a {family}")
    # Written-out attention: the fused kernels' backward pass is several times slower on a CPU.
    llava = LlavaForConditionalGeneration.from_pretrained(
        folder, local_files_only=True, dtype=torch.float32, attn_implementation="eager"
    )
    return llava, AutoProcessor.from_pretrained(folder, local_files_only=True)


def _lesson(
    network: PackedLlava, packer: Packer, world: World, features: torch.Tensor, packs_per_step: tuple[int, int]
) -> Lesson:
    def backward(step: int) -> dict[str, float]:
        rng = random.Random(f"naive {step}")  # noqa: S311 - repeatable on purpose
        packs = [pack_about_one(world, rng) for _ in range(packs_per_step[0])]
        packs += [pack_about_two(world, rng) for _ in range(packs_per_step[1])]
        batch = packer.batch(packs)
        logits, labels, weights = network(batch, features[batch.pictures])
        loss = (functional.cross_entropy(logits, labels, reduction="none") * weights).sum() / weights.sum()
        torch.autograd.backward(loss)
        return {"loss": loss.item()}

    def measure() -> Mapping[str, float]:
        rng = random.Random("measure naive")  # noqa: S311 - repeatable on purpose
        packs = [draw(world, rng) for draw in (pack_about_one, pack_about_two) for _ in range(_MEASURED_PACKS)]
        return measure_packs(network, packer, packs, features)

    return Lesson(backward, measure)
