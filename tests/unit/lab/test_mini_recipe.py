"""The recipe of the mini models: packs, labels and export, each compared with a slow or manual reference."""

from __future__ import annotations

import json
import math
import random
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from ragllava.lab.mini_recipe.calibrate import write_profile
from ragllava.lab.mini_recipe.clip import RetrievalText, TextToPictures, choice_loss, draw_text
from ragllava.lab.mini_recipe.endings import Ending
from ragllava.lab.mini_recipe.examples import Pack, PackSampler
from ragllava.lab.mini_recipe.export import as_open_clip
from ragllava.lab.mini_recipe.language import (
    PackCounts,
    PackedLlava,
    tower_features,
)
from ragllava.lab.mini_recipe.loop import StageSchedule
from ragllava.lab.mini_recipe.packing import Packer, attention_blocks, packed_attention
from ragllava.lab.mini_recipe.pool import PicturePool
from ragllava.lab.mini_recipe.reading import event_targets, name_tokens, reading_pack
from ragllava.lab.mini_recipe.recipe import Recipe, recipe_for, train_mini
from ragllava.lab.mini_recipe.vision import normalised
from ragllava.models.bundle import ModelBundle
from ragllava.models.profiles import get_profile
from ragllava.models.reranker import Pair
from ragllava.postcards.drawing import draw_postcard
from ragllava.postcards.names import Attributes
from ragllava.postcards.questions import QuestionStyle
from ragllava.prompts import PromptParts, answer_prompt, rerank_prompt
from ragllava.settings import Settings

PATCHES = 49


def _names(question: str, pack: Pack) -> list[bool]:
    """For each picture of the pack, whether the question names its landmark."""
    named = []
    for shown in pack.shown:
        landmark = shown.landmark
        named.append(f"{landmark.title} in {landmark.entity.city}" in question)
    return named


def _shows(question: str, looks: Attributes) -> bool:
    """Whether the picture has the colour, kind, sky and companion that a question about a name gives."""
    beside = ("nothing nearby" if looks.beside == "none" else f"a {looks.beside} nearby") in question
    return f"{looks.color} {looks.kind} shown" in question and looks.sky in question and beside


def test_one_picture_is_relevant_exactly_to_the_questions_that_name_it(attributes: list[Attributes]) -> None:
    sampler, rng = PackSampler(attributes, "train"), random.Random(1)
    answers: Counter[str] = Counter()
    for _ in range(300):
        pack = sampler.one_picture_pack(rng)
        for ending in pack.endings:
            if ending.judges_relevance:
                answers[ending.answer] += 1
                assert (ending.answer == "Yes") == _names(ending.question, pack)[0], (pack, ending)
            elif ending.task == "name":
                assert ending.answer == pack.shown[0].landmark.title
            else:
                assert _names(ending.question, pack) == [True]
    assert 0.35 < answers["Yes"] / answers.total() < 0.55


def test_questions_about_two_pictures_are_balanced_and_right(attributes: list[Attributes]) -> None:
    sampler, rng = PackSampler(attributes, "train"), random.Random(2)
    same: Counter[str] = Counter()
    tasks: Counter[str] = Counter()
    for _ in range(400):
        pack = sampler.several_pictures_pack(rng)
        for ending in pack.endings:
            tasks[ending.task] += 1
            asked = [s.landmark for s, named in zip(pack.shown, _names(ending.question, pack), strict=True) if named]
            if ending.task == "samecolor":
                same[ending.answer] += 1
                assert (ending.answer == "yes") == (asked[0].attributes.color == asked[1].attributes.color)
            elif ending.task == "more":
                winner = max(asked, key=lambda landmark: landmark.attributes.count)
                assert ending.answer == winner.title
            elif ending.task == "name":
                assert ending.about is not None
                called = [shown for shown in pack.shown if _shows(ending.question, shown.landmark.attributes)]
                assert ending.about in called
                assert ending.answer == ending.about.landmark.title
            else:
                assert len(asked) == 1
    assert 0.35 < same["yes"] / same.total() < 0.65
    assert tasks["more"] > 150
    assert tasks["samecolor"] == 400


