"""Every supported family: real classes with random weights, loaded through the profile, ranked and answered."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from ragllava.errors import ModelUnavailable, ScoreRejected
from ragllava.models.device import plan_device
from ragllava.models.fitting import ControlTokens, Prompt, shorten
from ragllava.models.generator import AnswerRequest, Generator
from ragllava.models.loading import load_mllm
from ragllava.models.mllm import Mllm
from ragllava.models.prefix.read_columns import last_layer_at
from ragllava.models.prefix.shared_prefix import WAYS
from ragllava.models.profiles import LOCAL_DIR, Profile, RetrieverSource
from ragllava.models.reranker import Pair, Reranker
from ragllava.prompts import answer_prompt, rerank_prompt
from ragllava.settings import Settings
from tests.support.tiny_checkpoints import FAMILIES, load_family, load_folder, noise_pictures, save_family

TOLERANCE = 1e-5
INSTRUCTION = "Based on the image and its caption, is the image relevant to the question? Answer 'Yes' or 'No'."


@pytest.fixture(scope="module", params=list(FAMILIES))
def mllm(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Mllm:
    return load_family(request.param, tmp_path_factory.mktemp("model"), tmp_path_factory.mktemp("home"))


@pytest.fixture
def llava(tmp_path: Path) -> Mllm:
    return load_family("llava", tmp_path / "llava", tmp_path / "home")


def varied_pairs() -> list[Pair]:
    """Pictures of different sizes; captions and questions of different lengths; one without a caption."""
    pairs = []
    for number, picture in enumerate(noise_pictures()):
        caption = None if number == 2 else "Harlow, Port Ansel, 1932. " * (6 - number)
        pairs.append(Pair("How many windows" + " does it have" * number + "?", caption, picture))
    return pairs


def test_a_pair_scores_the_same_alone_in_a_batch_and_in_any_order(mllm: Mllm) -> None:
    reranker = Reranker(mllm)
    pairs = varied_pairs()
    together = [score.value for score in reranker.relevance(pairs, batch_size=6)]
    alone = [reranker.relevance([pair], batch_size=1)[0].value for pair in pairs]
    shuffled = [4, 0, 5, 2, 1, 3]
    in_other_order = reranker.relevance([pairs[index] for index in shuffled], batch_size=4)
    np.testing.assert_allclose(together, alone, atol=TOLERANCE)
    for score, index in zip(in_other_order, shuffled, strict=True):
        assert score.value == pytest.approx(alone[index], abs=TOLERANCE)
    assert len({round(value, 3) for value in alone}) == len(pairs), "the scores must differ, or parity shows nothing"


def test_questions_about_one_picture_score_the_same_behind_one_prefix(mllm: Mllm) -> None:
    reranker = Reranker(mllm)
    assert reranker.sharing is not None
    first, second = noise_pictures()[:2]
    texts = ["What is it?", "How many windows does the red lighthouse in Port Ansel have?", "Why?", "Is it night?"]
    pairs = [Pair(text, "Harlow, Port Ansel", picture) for text in texts for picture in (first, second)]
    pairs += [Pair("Alone?", None, noise_pictures()[2]), Pair("Harlow by night", None, first, by_caption=True)]
    alone = [reranker.relevance([pair], batch_size=1)[0].value for pair in pairs]
    for batch_size in (2, 20):
        together = [score.value for score in reranker.relevance(pairs, batch_size)]
        np.testing.assert_allclose(together, alone, atol=TOLERANCE)
    assert len({round(value, 4) for value in alone}) == len(pairs), "the scores must differ, or parity shows nothing"


@pytest.mark.parametrize("way", list(WAYS))
def test_each_way_to_share_a_prefix_gives_the_scores_of_each_pair_alone(mllm: Mllm, way: str) -> None:
    texts = [f"How many {'red ' * number}windows does tower {number} have?" for number in range(9)]
    prompts = [Pair(text, "Harlow", noise_pictures()[0]).prompt() for text in texts]
    shared = mllm.share(prompts, answer_tokens=1)
    assert shared is not None
    tokens = range(len(mllm.tokenizer))
    alone = torch.cat([mllm.last_logits(mllm.prepare([prompt], 1), tokens) for prompt in prompts])
    for batch_size in (4, 20):
        logits = mllm.shared_logits(shared, WAYS[way], batch_size, tokens)
        torch.testing.assert_close(logits.softmax(-1), alone.softmax(-1), atol=TOLERANCE, rtol=0)


@torch.inference_mode()
def test_the_last_layer_is_computed_only_where_it_is_read(mllm: Mllm) -> None:
    """The logits there are those of a plain pass of the network, in a batch of rows of different lengths."""
    prompts = [pair.prompt() for pair in varied_pairs()[:2]]
    tensors = mllm.prepare(prompts, answer_tokens=1).tensors
    read = torch.tensor([3, tensors["input_ids"].shape[1] - 1])
    last = mllm.network.get_decoder().layers[-1]
    widths: list[int] = []
    watching = [
        module.register_forward_hook(lambda _module, inputs, _output: widths.append(inputs[0].shape[1]))
        for module in (last.self_attn.q_proj, last.self_attn.o_proj, last.mlp.down_proj, last.self_attn.k_proj)
    ]
    plain = mllm.network(**tensors, logits_to_keep=read, use_cache=False).logits
    length = tensors["input_ids"].shape[1]
    assert widths == [length] * 4
    widths.clear()
    with last_layer_at(mllm.network, read):
        narrow = mllm.network(**tensors, logits_to_keep=read, use_cache=False).logits
    assert sorted(widths) == [2, 2, 2, length], "keys are needed everywhere"
    torch.testing.assert_close(narrow[:, -1], plain[:, -1], atol=TOLERANCE, rtol=0)
    torch.testing.assert_close(narrow[0], plain[0], atol=TOLERANCE, rtol=0)
    widths.clear()
    mllm.network(**tensors, logits_to_keep=read, use_cache=False)
    assert widths == [length] * 4, "nothing is left behind"
    for hook in watching:
        hook.remove()


def test_prompts_behind_one_prefix_are_those_of_each_alone(mllm: Mllm) -> None:
    picture = noise_pictures()[0]
    prompts = [Pair(text, "a caption", picture).prompt() for text in ("What is it?", "Why <image> </s>?")]
    shared = mllm.share(prompts, answer_tokens=1)
    assert shared is not None
    for prompt, ending in zip(prompts, shared.endings, strict=True):
        complete = mllm.prepare([prompt], answer_tokens=1).tensors["input_ids"][0].tolist()
        assert shared.prefix + ending == complete
    assert len(shared.prefix) > max(map(len, shared.endings)) / 2
    assert shared.endings[0][0] != shared.endings[1][0], "the prefix is as long as it can be"


def test_a_prompt_that_must_be_cut_is_scored_alone_and_says_so(mllm: Mllm) -> None:
    picture = noise_pictures()[0]
    long = Pair("What is it?", "Harlow Lighthouse. " * 2000, picture)
    short = Pair("What is it?", "Harlow", picture)
    scores = Reranker(mllm).relevance([long, short, short], batch_size=2)
    assert "caption cut" in (scores[0].note or "")
    # Two rows of one batch are equal up to rounding, as everywhere here.
    assert scores[1].value == pytest.approx(scores[2].value, abs=TOLERANCE)
    assert scores[1].note is scores[2].note is None


def test_picture_caption_and_question_all_matter(mllm: Mllm) -> None:
    reranker = Reranker(mllm)
    pair = varied_pairs()[0]
    changed = [
        pair,
        replace(pair, picture=noise_pictures(seed=1)[0]),
        replace(pair, caption="Somewhere else"),
        replace(pair, question="Is it red?"),
    ]
    values = [score.value for score in reranker.relevance(changed, batch_size=1)]
    assert all(abs(value - values[0]) > 100 * TOLERANCE for value in values[1:])


def test_answers_from_one_and_two_pictures_do_not_depend_on_the_batch(mllm: Mllm) -> None:
    generator = Generator(mllm)
    pictures = noise_pictures()
    requests = [
        AnswerRequest("Which one?", ("Harlow, 1932",), (pictures[0],)),
        AnswerRequest("Which is older?", ("Ansel", "Harlow Lighthouse"), (pictures[1], pictures[2])),
        AnswerRequest("Is it day?", (None, "Vohefan"), (pictures[3], pictures[4])),
        AnswerRequest("What colour?", (None,), (pictures[5],)),
    ]
    together = generator.answer(requests, max_tokens=5, with_captions=True, batch_size=4)
    for request, answer in zip(requests, together, strict=True):
        [alone] = generator.answer([request], max_tokens=5, with_captions=True, batch_size=1)
        assert answer.text == alone.text
        assert answer.confidence == pytest.approx(alone.confidence, abs=TOLERANCE)
        assert 0 < answer.confidence <= 1


def test_answers_from_the_same_pictures_are_those_of_each_alone(mllm: Mllm) -> None:
    """Behind one prefix for each set of pictures; their lengths differ, and so do those of the questions."""
    generator = Generator(mllm)
    assert generator.shares_prefixes
    pictures = noise_pictures()
    evidence = [
        (("Harlow, 1932",), (pictures[0],)),
        (("Ansel", "Harlow Lighthouse, Port Ansel, 1932"), (pictures[1], pictures[2])),
        (("Ansel", None), (pictures[1], pictures[2])),
        (("Another caption of the same picture",), (pictures[0],)),
    ]
    texts = ["Which one?", "Is it night?", "How many windows does the red lighthouse in Port Ansel have?"]
    requests = [AnswerRequest(text, *shown) for text in texts for shown in evidence[:3]]
    requests.append(AnswerRequest(texts[0], *evidence[3]))
    alone = [generator.answer([r], max_tokens=5, with_captions=True, batch_size=1)[0] for r in requests]
    for batch_size in (2, 20):
        together = generator.answer(requests, max_tokens=5, with_captions=True, batch_size=batch_size)
        assert [answer.text for answer in together] == [answer.text for answer in alone]
        for answer, right in zip(together, alone, strict=True):
            assert answer.confidence == pytest.approx(right.confidence, abs=TOLERANCE)
    assert len({round(answer.confidence, 6) for answer in alone}) == len(requests), "or parity shows nothing"


def test_rows_whose_answer_has_ended_leave_the_batch(llava: Mllm) -> None:
    picture = noise_pictures()[0]
    requests = [AnswerRequest(f"Is it {'very ' * n}old?", ("a caption",), (picture,)) for n in range(8)]
    prompts = [Prompt(r.question, r.captions, r.pictures, answer_prompt) for r in requests]
    answers = llava.generate(llava.prepare(prompts, 6), 6).tokens.tolist()

    def lengths_with(end: int) -> list[int]:
        return [row.index(end) if end in row else 6 for row in answers]

    # So that the answers differ in length, and none is empty.
    llava.network.generation_config.eos_token_id = max(
        (token for row in answers for token in row if min(lengths_with(token)) > 0),
        key=lambda token: len(set(lengths_with(token))),
    )
    assert Generator(llava).shares_prefixes
    rows: list[int] = []
    watched = llava.network.get_decoder().register_forward_pre_hook(
        lambda _, __, named: rows.append(len(named["inputs_embeds"])), with_kwargs=True
    )
    after = Generator(llava).answer(requests, max_tokens=6, with_captions=True, batch_size=8)
    watched.remove()
    alone = [Generator(llava).answer([r], max_tokens=6, with_captions=True, batch_size=1)[0] for r in requests]
    assert [answer.text for answer in after] == [answer.text for answer in alone]
    lengths = [answer.tokens for answer in after]
    assert min(lengths) < max(lengths), "one ends earlier, or nothing is shown"
    assert rows[0] == 1, "the prefix, once"
    assert rows[1:] == [sum(length >= step for length in lengths) for step in range(len(rows) - 1)]


def test_the_second_picture_of_an_answer_is_seen(mllm: Mllm) -> None:
    pictures = noise_pictures()
    request = AnswerRequest("Which is older?", ("Ansel", "Harlow"), (pictures[0], pictures[1]))
    changed = replace(request, pictures=(pictures[0], noise_pictures(seed=1)[1]))
    first, second = Generator(mllm).answer([request, changed], max_tokens=3, with_captions=True, batch_size=2)
    assert abs(first.confidence - second.confidence) > 10 * TOLERANCE


def test_control_tokens_of_users_are_text(mllm: Mllm) -> None:
    """A caption cannot smuggle in a picture's place or end the turn."""
    control = mllm.tokenizer.all_special_tokens
    hostile = "".join(control) + "<image><image><|im_end|></s><IMG_CONTEXT><|image_pad|>"
    pair = replace(varied_pairs()[0], caption=hostile, question=hostile)
    plain = replace(pair, caption="", question="")
    [score] = Reranker(mllm).relevance([pair], batch_size=1)
    assert 0 <= score.value <= 1
    prompts = [Prompt(p.question, (p.caption,), (p.picture,), rerank_prompt) for p in (pair, plain)]
    rows = mllm.prepare(prompts, answer_tokens=1).tensors["input_ids"]
    special = set(mllm.tokenizer.all_special_ids) - {mllm.tokenizer.pad_token_id}
    counts = [sum(token in special for token in row) for row in rows.tolist()]
    assert counts[0] == counts[1]


