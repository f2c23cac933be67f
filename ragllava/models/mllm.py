"""The multimodal LLM of any supported family, behind its own processor and chat template.

Reranker and generator stand on one `Mllm`: one base in memory. What differs between families stays in here: how
pictures are nested, who computes the position ids, what the template puts around a prompt.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors import SafetensorError

from ragllava.errors import ModelUnavailable, ScoreRejected
from ragllava.models.checks import Manifest, check_model_folder, manifest, model_version
from ragllava.models.device import DevicePlan, rows_that_fit, to_device
from ragllava.models.fitting import ControlTokens, Prompt, shorten
from ragllava.models.prefix.read_columns import asking_for, reading_only
from ragllava.models.prefix.shared_answers import continue_greedily
from ragllava.models.prefix.shared_prefix import SharedPrompts, SharingWay, common_length
from ragllava.models.profiles import Profile, find_model
from ragllava.prompts import PromptParts
from ragllava.settings import Settings

log = logging.getLogger(__name__)

# Cutting changes how the neighbours of the cut fall into tokens, by one or two; so a fit is checked and repeated.
_FITTING_ROUNDS = 5
_CPU_TOKENS = 1_024  # of a pass: five rows of 640 tokens were 10 % slower than one after the other
_BY_TOKEN = ("input_ids", "mm_token_type_ids", "token_type_ids")  # one number for each token
_TRIAL = PromptParts((None, "a trial"))
# What transformers raises over damaged or unknown files.
_LOAD_ERRORS = (RuntimeError, ValueError, OSError, KeyError, ImportError, TypeError, AttributeError)


@dataclass(frozen=True, slots=True)
class ModelInputs:
    """A left-padded batch, ready for the network. `notes` has one entry a row: what was cut, or None."""

    tensors: dict[str, Any]
    notes: list[str | None]


@dataclass(frozen=True, slots=True)
class FittedPrompts:
    """What the model is asked in the end: harmless, and short enough; `inputs` are these prompts as tensors."""

    prompts: list[Prompt]
    inputs: ModelInputs


@dataclass(frozen=True, slots=True)
class Generated:
    """Greedy answers on the CPU: `tokens` (B, T) int64, the log-probability of each (B, T) float32, and the logits
    of the first step (B, vocabulary) float32."""

    tokens: torch.Tensor
    log_probabilities: torch.Tensor
    first_logits: torch.Tensor


class Mllm:
    """One multimodal LLM. `version` names its weights; `context_tokens` is its window, answer included."""

    def __init__(
        self, network: Any, processor: Any, version: str, plan: DevicePlan, files: Manifest | None = None
    ) -> None:
        """Take a loaded network and its processor; `files` is what they were read from, with hashes.

        Raises ModelUnavailable when they cannot serve.
        """
        self.network = network
        self.files = files or {}
        self.version = version
        self.tokenizer = processor.tokenizer
        self.processor = processor
        self._plan = plan
        self._check_processor()
        self._prepare_tokenizer()
        self._image_token_id: int = processor.image_token_id
        self._control_tokens = ControlTokens(self._control_texts())
        self._makes_own_positions = hasattr(network.model, "get_rope_index") or (
            "position_ids" not in inspect.signature(network.forward).parameters
        )
        longest = network.config.get_text_config().max_position_embeddings
        self.context_tokens: int = min(longest, self.tokenizer.model_max_length)

    def render(self, parts: PromptParts) -> str:
        """The prompt as the family's chat template writes it, up to where the answer begins."""
        content = [{"type": "image"} if part is None else {"type": "text", "text": part} for part in parts.parts]
        conversation = [{"role": "user", "content": content}]
        rendered: str = self.processor.apply_chat_template(conversation, add_generation_prompt=True)
        return rendered

    def prepare(self, prompts: Sequence[Prompt], answer_tokens: int) -> ModelInputs:
        """Tokens and pixels of a batch, each row short enough to leave room for `answer_tokens`; see `fit`."""
        return self.fit(prompts, answer_tokens).inputs

    def harmless(self, prompt: Prompt) -> Prompt:
        """The prompt without the control tokens that users wrote."""
        return self._control_tokens.defuse(prompt)

    def fit(self, prompts: Sequence[Prompt], answer_tokens: int) -> FittedPrompts:
        """The prompts of a batch, each short enough to leave room for `answer_tokens`, and their tensors.

        Captions, then questions, are cut where the window demands it. Raises ScoreRejected when a row has no
        picture or no image token, or when pictures and instruction alone do not fit.
        """
        if not all(prompt.pictures for prompt in prompts):
            raise ScoreRejected("a prompt without a picture: there is nothing to look at")
        window = self.context_tokens - answer_tokens
        harmless = [self.harmless(prompt) for prompt in prompts]
        fitted, excess = list(harmless), [0] * len(prompts)
        notes: list[str | None] = [None] * len(prompts)
        for _ in range(_FITTING_ROUNDS):
            tensors = self._process(fitted)
            lengths = tensors["attention_mask"].sum(dim=1).tolist()
            too_long = [row for row, length in enumerate(lengths) if length > window]
            if not too_long:
                self._check_image_tokens(tensors)
                return FittedPrompts(fitted, ModelInputs(self._with_positions(tensors), notes))
            for row in too_long:
                excess[row] += lengths[row] - window
                fitted[row], notes[row] = shorten(harmless[row], excess[row], self.tokenizer)
        raise ScoreRejected(
            f"the pictures and the instruction need {lengths[too_long[0]]} tokens, but the window of {self.version} "
            f"holds {window} beside the answer; use fewer pictures a question (top_n) or a model with a longer window"
        )

    def share(self, prompts: Sequence[Prompt], answer_tokens: int) -> SharedPrompts | None:
        """Prompts that all show the same pictures, as one prefix and an ending for each.

        None where that cannot be done: a prompt is too long for the window and must be cut, or the text behind the
        last picture does not fall into the same tokens as it does in the whole prompt, or what stands before it is not
        the same in all. The pictures are prepared once.
        """
        harmless = [self.harmless(prompt) for prompt in prompts]
        rendered = [self.render(prompt.parts()).rpartition(self.processor.image_token) for prompt in harmless]
        if len({before for before, _, _ in rendered}) > 1:
            return None
        tensors = self._process(harmless[:1])
        whole: list[int] = tensors["input_ids"][0].tolist()
        tails = [self._tokens_behind_picture(tail) for _, _, tail in rendered]
        if whole[-len(tails[0]) :] != tails[0]:
            return None
        before = whole[: -len(tails[0])]
        if len(before) + max(map(len, tails)) > self.context_tokens - answer_tokens:
            return None
        self._check_image_tokens(tensors)
        common = common_length(tails)
        return SharedPrompts(before + tails[0][:common], [tail[common:] for tail in tails], tensors)

    @torch.inference_mode()
    def shared_logits(
        self, shared: SharedPrompts, way: SharingWay, batch_size: int, tokens: Sequence[int]
    ) -> torch.Tensor:
        """As `last_logits`, of all endings behind their common prefix, `batch_size` in a pass."""
        with asking_for(self.network, tokens):
            logits = way(self.network, shared, self._plan, batch_size)
        if self._plan.device.type == "cuda":
            torch.cuda.synchronize(self._plan.device)  # whoever compares the ways must see their time
        return logits

    def rows_that_fit(self, tokens: float, wanted: int) -> int:
        """How many rows of so many tokens fit into half of the memory that is free now: 1 to `wanted`."""
        return rows_that_fit(self.network.config.get_text_config(), self._plan, tokens, wanted)

    def rows_of_a_pass(self, prompts: Sequence[Prompt], wanted: int) -> int:
        """How many such prompts to take in one pass, each with its own picture: 1 to `wanted`.

        As many as fit into memory; on a CPU no more than stay in its caches: larger batches only make it slower.
        """
        tokens = max(self._shortest_prompt, *(prompt.rough_tokens() for prompt in prompts))
        if self._plan.device.type == "cpu":
            wanted = max(1, min(wanted, _CPU_TOKENS // tokens))
        return self.rows_that_fit(tokens, wanted)

    @cached_property
    def _shortest_prompt(self) -> int:
        """Tokens of one about a small picture; where pictures take their own size, larger ones have more."""
        trial = Prompt("Why?", (None,), (Image.new("RGB", (64, 48), "gray"),), lambda question, _: _TRIAL)
        return int(self._process([trial])["input_ids"].shape[1])

    def answer_token_ids(self, words: Sequence[str]) -> list[int]:
        """The token that begins each word when it follows the rendered prompt; all different.

        A template that ends in a blank or a control token (`assistant\\n`) is followed by the bare word, any other
        (`ASSISTANT:`) by a space first, if the tokenizer has such tokens. Raises ModelUnavailable.
        """
        rendered = self.render(_TRIAL)
        bare_first = rendered[-1].isspace() or rendered.endswith(tuple(self.tokenizer.all_special_tokens))
        for space in ("", " ") if bare_first else (" ", ""):
            ids = [self._next_token_id(rendered, space + word) for word in words]
            found = [token for token in ids if token is not None]
            if len(set(found)) == len(words):
                shown = {
                    word: self.tokenizer.convert_ids_to_tokens(token) for word, token in zip(words, found, strict=True)
                }
                log.info("answer tokens of %s: %s", self.version, shown, extra={"action": "answer_tokens_found"})
                return found
        raise ModelUnavailable(f"{self.version}: its tokenizer has no different tokens for {' and '.join(words)}")

    @torch.inference_mode()
    def last_logits(self, inputs: ModelInputs, tokens: Sequence[int]) -> torch.Tensor:
        """Logits of `tokens` at the first answer position, (B, tokens) float32 on the device; one forward pass.

        The padding is moved to the right, where no token looks; so no mask is needed, and attention leaves out the half
        of the square above the diagonal.
        """
        tensors, ends = _left_aligned(inputs.tensors)
        kept, columns = torch.unique(ends, return_inverse=True)
        kept = kept.to(self._plan.device)
        with reading_only(self.network, kept), asking_for(self.network, tokens):
            output = self.network(**to_device(tensors, self._plan), logits_to_keep=kept, use_cache=False)
        logits: torch.Tensor = output.logits[torch.arange(len(columns)), columns]
        return logits

    @torch.inference_mode()
    def generate(self, inputs: ModelInputs, max_tokens: int) -> Generated:
        """Greedy continuation of each row by at most `max_tokens` tokens."""
        tensors = to_device(inputs.tensors, self._plan)
        tensors.pop("position_ids", None)  # `generate` extends them itself, from the attention mask
        output = self.network.generate(
            **tensors, max_new_tokens=max_tokens, return_dict_in_generate=True, output_logits=True
        )
        tokens = output.sequences[:, tensors["input_ids"].shape[1] :]
        steps = [
            logits.float().log_softmax(-1).gather(1, tokens[:, step : step + 1])
            for step, logits in enumerate(output.logits)
        ]
        return Generated(tokens.cpu(), torch.cat(steps, dim=1).cpu(), output.logits[0].float().cpu())

    @torch.inference_mode()
    def generate_shared(self, groups: Sequence[SharedPrompts], max_tokens: int) -> Generated:
        """As `generate`, of the endings of all groups in order, each group's prefix computed once.

        Raises NotImplementedError for a network that cannot.
        """
        found = continue_greedily(self.network, groups, self._plan, max_tokens, self.end_token_ids)
        return Generated(*(part.cpu() for part in found))

    @property
    def end_token_ids(self) -> frozenset[int]:
        """Tokens that end an answer."""
        ends = self.network.generation_config.eos_token_id
        return frozenset([ends] if isinstance(ends, int) else ends)

    def _process(self, prompts: Sequence[Prompt]) -> dict[str, Any]:
        try:
            inputs = self.processor(
                text=[self.render(prompt.parts()) for prompt in prompts],
                images=[list(prompt.pictures) for prompt in prompts],
                padding=True,
                add_special_tokens=self.adds_special_tokens,
                return_tensors="pt",
            )
        except ValueError as error:  # of a picture whose shape it cannot take, say
            raise ScoreRejected(f"the processor of {self.version} refuses its input: {error}") from error
        return dict(inputs)

    @property
    def adds_special_tokens(self) -> bool:
        """Whether the tokenizer puts its begin token before a prompt: not where the template writes it itself."""
        begin = self.tokenizer.bos_token
        return not (begin and self.render(_TRIAL).startswith(begin))

    def _tokens_behind_picture(self, tail: str) -> list[int]:
        # Together with the picture's mark, because some tokenizers treat the beginning of a text in their own way.
        mark = self.processor.image_token
        tokens: list[int] = self.tokenizer(mark + tail, add_special_tokens=False)["input_ids"]
        mark_id = self.tokenizer.convert_tokens_to_ids(mark)
        return tokens[tokens.index(mark_id) + 1 :]

    def _with_positions(self, tensors: dict[str, Any]) -> dict[str, Any]:
        """Positions count from the first real token, so that padding cannot move a score."""
        if self._makes_own_positions:
            return tensors
        positions = (tensors["attention_mask"].cumsum(dim=1) - 1).clamp(min=0)
        return {**tensors, "position_ids": positions}

    def _check_image_tokens(self, tensors: dict[str, Any]) -> None:
        counts = (tensors["input_ids"] == self._image_token_id).sum(dim=1)
        if bool((counts == 0).any()):
            row = int((counts == 0).nonzero()[0])
            raise ScoreRejected(f"row {row} of a batch holds no image token: {self.version} would not see the picture")

    def _check_processor(self) -> None:
        if not self.processor.chat_template:
            raise ModelUnavailable(f"{self.version}: its processor has no chat template; add a chat_template.jinja")
        if not getattr(self.tokenizer, "is_fast", False):
            raise ModelUnavailable(f"{self.version}: its tokenizer has no tokenizer.json, which is needed")
        image_token = getattr(self.processor, "image_token", None)
        if image_token is None or self.render(_TRIAL).count(image_token) != 1:
            raise ModelUnavailable(f"{self.version}: its chat template has no place for a picture")

    def _prepare_tokenizer(self) -> None:
        self.tokenizer.padding_side = "left"  # so that the last position of each row is where its answer begins
        if self.tokenizer.pad_token is None:
            self.tokenizer.pad_token = self.tokenizer.eos_token

    def _control_texts(self) -> list[str]:
        added = [token.content for token in self.tokenizer.added_tokens_decoder.values() if token.special]
        placeholders = [getattr(self.processor, f"{kind}_token", None) for kind in ("image", "video", "audio")]
        return added + [token for token in placeholders if token]

    def _next_token_id(self, rendered: str, continuation: str) -> int | None:
        before = self.tokenizer(rendered, add_special_tokens=False)["input_ids"]
        after = self.tokenizer(rendered + continuation, add_special_tokens=False)["input_ids"]
        grows = len(after) > len(before) and after[: len(before)] == before
        return int(after[len(before)]) if grows else None


def _left_aligned(tensors: dict[str, Any]) -> tuple[dict[str, Any], torch.Tensor]:
    """A left-padded batch with its padding on the right, without mask and positions; and where each row ends, (B,)."""
    mask = tensors["attention_mask"]
    length = mask.shape[1]
    real = mask.sum(dim=1)
    places = (torch.arange(length)[None] + (length - real)[:, None]) % length
    moved = {
        name: value.gather(1, places) if name in _BY_TOKEN else value
        for name, value in tensors.items()
        if name not in ("attention_mask", "position_ids")
    }
    return moved, real - 1


def load_mllm(profile: Profile, plan: DevicePlan, settings: Settings) -> Mllm:
    """Load the profile's MLLM from files on this machine. Raises ModelUnavailable."""
    folder = find_model(profile.mllm, profile, settings)
    check_model_folder(folder.path)
    version = model_version(folder, settings.home / "cache")
    try:
        network, processor = _load(folder.path, plan)
    except (*_LOAD_ERRORS, SafetensorError) as error:
        raise ModelUnavailable(f"the model in {folder.path} cannot be loaded: {error}") from error
    log.info("mllm loaded: %s", version, extra={"action": "mllm_loaded"})
    return Mllm(network, processor, version, plan, manifest(folder.path, settings.home / "cache"))


def load_without_weights(folder: Path, version: str, files: Manifest, plan: DevicePlan) -> Mllm:
    """An Mllm that prepares prompts, while another process that has the weights computes. Raises ModelUnavailable."""
    import transformers

    check_model_folder(folder, needs_weights=False)
    try:
        processor = transformers.AutoProcessor.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
        config = transformers.AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
        with torch.device("meta"):  # shapes, and no memory for them
            network = transformers.AutoModelForImageTextToText.from_config(config, trust_remote_code=False)
        if (folder / "generation_config.json").is_file():
            network.generation_config = transformers.GenerationConfig.from_pretrained(folder, local_files_only=True)
        make_greedy(network)
    except _LOAD_ERRORS as error:
        raise ModelUnavailable(f"the model in {folder} cannot be prepared for: {error}") from error
    return Mllm(network, processor, version, plan, files)


def _load(folder: Path, plan: DevicePlan) -> tuple[Any, Any]:
    from transformers import AutoModelForImageTextToText, AutoProcessor
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    processor = AutoProcessor.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    network, report = AutoModelForImageTextToText.from_pretrained(
        folder,
        dtype=plan.dtype,
        attn_implementation="sdpa",
        trust_remote_code=False,
        use_safetensors=True,
        local_files_only=True,
        output_loading_info=True,
    )
    # transformers would fill the gaps with random numbers and go on.
    if report["missing_keys"]:
        raise ValueError(
            f"its weights lack {sorted(report['missing_keys'])[0]} ({len(report['missing_keys'])} missing)"
        )
    make_greedy(network)
    return network.to(plan.device).eval(), processor


def make_greedy(network: Any) -> None:
    """Checkpoints come with sampling and repetition penalties; a score or answer of ours has neither."""
    from transformers import GenerationConfig

    shipped = network.generation_config
    ends = shipped.eos_token_id if shipped.eos_token_id is not None else network.config.get_text_config().eos_token_id
    if ends is None:
        raise ValueError("its generation_config.json names no eos_token_id")
    first_end = ends if isinstance(ends, int) else ends[0]
    padding = shipped.pad_token_id if shipped.pad_token_id is not None else first_end
    network.generation_config = GenerationConfig(
        do_sample=False, num_beams=1, bos_token_id=shipped.bos_token_id, eos_token_id=ends, pad_token_id=padding
    )
