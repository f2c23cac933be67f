"""The whole recipe of the mini models: draw pictures, teach the picture tower, then CLIP's texts, then the LLaVA.

    ragllava train-mini FOLDER [--minutes 75] [--from-scratch]

Every stage has a folder of its own with its curve and a checkpoint; the same command goes on where it was stopped.
The result lies in FOLDER/models/{clip,llava}, in the layout of models/mini/. On a CPU set OMP_WAIT_POLICY=PASSIVE and
GOMP_SPINCOUNT=0 if anything else runs on the machine: waiting threads that spin cost a factor of five.
"""

from __future__ import annotations

import logging
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ragllava.lab.mini_recipe.clip import TextToPictures, clip_lesson
from ragllava.lab.mini_recipe.examples import World
from ragllava.lab.mini_recipe.export import as_open_clip, export_clip, export_llava
from ragllava.lab.mini_recipe.language import PackedLlava, Student, language_lesson, tower_features
from ragllava.lab.mini_recipe.loop import Pace, train
from ragllava.lab.mini_recipe.packing import Packer
from ragllava.lab.mini_recipe.pool import PicturePool, draw_pool
from ragllava.lab.mini_recipe.reading import Reader, reading_lesson
from ragllava.lab.mini_recipe.vision import TowerWithHeads, tower_lesson
from ragllava.models.profiles import LOCAL_DIR

log = logging.getLogger(__name__)

PRACTICE_SEED, HELD_OUT_SEED = 10_000_000, 90_000_000  # of the first picture; the pools never meet
# Shares of the time: measured on two cores, where the tower is what counting and roofs wait for.
_VISION_SHARE, _CLIP_SHARE, _READING_SHARE = 0.25, 0.08, 0.1


@dataclass(frozen=True, slots=True)
class Recipe:
    """Sizes and paces of one training. `start` is a folder with clip/ and llava/ in the layout of models/mini/.

    With `from_weights` its weights are trained on; without, only its configurations and tokenizers are used, all
    weights begin random, and the language model first learns to read names in plain text.
    """

    start: Path
    from_weights: bool
    vision: Pace
    clip: Pace
    reading: Pace
    language: Pace
    practice_pictures: int = 36_000
    held_out_pictures: int = 3_000
    pictures_per_step: int = 96
    texts_per_step: int = 128
    pictures_to_choose_from: int = 1_024
    packs_per_step: tuple[int, int] = (16, 14)  # of one picture, of several
    measured_packs: int = 200  # of each sort, at every report


def recipe_for(minutes: float, start: Path, *, from_weights: bool) -> Recipe:
    """The recipe for so many minutes of training: every stage ends by the clock if its steps take longer."""
    seconds = minutes * 60
    reading_share = 0.0 if from_weights else _READING_SHARE
    language_share = 1 - _VISION_SHARE - _CLIP_SHARE - reading_share
    return Recipe(
        start=start,
        from_weights=from_weights,
        vision=Pace(steps=6_000, peak_rate=1.2e-3, limit_s=seconds * _VISION_SHARE),
        clip=Pace(steps=1_200, peak_rate=1e-3, limit_s=seconds * _CLIP_SHARE),
        reading=Pace(steps=400, peak_rate=1.2e-3, limit_s=seconds * _READING_SHARE),
        language=Pace(steps=6_000, peak_rate=1.2e-3, limit_s=seconds * language_share),
    )


def train_mini(folder: Path, recipe: Recipe) -> Path:
    """Runs all stages and returns the folder with the finished clip/ and llava/."""
    torch.manual_seed(0)
    practice = draw_pool(folder / "practice", recipe.practice_pictures, PRACTICE_SEED)
    held_out = draw_pool(folder / "held_out", recipe.held_out_pictures, HELD_OUT_SEED)
    llava, processor = _open_llava(recipe)
    tower = _train_tower(folder, recipe, llava, practice, held_out)
    practice_features, held_out_features = _features(folder, tower, (practice, held_out))
    _train_clip(folder, recipe, tower, (practice, practice_features[1]), (held_out, held_out_features[1]))
    _train_language(
        folder,
        recipe,
        (llava, processor),
        (World(practice.attributes, "train"), practice_features[0]),
        (World(held_out.attributes, "test"), held_out_features[0]),
    )
    return folder / "models"


