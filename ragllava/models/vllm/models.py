"""Reranker and generator whose network computes at an endpoint: same prompts, same tokens, same meaning of a score.

The checkpoint's own processor makes the prompts here, and the answers are read here. The endpoint gives the tokens of
every prompt; the answer to a prompt with other tokens is not a score.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, partial

from PIL import Image

from ragllava.errors import ScoreRejected
from ragllava.models.adapters import RoleModel
from ragllava.models.fitting import Prompt, indices_by
from ragllava.models.generator import AnswerRequest, GeneratedAnswer, Generator, as_prompt, read_answer
from ragllava.models.loading import padded
from ragllava.models.mllm import Mllm
from ragllava.models.prefix.trials import Sharing, assume_sharing
from ragllava.models.reranker import Pair, Relevance, Reranker
from ragllava.models.vllm.endpoint import Completion, Endpoint, as_data_url
from ragllava.prompts import PromptParts, answer_prompt

_LARGEST_ERROR = 1e-3  # of a relevance for which only one of Yes and No was listed


@dataclass(frozen=True, slots=True)
class ReadyPrompt:
    """A prompt as it is sent, and the tokens that the endpoint must read; `note` says what was cut."""

    parts: PromptParts
    pictures: tuple[Image.Image, ...]
    tokens: list[int]
    note: str | None


class RemoteModel:
    """One model of an endpoint, and the checkpoint on this machine whose processor makes its prompts."""

    def __init__(self, endpoint: Endpoint, name: str, mllm: Mllm, requests: int) -> None:
        """`name` is the endpoint's name of it; `mllm` needs no weights; `requests` are the most at a time."""
        self.name = name
        self.mllm = mllm
        self._endpoint = endpoint
        self._requests = requests

    def ready_about_one_picture(self, prompts: Sequence[Prompt]) -> list[ReadyPrompt]:
        """Prompts about one picture, each with one answer token; the picture is prepared once if possible."""
        shared = self.mllm.share(prompts, answer_tokens=1)
        if shared is None:
            return [self.ready(prompt, answer_tokens=1) for prompt in prompts]
        return [
            ReadyPrompt(self.mllm.control_tokens.defuse(prompt).parts(), prompt.pictures, shared.prefix + ending, None)
            for prompt, ending in zip(prompts, shared.endings, strict=True)
        ]

    def ready(self, prompt: Prompt, answer_tokens: int) -> ReadyPrompt:
        """The prompt, cut to the window if necessary. Raises ScoreRejected as Mllm.prepare."""
        inputs = self.mllm.prepare([prompt], answer_tokens)
        [tokens] = inputs.tensors["input_ids"].tolist()
        return ReadyPrompt(inputs.prompts[0].parts(), prompt.pictures, tokens, inputs.notes[0])

    def as_sent(self, pictures: Sequence[Image.Image]) -> list[str]:
        """The pictures as data URLs; padded here where the profile says so, because the endpoint does not do it."""
        return [as_data_url(padded(picture, self.mllm.processor)) for picture in pictures]

    def complete(
        self, prompt: ReadyPrompt, pictures: Sequence[str], max_tokens: int, extra_tokens: Sequence[int] = ()
    ) -> Completion:
        """Send the prompt; `pictures` are its pictures as data URLs. Raises as Endpoint.complete, and ScoreRejected if
        the endpoint has read other tokens."""
        urls = iter(pictures)
        completion = self._endpoint.complete(
            self.name,
            [
                {"type": "image_url", "image_url": {"url": next(urls)}}
                if part is None
                else {"type": "text", "text": part}
                for part in prompt.parts
            ],
            extra_tokens,
            max_tokens=max_tokens,
            stop_token_ids=sorted(self.mllm.end_token_ids),
            add_special_tokens=self.mllm.adds_special_tokens,
        )
        if completion.prompt_tokens != len(prompt.tokens) or completion.prompt_token_ids not in (None, prompt.tokens):
            raise ScoreRejected(
                f"{self.name} at {self._endpoint.url} has read a prompt of {completion.prompt_tokens} tokens that are "
                f"not the {len(prompt.tokens)} of {self.mllm.version}; its chat template or its settings for pictures "
                "differ"
            )
        return completion

    @contextmanager
    def threads(self) -> Iterator[ThreadPoolExecutor]:
        """One thread for each request at a time."""
        pool = ThreadPoolExecutor(self._requests, thread_name_prefix="endpoint")
        try:
            yield pool
        finally:
            pool.shutdown(cancel_futures=True)  # after a failure, waiting requests are not sent


