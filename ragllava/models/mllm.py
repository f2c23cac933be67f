"""The multimodal LLM of any supported family, behind its own processor and chat template.

Reranker and generator share one `Mllm`: one base in memory. The differences between families are handled here: how
pictures are nested, who computes the position ids, what the template adds to a prompt.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from PIL import Image

from ragllava.errors import ModelUnavailable, ScoreRejected
from ragllava.models.checks import Manifest
from ragllava.models.device import DevicePlan, free_memory, to_device
from ragllava.models.fitting import ControlTokens, Prompt, shorten
from ragllava.models.prefix.read_columns import last_layer_at, logits_of
from ragllava.models.prefix.shared_answers import continue_greedily
from ragllava.models.prefix.shared_prefix import SharedPrompts, SharingWay, common_length
from ragllava.prompts import PromptParts

log = logging.getLogger(__name__)

# A cut changes the tokens beside it, by one or two; so the length is checked again after each cut.
_FITTING_ROUNDS = 5
_CPU_TOKENS = 1_024  # of a pass; five rows of 640 tokens were 10 % slower than one after the other
_BY_TOKEN = ("input_ids", "mm_token_type_ids", "token_type_ids")  # one number for each token
_TRIAL: PromptParts = (None, "a trial")


@dataclass(frozen=True, slots=True)
class ModelInputs:
    """A left-padded batch for the network, made of `prompts`: without control tokens of users, and short enough.

    `notes` has one entry for each row: what was cut, or None.
    """

    tensors: dict[str, Any]
    notes: list[str | None]
    prompts: list[Prompt]


@dataclass(frozen=True, slots=True)
class Generated:
    """Greedy answers, on the CPU: `tokens` (B, T) int64, the log-probability of each (B, T) float32, and the logits
    of the first step (B, vocabulary) float32."""

    tokens: torch.Tensor
    log_probabilities: torch.Tensor
    first_logits: torch.Tensor


class Mllm:
    """One multimodal LLM. `version` names its weights; `context_tokens` is its window, answer included."""

    def __init__(
        self, network: Any, processor: Any, version: str, plan: DevicePlan, files: Manifest | None = None
    ) -> None:
        """`network` and `processor` are loaded; `files` are those they were read from, with their hashes.

        Raises ModelUnavailable when they cannot be used together.
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
        self.control_tokens = ControlTokens(self._control_texts())
        self._makes_own_positions = hasattr(network.model, "get_rope_index") or (
            "position_ids" not in inspect.signature(network.forward).parameters
        )
        longest = network.config.get_text_config().max_position_embeddings
        self.context_tokens: int = min(longest, self.tokenizer.model_max_length)

    def render(self, parts: PromptParts) -> str:
        """The prompt in the family's chat template, up to where the answer begins."""
        content = [{"type": "image"} if part is None else {"type": "text", "text": part} for part in parts]
        conversation = [{"role": "user", "content": content}]
        rendered: str = self.processor.apply_chat_template(conversation, add_generation_prompt=True)
        return rendered

    def prepare(self, prompts: Sequence[Prompt], answer_tokens: int) -> ModelInputs:
        """Tokens and pixels of a batch, each row short enough to leave room for `answer_tokens`.

        Captions, then questions, are cut to the window where necessary. Raises ScoreRejected when a row has no picture
        or no image token, or when pictures and instruction alone do not fit.
        """
        if not all(prompt.pictures for prompt in prompts):
            raise ScoreRejected("a prompt has no picture")
        window = self.context_tokens - answer_tokens
        harmless = [self.control_tokens.defuse(prompt) for prompt in prompts]
        fitted, excess = list(harmless), [0] * len(prompts)
        notes: list[str | None] = [None] * len(prompts)
        for _ in range(_FITTING_ROUNDS):
            tensors = self._process(fitted)
            lengths = tensors["attention_mask"].sum(dim=1).tolist()
            too_long = [row for row, length in enumerate(lengths) if length > window]
            if not too_long:
                self._check_image_tokens(tensors)
                return ModelInputs(self._with_positions(tensors), notes, fitted)
            for row in too_long:
                excess[row] += lengths[row] - window
                fitted[row], notes[row] = shorten(harmless[row], excess[row], self.tokenizer)
        raise ScoreRejected(
            f"the pictures and the instruction need {lengths[too_long[0]]} tokens, but the window of {self.version} "
            f"holds {window} beside the answer; use fewer pictures (top_n) or a model with a longer window"
        )

    def share(self, prompts: Sequence[Prompt], answer_tokens: int) -> SharedPrompts | None:
        """Prompts of the same pictures, as one prefix and an ending for each. The pictures are prepared once.

        None if a prompt is too long for the window and must be cut, if the text behind the last picture has other
        tokens than in the complete prompt, or if the text before it is not the same in all prompts.
        """
        harmless = [self.control_tokens.defuse(prompt) for prompt in prompts]
        rendered = [self.render(prompt.parts()).rpartition(self.processor.image_token) for prompt in harmless]
        if len({before for before, _, _ in rendered}) > 1:
            return None
        tensors = self._process(harmless[:1])
        tokens: list[int] = tensors["input_ids"][0].tolist()
        tails = [self._tokens_behind_picture(tail) for _, _, tail in rendered]
        if tokens[-len(tails[0]) :] != tails[0]:
            return None
        before = tokens[: -len(tails[0])]
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
        with logits_of(self.network, tokens):
            logits = way(self.network, shared, self._plan, batch_size)
        if self._plan.device.type == "cuda":
            torch.cuda.synchronize(self._plan.device)  # the trial measures the time of this call
        return logits

    def rows_that_fit(self, tokens: float, wanted: int) -> int:
        """How many rows of `tokens` tokens fit into half of the memory that is free now: 1 to `wanted`.

        An estimate: a token's keys and values in all layers, and the widest tensors of one layer. `in_batches` handles
        an estimate that is too high.
        """
        config = self.network.config.get_text_config()
        heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
        width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        numbers = 2 * config.num_hidden_layers * heads * width + 8 * config.hidden_size + 3 * config.intermediate_size
        free = free_memory(self._plan.device)
        return max(1, min(wanted, int(free / 2 / (numbers * self._plan.dtype.itemsize * tokens))))

    def rows_of_a_pass(self, prompts: Sequence[Prompt], wanted: int) -> int:
        """How many such prompts to compute in one pass, each with its own picture: 1 to `wanted`.

        As many as fit into memory; on a CPU no more than fit into its caches, because larger batches are slower.
        """
        tokens = max(self._shortest_prompt, *(prompt.rough_tokens() for prompt in prompts))
        if self._plan.device.type == "cpu":
            wanted = max(1, min(wanted, _CPU_TOKENS // tokens))
        return self.rows_that_fit(tokens, wanted)

    @cached_property
    def _shortest_prompt(self) -> int:
        """Tokens of a prompt about a small picture; larger pictures have more in some families."""
        trial = Prompt("Why?", (None,), (Image.new("RGB", (64, 48), "gray"),), lambda question, _: _TRIAL)
        return int(self._process([trial])["input_ids"].shape[1])

    def answer_token_ids(self, words: Sequence[str]) -> list[int]:
        """The first token of each word behind the rendered prompt; all different.

        The bare word follows a template that ends in white space or a control token (`assistant\\n`); a space and the
        word follow any other (`ASSISTANT:`), if the tokenizer has such tokens. Raises ModelUnavailable.
        """
        rendered = self.render(_TRIAL)
        bare_first = rendered[-1].isspace() or rendered.endswith(tuple(self.tokenizer.all_special_tokens))
        for space in ("", " ") if bare_first else (" ", ""):
            ids = [self._next_token_id(rendered, space + word) for word in words]
            tokens = [token for token in ids if token is not None]
            if len(set(tokens)) == len(words):
                shown = dict(zip(words, self.tokenizer.convert_ids_to_tokens(tokens), strict=True))
                log.info("answer tokens of %s: %s", self.version, shown, extra={"action": "answer_tokens_found"})
                return tokens
        raise ModelUnavailable(f"{self.version}: its tokenizer has no different tokens for {' and '.join(words)}")

    @torch.inference_mode()
    def last_logits(self, inputs: ModelInputs, tokens: Sequence[int]) -> torch.Tensor:
        """Logits of `tokens` at the first answer position, (B, tokens) float32 on the device; one forward pass.

        The padding is moved to the right, where causal attention ignores it; so no mask is needed, and attention skips
        the half of the square above the diagonal.
        """
        tensors, ends = _left_aligned(inputs.tensors)
        kept, columns = torch.unique(ends, return_inverse=True)
        kept = kept.to(self._plan.device)
        with last_layer_at(self.network, kept), logits_of(self.network, tokens):
            output = self.network(**to_device(tensors, self._plan), logits_to_keep=kept, use_cache=False)
        logits: torch.Tensor = output.logits[torch.arange(len(columns)), columns]
        return logits

    @torch.inference_mode()
    def generate(self, inputs: ModelInputs, max_tokens: int) -> Generated:
        """Greedy continuation of each row by at most `max_tokens` tokens."""
        tensors = to_device(inputs.tensors, self._plan)
        tensors.pop("position_ids", None)  # `generate` makes them from the attention mask
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

        Raises NotImplementedError for a network whose cache cannot be shared.
        """
        answers = continue_greedily(self.network, groups, self._plan, max_tokens, self.end_token_ids)
        return Generated(*(tensor.cpu() for tensor in answers))

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
        except ValueError as error:  # for example of a picture whose shape is not supported
            raise ScoreRejected(f"the processor of {self.version} refuses its input: {error}") from error
        return dict(inputs)

    @property
    def adds_special_tokens(self) -> bool:
        """Whether the tokenizer adds its begin token to a prompt: not if the template contains it."""
        begin = self.tokenizer.bos_token
        return not (begin and self.render(_TRIAL).startswith(begin))

    def _tokens_behind_picture(self, tail: str) -> list[int]:
        # Behind the image token, because some tokenizers treat the beginning of a text differently.
        image_token = self.processor.image_token
        tokens: list[int] = self.tokenizer(image_token + tail, add_special_tokens=False)["input_ids"]
        return tokens[tokens.index(self.tokenizer.convert_tokens_to_ids(image_token)) + 1 :]

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
            raise ScoreRejected(f"row {row} of a batch has no image token: {self.version} would not see the picture")

    def _check_processor(self) -> None:
        if not self.processor.chat_template:
            raise ModelUnavailable(f"{self.version}: its processor has no chat template; add a chat_template.jinja")
        if not getattr(self.tokenizer, "is_fast", False):
            raise ModelUnavailable(f"{self.version}: its tokenizer has no tokenizer.json; add one")
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
    """The batch with its padding on the right, without mask and positions; and the last token of each row, (B,)."""
    mask = tensors["attention_mask"]
    length = mask.shape[1]
    real = mask.sum(dim=1)
    sources = (torch.arange(length)[None] + (length - real)[:, None]) % length
    moved = {
        name: value.gather(1, sources) if name in _BY_TOKEN else value
        for name, value in tensors.items()
        if name not in ("attention_mask", "position_ids")
    }
    return moved, real - 1