def test_a_description_contains_all_facts(attributes: list[Attributes]) -> None:
    sampler, rng = PackSampler(attributes, "train"), random.Random(4)
    pack = sampler.one_picture_pack(rng)
    described = next(ending for ending in pack.endings if ending.task == "describe")
    looks, entity = pack.shown[0].landmark.attributes, pack.shown[0].landmark.entity
    for fact in (looks.color, looks.kind, looks.sky, looks.counted[:-1], str(entity.year)):
        assert fact in described.answer


def test_an_ending_sees_the_beginning_and_itself() -> None:
    """Compared with complete scores under a mask, in rows of different lengths."""
    endings = torch.tensor([[0, 0, 1, 1, 2, -1], [0, 1, 2, 2, 2, 3]])
    allowed = torch.tensor(
        [
            [
                [1, 0, 0, 0, 0, 0],
                [1, 1, 0, 0, 0, 0],
                [1, 1, 1, 0, 0, 0],
                [1, 1, 1, 1, 0, 0],
                [1, 1, 0, 0, 1, 0],
                [1, 0, 0, 0, 0, 0],  # padding
            ],
            [
                [1, 0, 0, 0, 0, 0],
                [1, 1, 0, 0, 0, 0],
                [1, 0, 1, 0, 0, 0],
                [1, 0, 1, 1, 0, 0],
                [1, 0, 1, 1, 1, 0],
                [1, 0, 0, 0, 0, 1],
            ],
        ]
    ).bool()
    rng = torch.Generator().manual_seed(3)
    query, key, value = torch.randn(3, 2, 2, 6, 4, generator=rng)
    scores = (query @ key.transpose(-1, -2) * 0.7).masked_fill(~allowed[:, None], -math.inf)
    expected = (scores.softmax(-1) @ value).transpose(1, 2)
    blocks = attention_blocks(endings)
    attended, _ = packed_attention(None, query, key, value, blocks.beginning_mask, blocks=blocks, scaling=0.7)
    assert torch.allclose(attended[endings >= 0], expected[endings >= 0], atol=1e-6)


def _separate_logits(llava: Any, processor: Any, pack: Pack, ending: Ending, pool: PicturePool) -> torch.Tensor:
    """The logits of one ending's answer when it is asked as models/mllm.py does."""
    captions: list[str | None] = [None if pack.bare else shown.landmark.caption for shown in pack.shown]
    parts: PromptParts = (
        rerank_prompt(ending.question, captions)
        if ending.judges_relevance
        else answer_prompt(ending.question, captions)
    )
    content = [{"type": "image"} if part is None else {"type": "text", "text": part} for part in parts]
    text = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    pictures = [Image.fromarray(pool.pixels[shown.picture]) for shown in pack.shown]
    inputs = processor(text=[f"{text} {ending.answer}"], images=[pictures], return_tensors="pt")
    answer = processor.tokenizer(f" {ending.answer}", add_special_tokens=False)["input_ids"]
    with torch.inference_mode():
        logits: torch.Tensor = llava(**inputs).logits[0]
    return logits[-len(answer) - 1 :]  # what predicts each token of the answer, then its end


def _bare_pack(attributes: Sequence[Attributes], rng: random.Random) -> Pack:
    sampler = PackSampler(attributes, "test", styles={QuestionStyle.CUES_ONLY: 1.0})
    while True:
        pack = sampler.one_picture_pack(rng)
        if pack.bare:
            return pack


def test_packed_endings_are_answered_as_if_asked_alone(
    llava_and_processor: tuple[Any, Any], attributes: list[Attributes]
) -> None:
    llava, processor = llava_and_processor
    drawings = [draw_postcard(shown, random.Random(number)) for number, shown in enumerate(attributes[:30])]
    pool = PicturePool(np.stack([drawing.pixels for drawing in drawings]), np.zeros(0, np.float32), attributes[:30])
    sampler, rng = PackSampler(pool.attributes, "test"), random.Random(6)
    packs = [sampler.one_picture_pack(rng), sampler.several_pictures_pack(rng)]
    packs.append(_bare_pack(pool.attributes, rng))
    separate = [_separate_logits(llava, processor, pack, ending, pool) for pack in packs for ending in pack.endings]
    features, _ = tower_features(llava.model.vision_tower, pool, torch.float32)
    network = PackedLlava(llava, torch.float32)
    batch = Packer(processor, PATCHES).batch(packs)
    with torch.inference_mode():
        logits, labels, _ = network(batch, features[batch.pictures])
    llava.set_attn_implementation("eager")
    assert torch.allclose(logits, torch.cat(separate), atol=2e-3)
    ends = [processor.tokenizer.eos_token_id]
    answers = [e.answer for pack in packs for e in pack.endings]
    expected = [t for a in answers for t in processor.tokenizer(" " + a, add_special_tokens=False)["input_ids"] + ends]
    assert labels.tolist() == expected


