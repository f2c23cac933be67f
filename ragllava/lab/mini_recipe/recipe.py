"""The complete recipe of the mini models: draw pictures, train the picture tower, CLIP's text tower, and the LLaVA.

    ragllava train-mini FOLDER [--minutes 75] [--from-scratch] [--only-language] [--packs 8,6,0,10]

Every stage has a folder with its curve and a checkpoint; the same command resumes an interrupted training. The result
is in FOLDER/models/{clip,llava}, in the layout of models/mini/. On a CPU set OMP_WAIT_POLICY=PASSIVE and
GOMP_SPINCOUNT=0 if anything else runs on the machine: spinning threads make the training five times slower.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from ragllava.lab.mini_recipe.clip import TextToPictures, clip_task
from ragllava.lab.mini_recipe.examples import PackSampler
from ragllava.lab.mini_recipe.export import as_open_clip, export_clip, export_llava
from ragllava.lab.mini_recipe.language import HintedLlava, PackCounts, PackedLlava, language_task, tower_features
from ragllava.lab.mini_recipe.loop import StageSchedule, train
from ragllava.lab.mini_recipe.packing import Packer
from ragllava.lab.mini_recipe.pool import PicturePool, draw_pool
from ragllava.lab.mini_recipe.precision import training_precision
from ragllava.lab.mini_recipe.reading import Reader, reading_task
from ragllava.lab.mini_recipe.vision import TowerWithHeads, tower_task
from ragllava.lab.mini_recipe.wordings import ANSWER_SHARES, STYLE_SHARES
from ragllava.models.profiles import LOCAL_DIR

PRACTICE_SEED, HELD_OUT_SEED = 10_000_000, 90_000_000  # of the first picture; the pools have no seed in common
# Shares of the time, measured on two cores: counts and roofs depend on the tower.
_VISION_SHARE, _CLIP_SHARE, _READING_SHARE = 0.25, 0.08, 0.1

Features = tuple[torch.Tensor, torch.Tensor]  # what `tower_features` returns


@dataclass(frozen=True, slots=True)
class Recipe:
    """Sizes and schedules of one training. `start` is a folder with clip/ and llava/ in the layout of models/mini/.

    With `from_weights`, its weights are trained further. Otherwise only its configurations and tokenizers are used, all
    weights begin random, and the language model first learns to read names in plain text. With `only_language`, only
    projector and language model are trained, and everything else is that of `start`. With `untuned`, the labels of
    relevance are random.
    """

    start: Path
    from_weights: bool
    vision: StageSchedule
    clip: StageSchedule
    reading: StageSchedule
    language: StageSchedule
    only_language: bool = False
    untuned: bool = False
    practice_pictures: int = 36_000
    held_out_pictures: int = 3_000
    pictures_per_step: int = 96
    texts_per_step: int = 128
    pictures_to_choose_from: int = 1_024
    packs_per_step: PackCounts = field(default_factory=PackCounts)
    measured_packs: int = 200  # of each kind, at every report
    precision: torch.dtype = field(default_factory=training_precision)


def recipe_for(minutes: float, start: Path, *, from_weights: bool, only_language: bool = False) -> Recipe:
    """The recipe for a training of this length: a stage ends at its time limit if its steps take longer.

    Raises ValueError for `only_language` without `from_weights`: random pictures teach no language model.
    """
    if only_language and not from_weights:
        raise ValueError("the language model alone can be trained only from weights")
    seconds = minutes * 60
    reading_share = 0.0 if from_weights else _READING_SHARE
    # A short training must not have to win back what large first steps destroyed.
    language_rate = 6e-4 if only_language else 1.2e-3
    language_share = 1.0 if only_language else 1 - _VISION_SHARE - _CLIP_SHARE - reading_share
    return Recipe(
        start=start,
        from_weights=from_weights,
        vision=StageSchedule(steps=6_000, peak_rate=1.2e-3, limit_s=seconds * _VISION_SHARE),
        clip=StageSchedule(steps=1_200, peak_rate=1e-3, limit_s=seconds * _CLIP_SHARE),
        reading=StageSchedule(steps=400, peak_rate=1.2e-3, limit_s=seconds * _READING_SHARE),
        language=StageSchedule(steps=6_000, peak_rate=language_rate, limit_s=seconds * language_share),
        only_language=only_language,
    )


def untuned_recipe(start: Path, steps: int = 150, pictures: int = 8_000) -> Recipe:
    """The recipe of models for `ragllava eval --untuned`: those in `start`, but without knowledge of relevance.

    They are trained as before, except that Yes and No are random; so they keep their answers and lose their judgment.
    No checkpoint of the recipe can answer without judging, because both are learned together.
    """
    schedule = StageSchedule(steps, 6e-4)
    return Recipe(
        start, True, schedule, schedule, schedule, schedule,
        only_language=True, untuned=True, practice_pictures=pictures, held_out_pictures=400,
    )  # fmt: skip


def train_mini(folder: Path, recipe: Recipe) -> Path:
    """Run all stages; returns the folder of the finished clip/ and llava/."""
    torch.manual_seed(0)
    pools = (
        draw_pool(folder / "practice", recipe.practice_pictures, PRACTICE_SEED),
        draw_pool(folder / "held_out", recipe.held_out_pictures, HELD_OUT_SEED),
    )
    llava, processor = open_llava(recipe.start / "llava", from_weights=recipe.from_weights)
    tower = llava.model.vision_tower.eval() if recipe.only_language else _train_tower(folder, recipe, llava, pools)
    features = _features(folder, tower, pools, recipe.precision)
    if recipe.only_language:
        shutil.copytree(recipe.start / "clip", folder / "models" / "clip", dirs_exist_ok=True)
    else:
        _train_clip(folder, recipe, tower, pools, features)
    _train_language(folder, recipe, llava, processor, pools, features)
    return folder / "models"


def open_llava(folder: Path, *, from_weights: bool) -> tuple[Any, Any]:
    """The LLaVA of a folder in float32, with its weights or random ones, and its processor."""
    from transformers import AutoConfig, AutoProcessor, LlavaForConditionalGeneration

    processor = AutoProcessor.from_pretrained(folder, local_files_only=True)
    # Eager attention: on a CPU the backward pass of the fused kernels is several times slower.
    options = {"dtype": torch.float32, "attn_implementation": "eager"}
    if from_weights:
        return LlavaForConditionalGeneration.from_pretrained(folder, local_files_only=True, **options), processor
    config = AutoConfig.from_pretrained(folder, local_files_only=True)
    return LlavaForConditionalGeneration._from_config(config, **options), processor


def _train_tower(folder: Path, recipe: Recipe, llava: Any, pools: tuple[PicturePool, PicturePool]) -> Any:
    shape = llava.config.vision_config
    network = TowerWithHeads(llava.model.vision_tower, shape.hidden_size, shape.patch_size, recipe.precision)
    train(folder / "vision", network, tower_task(network, *pools, recipe.pictures_per_step), recipe.vision)
    return network.tower.eval()


def _features(
    folder: Path, tower: Any, pools: tuple[PicturePool, PicturePool], precision: torch.dtype
) -> list[Features]:
    """The features of both pools; kept on disk, because computing them takes minutes."""
    path = folder / f"features-{str(precision).removeprefix('torch.')}.pt"
    if not path.exists():
        torch.save([tower_features(tower, pool, precision) for pool in pools], path)
    features: list[Features] = torch.load(path, weights_only=True)
    return features


def _train_clip(
    folder: Path, recipe: Recipe, tower: Any, pools: tuple[PicturePool, PicturePool], features: list[Features]
) -> None:
    import open_clip

    name = f"{LOCAL_DIR}{recipe.start / 'clip'}"
    clip = open_clip.create_model(name, precision="fp32", load_weights=recipe.from_weights)
    blocks = as_open_clip(tower.state_dict())
    if recipe.from_weights:  # CLIP's last block was trained separately from the tower's, and is trained further
        last = f"transformer.resblocks.{len(clip.visual.transformer.resblocks) - 1}."
        blocks = {name: weight for name, weight in blocks.items() if not name.startswith(last)}
    clip.visual.load_state_dict(blocks, strict=False)
    network = TextToPictures(clip, open_clip.get_tokenizer(name), recipe.precision)
    practice, held_out = ((pool.attributes, tokens) for pool, (_, tokens) in zip(pools, features, strict=True))
    task = clip_task(network, practice, held_out, recipe.texts_per_step, recipe.pictures_to_choose_from)
    train(folder / "clip", network, task, recipe.clip)
    export_clip(clip, recipe.start / "clip", folder / "models" / "clip")


def _train_language(
    folder: Path,
    recipe: Recipe,
    llava: Any,
    processor: Any,
    pools: tuple[PicturePool, PicturePool],
    features: list[Features],
) -> None:
    network = PackedLlava(llava, recipe.precision)
    width: int = llava.config.text_config.hidden_size
    if not recipe.from_weights:
        reader = Reader(network, width)
        samplers = PackSampler(pools[0].attributes, "train"), PackSampler(pools[1].attributes, "test")
        task = reading_task(reader, processor, *samplers, sum(recipe.packs_per_step), recipe.measured_packs)
        train(folder / "reading", reader, task, recipe.reading)
    styles: dict[str, Any] = {"styles": STYLE_SHARES, "answer_styles": ANSWER_SHARES}
    practice = PackSampler(pools[0].attributes, "train", **styles, random_verdicts=recipe.untuned)
    held_out = PackSampler(pools[1].attributes, "test", **styles)
    hinted = HintedLlava(network, width, processor.tokenizer)
    packer = Packer(processor, llava.config.image_seq_length)
    (practice_patches, _), (held_out_patches, _) = features
    task = language_task(
        hinted,
        packer,
        (practice, practice_patches),
        (held_out, held_out_patches),
        recipe.packs_per_step,
        recipe.measured_packs,
    )
    train(folder / "language", hinted, task, recipe.language)
    export_llava(llava, recipe.start / "llava", folder / "models" / "llava")