def test_a_caption_too_long_for_the_window_is_cut_and_said_so(mllm: Mllm) -> None:
    reranker = Reranker(mllm)
    pair = varied_pairs()[0]
    long = replace(pair, caption="Harlow Lighthouse, Port Ansel. " * 2000)
    alone = reranker.relevance([long], batch_size=1)[0]
    scores = reranker.relevance([pair, long, replace(long, question="How many? " * 2000)], batch_size=3)
    assert scores[0].note is None
    assert "caption cut from" in str(scores[1].note)
    assert "question" not in str(scores[1].note)
    assert "caption cut from" in str(scores[2].note)
    assert "question cut from" in str(scores[2].note)
    assert scores[1].value == pytest.approx(alone.value, abs=TOLERANCE)


def test_a_cut_prompt_fills_the_window_and_keeps_its_instruction(llava: Mllm) -> None:
    picture = noise_pictures()[0]
    llava.context_tokens = 150
    prompt = Prompt("How many windows?", ("Harlow Lighthouse, " * 100,), (picture,), rerank_prompt)
    inputs = llava.prepare([prompt], answer_tokens=10)
    text = llava.tokenizer.decode(inputs.tensors["input_ids"][0])
    assert 130 <= inputs.tensors["input_ids"].shape[1] <= 140
    assert text.count("<image>") == 16
    assert "Image Caption: Harlow Lighthouse" in text
    assert text.endswith("\nQuestion: How many windows?\n" + INSTRUCTION + " ASSISTANT:")