def test_the_tower_is_the_same_network_under_open_clip_s_names(llava_and_processor: tuple[Any, Any]) -> None:
    import open_clip

    tower = llava_and_processor[0].model.vision_tower
    clip, _ = open_clip.create_model_from_pretrained(get_profile(Settings()).retriever.retriever, precision="fp32")
    missing = clip.visual.load_state_dict(as_open_clip(tower.state_dict()), strict=False)
    assert missing.unexpected_keys == []
    assert sorted(missing.missing_keys) == ["ln_post.bias", "ln_post.weight", "proj"]
    states: list[torch.Tensor] = []
    clip.visual.transformer.register_forward_hook(lambda _module, _inputs, output: states.append(output))
    pixels = torch.randn(2, 3, 112, 112, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        clip.eval().encode_image(pixels)
        assert torch.allclose(states[0], tower(pixel_values=pixels).last_hidden_state, atol=1e-4)


def test_pictures_are_those_of_the_complete_picture_tower(
    llava_and_processor: tuple[Any, Any], attributes: list[Attributes]
) -> None:
    """From the states before the last block on, with the CLS token only, to the vector that the search uses."""
    import open_clip

    drawings = [draw_postcard(shown, random.Random(number)) for number, shown in enumerate(attributes[:6])]
    pool = PicturePool(np.stack([drawing.pixels for drawing in drawings]), np.zeros(0, np.float32), attributes[:6])
    tower = llava_and_processor[0].model.vision_tower
    name = get_profile(Settings()).retriever.retriever
    clip, _ = open_clip.create_model_from_pretrained(name, precision="fp32")
    clip.visual.load_state_dict(as_open_clip(tower.state_dict()), strict=False)
    _, tokens = tower_features(tower, pool, torch.float32)
    with torch.inference_mode():
        expected = clip.eval().encode_image(normalised(pool.pixels), normalize=True)
        vectors = TextToPictures(clip, open_clip.get_tokenizer(name)).pictures(tokens)
    assert torch.allclose(vectors, expected, atol=1e-5)


def test_a_text_with_two_targets_shares_its_probability() -> None:
    texts = [RetrievalText("one", (2,)), RetrievalText("two", (0, 1))]
    cosines = torch.tensor([[0.0, 0.0, math.log(2)], [math.log(3), math.log(3), math.log(2)]])
    expected = (-math.log(2 / 4) - math.log(3 / 8)) / 2
    assert choice_loss(cosines, texts).item() == pytest.approx(expected, abs=1e-6)


def test_retrieval_texts_name_the_kinds_of_their_pictures(attributes: list[Attributes]) -> None:
    sampler, rng = PackSampler(attributes, "train"), random.Random(8)
    sizes: Counter[int] = Counter()
    for _ in range(300):
        text = draw_text(sampler, rng)
        sizes[len(text.pictures)] += 1
        for picture in text.pictures:
            assert attributes[picture].kind in text.text.lower()
    assert sizes[1] > 100
    assert sizes[2] > 100


def test_the_hint_marks_names_of_the_question_that_occur_in_the_caption(
    llava_and_processor: tuple[Any, Any], attributes: list[Attributes]
) -> None:
    tokenizer = llava_and_processor[1].tokenizer
    packer = Packer(llava_and_processor[1], 0, text_only=True)
    names = name_tokens(tokenizer)
    sampler, rng = PackSampler(attributes, "train"), random.Random(9)
    for _ in range(20):
        pack = reading_pack(sampler, rng)
        batch = packer.batch([pack])
        targets = event_targets(batch, names)[0].tolist()
        caption = tokenizer(packer.frames.beginning(pack))["input_ids"]
        for token, ending, label, target in zip(
            batch.tokens[0].tolist(), batch.endings[0].tolist(), batch.labels[0].tolist(), targets, strict=True
        ):
            if ending > 0 and label < 0 and bool(names[token]):
                assert target == (token in caption)
            else:
                assert target == -1


def test_the_text_of_a_reading_pack_decides_its_relevance(
    llava_and_processor: tuple[Any, Any], attributes: list[Attributes]
) -> None:
    packer = Packer(llava_and_processor[1], 0, text_only=True)
    sampler, rng = PackSampler(attributes, "train"), random.Random(10)
    for _ in range(50):
        pack = reading_pack(sampler, rng)
        caption = packer.frames.beginning(pack)
        assert "<image>" not in caption
        title, city, _year = caption.removeprefix("USER: Image Caption: ").strip().rsplit(", ", 2)
        for ending in pack.endings:
            assert (f"{title} in {city}" in ending.question) == (ending.answer == "Yes")
            assert packer.frames.question(ending) == f"Question: {ending.question} ASSISTANT:"


def test_the_language_model_alone_is_not_trained_from_scratch(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="only from weights"):
        recipe_for(1, tmp_path, from_weights=False, only_language=True)
    recipe = recipe_for(10, tmp_path, from_weights=True, only_language=True)
    assert (recipe.only_language, recipe.language.limit_s) == (True, 600)


def test_with_only_language_the_retriever_stays_as_it_is_and_three_pictures_are_measured_apart(tmp_path: Path) -> None:
    schedule = StageSchedule(steps=1, peak_rate=1e-3, warm_up_steps=1)
    start = Path(get_profile(Settings()).mllm).parent
    recipe = Recipe(
        start, True, schedule, schedule, schedule, schedule,
        only_language=True, practice_pictures=40, held_out_pictures=40, packs_per_step=PackCounts(1, 0, 2, 0),
        measured_packs=1, precision=torch.float32,
    )  # fmt: skip
    models = train_mini(tmp_path, recipe)
    assert [path.parent.name for path in tmp_path.rglob("checkpoint.pt")] == ["language"]
    clip = "open_clip_model.safetensors"
    assert (models / "clip" / clip).read_bytes() == (start / "clip" / clip).read_bytes()
    trained = load_file(models / "llava" / "model.safetensors")
    shipped = load_file(start / "llava" / "model.safetensors")
    assert set(trained) == set(shipped)
    changed = {name for name, weight in trained.items() if not torch.equal(weight, shipped[name])}
    assert any("language_model" in name for name in changed)
    assert not any("vision_tower" in name for name in changed)
    (row,) = json.loads((tmp_path / "language" / "curve.json").read_text())
    assert {name.split("_")[1] for name in row if name.startswith("loss_")} == {"one", "three"}
    assert "samecolor++" in row
    assert "samecolor+" not in row
    (patches, _), _ = torch.load(tmp_path / "features-float32.pt", weights_only=True)
    assert patches.dtype == torch.float32


def test_the_complete_recipe_in_miniature_gives_models_that_load(tmp_path: Path) -> None:
    """From random weights, two steps a stage; and a second call trains nothing."""
    schedule = StageSchedule(steps=2, peak_rate=1e-3, warm_up_steps=1)
    start = Path(get_profile(Settings()).mllm).parent
    recipe = Recipe(
        start=start,
        from_weights=False,
        vision=schedule,
        clip=schedule,
        reading=schedule,
        language=schedule,
        practice_pictures=80,
        held_out_pictures=60,
        pictures_per_step=4,
        texts_per_step=4,
        pictures_to_choose_from=40,
        packs_per_step=PackCounts(1, 1, 0, 1),
        measured_packs=4,
    )
    models = train_mini(tmp_path, recipe)
    profile = write_profile(models, images=30, questions=3)
    fit = json.loads(profile.read_text())["threshold_curve"]["fit"]
    # One question in each of the five styles; four of them name landmarks, whose captions add candidates.
    assert 2 * 5 * 20 <= fit["correct_count"] + fit["wrong_count"] <= 2 * 5 * 30
    bundle = ModelBundle(Settings(profile=str(profile), home=tmp_path, device="cpu"))
    picture = Image.new("RGB", (112, 112), "gray")
    assert bundle.retriever.embed_images([picture], 1).shape == (1, 128)
    assert 0 < bundle.reranker.relevance([Pair("a question", "a caption", picture)], 1)[0].value < 1
    assert sum(path.stat().st_size for path in models.rglob("*") if path.is_file()) < 24_000_000
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("checkpoint.pt")}
    train_mini(tmp_path, recipe)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("checkpoint.pt")} == before
    assert sorted(path.parent.name for path in before) == ["clip", "language", "reading", "vision"]