class _RemoteRole(RoleModel):
    """A role whose network is a model of the endpoint."""

    def __init__(self, model: RemoteModel, version: str | None = None) -> None:
        """`version` is the registered name of what computes, if it has one."""
        super().__init__(model.mllm, version=version)
        self._model = model


class RemoteReranker(_RemoteRole, Reranker):
    """A Reranker that computes at an endpoint."""

    def relevance(self, pairs: Sequence[Pair], batch_size: int) -> list[Relevance]:
        """One relevance for each pair, in input order; `batch_size` is ignored, because the endpoint makes the batches.

        Pictures are scored concurrently, the questions about one picture in turn, so that all but the first use the
        endpoint's prefix cache. Raises ScoreRejected, ServiceUnavailable.
        """
        del batch_size
        prompts = [pair.prompt() for pair in pairs]
        groups = indices_by(id(prompt.pictures[0]) for prompt in prompts)
        scores: dict[int, Relevance] = {}
        with self._model.threads() as pool:
            # Prompts are prepared in this thread, because tokenizers are not thread-safe.
            results = [
                pool.submit(self._score_in_turn, self._model.ready_about_one_picture([prompts[i] for i in group]))
                for group in groups
            ]
            for group, result in zip(groups, results, strict=True):
                scores.update(zip(group, result.result(), strict=True))
        return [scores[index] for index in range(len(pairs))]

    @cached_property
    def sharing(self) -> Sharing | None:
        """What prompts about one picture share in the endpoint's prefix cache."""
        return assume_sharing(self.mllm)

    def _score_in_turn(self, prompts: Sequence[ReadyPrompt]) -> list[Relevance]:
        pictures = self._model.as_sent(prompts[0].pictures)
        scores = []
        for prompt in prompts:
            [first, *_] = self._model.complete(prompt, pictures, 1, self.yes_no).tokens
            scores.append(Relevance(share_of_yes(first.log_probabilities, *self.yes_no), prompt.note))
        return scores


class RemoteGenerator(_RemoteRole, Generator):
    """A Generator that computes at an endpoint."""

    def answer(
        self,
        requests: Sequence[AnswerRequest],
        *,
        max_tokens: int,
        with_captions: bool,
        batch_size: int,
        with_instruction: bool = True,
    ) -> list[GeneratedAnswer]:
        """One answer for each request, in input order; `batch_size` is ignored, because the endpoint makes the batches.

        Raises ScoreRejected, ServiceUnavailable.
        """
        del batch_size
        write = partial(answer_prompt, with_captions=with_captions, with_instruction=with_instruction)
        with self._model.threads() as pool:
            results = []
            for request in requests:
                prompt = self._model.ready(as_prompt(request, write, with_captions=with_captions), max_tokens)
                results.append((prompt, pool.submit(self._complete, prompt, max_tokens)))
            return [self._read(prompt, result.result()) for prompt, result in results]

    def _complete(self, prompt: ReadyPrompt, max_tokens: int) -> Completion:
        return self._model.complete(prompt, self._model.as_sent(prompt.pictures), max_tokens)

    def _read(self, prompt: ReadyPrompt, completion: Completion) -> GeneratedAnswer:
        tokens = [token.token_id for token in completion.tokens]
        log_probabilities = [token.log_probabilities[token.token_id] for token in completion.tokens]
        return read_answer(self.mllm, tokens, log_probabilities, prompt.note, len(prompt.tokens))


def share_of_yes(log_probabilities: Mapping[int, float], yes: int, no: int) -> float:
    """softmax over the log-probabilities of the two tokens: the share of `yes` (docs/method.md 2).

    An endpoint that lists only the likeliest tokens may omit one of the two. It is then considered as likely as the
    least likely listed token, which is its upper bound. Raises ScoreRejected if that could change the relevance by more
    than 0.001, and if both are missing.
    """
    least = min(log_probabilities.values())
    difference = log_probabilities.get(yes, least) - log_probabilities.get(no, least)
    small = math.exp(-abs(difference))  # cannot overflow
    share = (1.0 if difference >= 0 else small) / (1.0 + small)
    missing = {yes, no} - log_probabilities.keys()
    if len(missing) == 2 or (missing and min(share, 1 - share) > _LARGEST_ERROR):
        raise ScoreRejected(
            f"the endpoint lists {len(log_probabilities)} likely tokens, and "
            f"{'neither' if len(missing) == 2 else 'not both'} of Yes and No among them; use a vLLM with "
            "logprob_token_ids"
        )
    return share