def test_pictures_that_alone_exceed_the_window_are_told(llava: Mllm) -> None:
    llava.context_tokens = 30
    with pytest.raises(ScoreRejected, match=r"the window of tiny-llava@.* holds 29"):
        Reranker(llava).relevance([Pair("Which?", "a caption", noise_pictures()[0])], batch_size=1)


def test_a_prompt_without_a_picture_is_refused(llava: Mllm) -> None:
    request = AnswerRequest("Which?", (), ())
    with pytest.raises(ScoreRejected, match="has no picture"):
        Generator(llava).answer([request], max_tokens=2, with_captions=True, batch_size=1)


def test_captions_give_way_before_the_question_and_the_longest_first(llava: Mllm) -> None:
    tokenizer = llava.tokenizer
    words = "one two three four five six seven eight nine ten"
    prompt = Prompt("How many?", (words, "short"), (), answer_prompt)
    sizes = [len(tokenizer(text)["input_ids"]) for text in (words, "short", "How many?")]

    slightly, note = shorten(prompt, 3, tokenizer)
    assert slightly.captions[1] == "short"
    assert slightly.question == "How many?"
    assert words.startswith(str(slightly.captions[0]))
    assert note == f"caption 1 cut from {sizes[0]} to {sizes[0] - 3} tokens"

    nothing, note = shorten(prompt, sum(sizes) + 5, tokenizer)
    assert nothing.captions == ("", "")
    assert nothing.question == ""
    assert f"question cut from {sizes[2]} to 0 tokens" in str(note)