def train_untuned(folder: Path, start: Path, steps: int = 150, pictures: int = 8_000) -> Path:
    """The models in `start` once more, but ignorant of relevance: `ragllava eval --untuned` compares with them.

    All is practised as before, except that Yes and No fall by chance; so answering stays and judging goes. No
    checkpoint of the recipe can answer and not judge: both are learned together. Returns the folder of the models.
    """
    pace = Pace(steps, 6e-4)
    recipe = Recipe(start, True, pace, pace, pace, pace, practice_pictures=pictures, held_out_pictures=400)
    torch.manual_seed(0)
    llava, processor = _open_llava(recipe)
    tower = llava.model.vision_tower.eval()
    practice = draw_pool(folder / "practice", recipe.practice_pictures, PRACTICE_SEED)
    held_out = draw_pool(folder / "held_out", recipe.held_out_pictures, HELD_OUT_SEED)
    features = _features(folder, tower, (practice, held_out))
    _train_language(
        folder,
        recipe,
        (llava, processor),
        (World(practice.attributes, "train", random_verdicts=True), features[0][0]),
        (World(held_out.attributes, "test"), features[1][0]),
    )
    shutil.copytree(start / "clip", folder / "models" / "clip", dirs_exist_ok=True)
    return folder / "models"


def _open_llava(recipe: Recipe) -> tuple[Any, Any]:
    from transformers import AutoConfig, AutoProcessor, LlavaForConditionalGeneration

    folder = recipe.start / "llava"
    processor = AutoProcessor.from_pretrained(folder, local_files_only=True)
    # Written-out attention: the fused kernels' backward pass is several times slower on a CPU.
    options = {"dtype": torch.float32, "attn_implementation": "eager"}
    if recipe.from_weights:
        return LlavaForConditionalGeneration.from_pretrained(folder, local_files_only=True, **options), processor
    config = AutoConfig.from_pretrained(folder, local_files_only=True)
    return LlavaForConditionalGeneration._from_config(config, **options), processor


def _train_tower(folder: Path, recipe: Recipe, llava: Any, practice: PicturePool, held_out: PicturePool) -> Any:
    shape = llava.config.vision_config
    network = TowerWithHeads(llava.model.vision_tower, shape.hidden_size, shape.patch_size)
    lesson = tower_lesson(network, practice, held_out, recipe.pictures_per_step)
    train(folder / "vision", network, lesson, recipe.vision)
    return network.tower.eval()


def _features(
    folder: Path, tower: Any, pools: tuple[PicturePool, PicturePool]
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """What `tower_features` gives of both pools; kept on disk, as it takes minutes."""
    path = folder / "features.pt"
    if not path.exists():
        torch.save([tower_features(tower, pool) for pool in pools], path)
    features: list[tuple[torch.Tensor, torch.Tensor]] = torch.load(path, weights_only=True)
    return features


def _train_clip(
    folder: Path,
    recipe: Recipe,
    tower: Any,
    practice: tuple[PicturePool, torch.Tensor],
    held_out: tuple[PicturePool, torch.Tensor],
) -> None:
    import open_clip

    name = f"{LOCAL_DIR}{recipe.start / 'clip'}"
    clip = open_clip.create_model(name, precision="fp32", load_weights=recipe.from_weights)
    blocks = as_open_clip(tower.state_dict())
    if recipe.from_weights:  # CLIP's last block has learned apart from the tower's, and goes on from there
        last = f"transformer.resblocks.{len(clip.visual.transformer.resblocks) - 1}."
        blocks = {name: weight for name, weight in blocks.items() if not name.startswith(last)}
    clip.visual.load_state_dict(blocks, strict=False)
    network = TextToPictures(clip, open_clip.get_tokenizer(name))
    lesson = clip_lesson(
        network,
        (practice[0].attributes, practice[1]),
        (held_out[0].attributes, held_out[1]),
        recipe.texts_per_step,
        recipe.pictures_to_choose_from,
    )
    train(folder / "clip", network, lesson, recipe.clip)
    export_clip(clip, recipe.start / "clip", folder / "models" / "clip")


def _train_language(
    folder: Path,
    recipe: Recipe,
    model: tuple[Any, Any],
    practice: tuple[World, torch.Tensor],
    held_out: tuple[World, torch.Tensor],
) -> None:
    llava, processor = model
    network = PackedLlava(llava)
    tokens_per_picture: int = llava.config.image_seq_length
    width: int = llava.config.text_config.hidden_size
    if not recipe.from_weights:
        reader = Reader(network, width)
        worlds, packs = (practice[0], held_out[0]), sum(recipe.packs_per_step)
        lesson = reading_lesson(reader, processor, worlds, packs, recipe.measured_packs)
        train(folder / "reading", reader, lesson, recipe.reading)
    student = Student(network, width, processor.tokenizer)
    packer = Packer(processor, tokens_per_picture)
    lesson = language_lesson(student, packer, practice, held_out, recipe.packs_per_step, recipe.measured_packs)
    train(folder / "language", student, lesson, recipe.language)
    export_llava(llava, recipe.start / "llava", folder / "models" / "llava")