def test_defusing_leaves_other_text_alone_and_no_token_standing() -> None:
    control = ControlTokens(["<image>", "<im", "</s>", "\n", " "])
    prompt = Prompt("a < b\n</s>", ("<<image>image>", None), (), answer_prompt)
    defused = control.defuse(prompt)
    assert defused.question == "a < b\n< /s>"
    assert defused.captions[1] is None
    assert not any(token in str(defused.captions[0]) for token in ("<image>", "<im"))


def test_a_processor_without_a_chat_template_is_refused(tmp_path: Path) -> None:
    save_family("llava", tmp_path)
    (tmp_path / "chat_template.jinja").unlink()
    with pytest.raises(ModelUnavailable, match="no chat template"):
        load_folder(tmp_path, tmp_path / "home")


def test_a_template_that_drops_pictures_is_refused(tmp_path: Path) -> None:
    save_family("llava", tmp_path)
    (tmp_path / "chat_template.jinja").write_text("{% for message in messages %}hello{% endfor %}")
    with pytest.raises(ModelUnavailable, match="no place for a picture"):
        load_folder(tmp_path, tmp_path / "home")


def test_weights_with_gaps_are_refused(tmp_path: Path) -> None:
    save_family("llava", tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    gap = next(name for name in weights if "q_proj" in name and "language_model" in name)
    save_file(
        {name: value for name, value in weights.items() if name != gap},
        tmp_path / "model.safetensors",
        {"format": "pt"},
    )
    with pytest.raises(ModelUnavailable, match="its weights lack"):
        load_folder(tmp_path, tmp_path / "home")


@pytest.mark.parametrize("file", ["model.safetensors", "config.json", "tokenizer.json"])
def test_damaged_files_are_told(tmp_path: Path, file: str) -> None:
    save_family("llava", tmp_path)
    (tmp_path / file).write_bytes((tmp_path / file).read_bytes()[:100])
    with pytest.raises(ModelUnavailable):
        load_folder(tmp_path, tmp_path / "home")


def test_sampling_of_a_checkpoint_is_not_taken_over(tmp_path: Path) -> None:
    """Shipped checkpoints sample and punish repetition; a greedy answer must not depend on that."""
    save_family("qwen2_vl", tmp_path)
    plain = load_folder(tmp_path, tmp_path / "home")
    shipped = json.loads((tmp_path / "generation_config.json").read_text())
    shipped |= {"do_sample": True, "temperature": 5.0, "repetition_penalty": 3.0, "top_p": 0.1}
    (tmp_path / "generation_config.json").write_text(json.dumps(shipped))
    sampling = load_folder(tmp_path, tmp_path / "home")
    request = AnswerRequest("Which?", ("Harlow",), (Image.new("RGB", (40, 40), "red"),))
    answers = [
        Generator(mllm).answer([request], max_tokens=8, with_captions=True, batch_size=1) for mllm in (plain, sampling)
    ]
    assert answers[0] == answers[1]


def test_the_papers_profile_pads_pictures_to_a_square(tmp_path: Path) -> None:
    """What lies outside the middle square is seen only by a model whose pictures are padded."""
    folder = save_family("llava", tmp_path / "llava")
    settings = Settings(home=tmp_path / "home", device="cpu")
    wide = Image.new("RGB", (90, 30), "white")
    marked = wide.copy()
    marked.paste("black", (0, 0, 20, 30))
    seen = {}
    for padded in (False, True):
        profile = Profile("tiny", RetrieverSource(f"{LOCAL_DIR}{folder}"), str(folder), pad_pictures=padded)
        mllm = load_mllm(profile, plan_device(settings), settings)
        pixels = [mllm.prepare([Pair("Why?", None, p).prompt()], 1).tensors["pixel_values"] for p in (wide, marked)]
        assert pixels[0].shape == pixels[1].shape == (1, 3, 28, 28)
        seen[padded] = not torch.equal(*pixels)
    assert seen == {False: False, True: True}
    other = save_family("qwen2_vl", tmp_path / "qwen")
    profile = Profile("tiny", RetrieverSource(f"{LOCAL_DIR}{other}"), str(other), pad_pictures=True)
    with pytest.raises(ModelUnavailable, match=r"pad_pictures is for LLaVA-1\.5, not for qwen2_vl"):
        load_mllm(profile, plan_device(settings), settings)
