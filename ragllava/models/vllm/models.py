"""Reranker and generator whose network computes at an endpoint: same prompts, same tokens, same meaning of a score.

What is asked, and how an answer is read, is decided here by the checkpoint's own processor. The endpoint shows the
tokens of every prompt, and what it has read as other tokens is no score.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, partial

from PIL import Image

from ragllava.errors import ScoreRejected
from ragllava.models.fitting import Prompt
from ragllava.models.generator import AnswerRequest, GeneratedAnswer, Generator, as_prompt, read_answer
from ragllava.models.mllm import Mllm
from ragllava.models.prefix.trials import Sharing, assume_sharing
from ragllava.models.reranker import Pair, Relevance, Reranker, ask_trial
from ragllava.models.vllm.endpoint import ChatRequest, Completion, Endpoint, as_data_url
from ragllava.prompts import PromptParts, answer_prompt

_LARGEST_DOUBT = 1e-3  # by which a relevance may be off because only one of Yes and No was listed


@dataclass(frozen=True, slots=True)
class ReadyPrompt:
    """A prompt as it is sent, and the tokens that the model must read; `note` says what was cut."""

    parts: PromptParts
    pictures: tuple[Image.Image, ...]
    tokens: list[int]
    note: str | None


class RemoteModel:
    """One model of an endpoint, asked in the words of the same checkpoint, whose processor is on this machine."""

    def __init__(self, endpoint: Endpoint, name: str, mllm: Mllm, requests: int) -> None:
        """`name` is the endpoint's own; `mllm` needs no weights; `requests` may be on their way at once."""
        self.name = name
        self.mllm = mllm
        self._endpoint = endpoint
        self._requests = requests

    def ready_about_one_picture(self, prompts: Sequence[Prompt]) -> list[ReadyPrompt]:
        """Prompts of at most one answer token that all show the same one picture; it is prepared once if possible."""
        shared = self.mllm.share(prompts, answer_tokens=1)
        if shared is None:
            return [self.ready(prompt, answer_tokens=1) for prompt in prompts]
        return [
            ReadyPrompt(self.mllm.harmless(prompt).parts(), prompt.pictures, shared.prefix + ending, None)
            for prompt, ending in zip(prompts, shared.endings, strict=True)
        ]

    def ready(self, prompt: Prompt, answer_tokens: int) -> ReadyPrompt:
        """The prompt, cut where the window demands it. Raises ScoreRejected where even that does not help."""
        fitted = self.mllm.fit([prompt], answer_tokens)
        [tokens] = fitted.inputs.tensors["input_ids"].tolist()
        return ReadyPrompt(fitted.prompts[0].parts(), prompt.pictures, tokens, fitted.inputs.notes[0])

    def ask(
        self, prompt: ReadyPrompt, pictures: Sequence[str], max_tokens: int, asked: Sequence[int] = ()
    ) -> Completion:
        """Send it; `pictures` are its pictures as data URLs. Raises ScoreRejected where other tokens were read."""
        completion = self._endpoint.complete(
            ChatRequest(
                self.name,
                prompt.parts,
                pictures,
                max_tokens,
                self.mllm.adds_special_tokens,
                sorted(self.mllm.end_token_ids),
                asked,
            )
        )
        if completion.prompt_tokens != len(prompt.tokens) or completion.prompt_token_ids not in (None, prompt.tokens):
            raise ScoreRejected(
                f"{self.name} at {self._endpoint.url} has read a prompt of {completion.prompt_tokens} tokens that are "
                f"not the {len(prompt.tokens)} of {self.mllm.version}; its chat template or its settings of pictures "
                "are others"
            )
        return completion

    @contextmanager
    def threads(self) -> Iterator[ThreadPoolExecutor]:
        """As many as requests may be on their way."""
        pool = ThreadPoolExecutor(self._requests, thread_name_prefix="endpoint")
        try:
            yield pool
        finally:
            pool.shutdown(cancel_futures=True)  # after a failure, what has not begun is not begun


class RemoteReranker(Reranker):
    """A Reranker in every respect but where it computes."""

    def __init__(self, model: RemoteModel, version: str | None = None) -> None:
        """`version` is the registered name of what computes, if it has one."""
        super().__init__(model.mllm, version=version)
        self._model = model

    def relevance(self, pairs: Sequence[Pair], batch_size: int) -> list[Relevance]:
        """One relevance for each pair, in input order; `batch_size` is nothing to the endpoint, which batches itself.

        Pictures are asked about at once, the questions about one picture in turn: so all but the first find the
        beginning of their prompt in the endpoint's prefix cache. Raises ScoreRejected, ServiceUnavailable.
        """
        del batch_size
        prompts = [pair.prompt() for pair in pairs]
        by_picture: dict[int, list[int]] = defaultdict(list)
        for place, prompt in enumerate(prompts):
            by_picture[id(prompt.pictures[0])].append(place)
        scores: dict[int, Relevance] = {}
        with self._model.threads() as pool:
            # Prompts are prepared in this thread: tokenizers are not made for several at once.
            asked = []
            for places in by_picture.values():
                ready = self._model.ready_about_one_picture([prompts[place] for place in places])
                asked.append(pool.submit(self._score_in_turn, ready))
            for places, found in zip(by_picture.values(), asked, strict=True):
                scores.update(zip(places, found.result(), strict=True))
        return [scores[place] for place in range(len(pairs))]

    @cached_property
    def sharing(self) -> Sharing | None:
        """What the endpoint's own prefix cache can share of prompts about one picture."""
        return assume_sharing(self.mllm, ask_trial)

    def _score_in_turn(self, prompts: Sequence[ReadyPrompt]) -> list[Relevance]:
        pictures = [as_data_url(picture) for picture in prompts[0].pictures]
        yes, no = self.yes_no
        found = []
        for prompt in prompts:
            first = self._model.ask(prompt, pictures, max_tokens=1, asked=self.yes_no).tokens[0]
            found.append(Relevance(share_of_yes(first.known, yes, no), prompt.note))
        return found


class RemoteGenerator(Generator):
    """A Generator in every respect but where it computes."""

    def __init__(self, model: RemoteModel, version: str | None = None) -> None:
        """`version` is the registered name of what computes, if it has one."""
        super().__init__(model.mllm, version=version)
        self._model = model

    def answer(
        self, requests: Sequence[AnswerRequest], *, max_tokens: int, with_captions: bool, batch_size: int
    ) -> list[GeneratedAnswer]:
        """One answer for each request, in input order; `batch_size` is nothing to the endpoint, which batches itself.

        Raises ScoreRejected, ServiceUnavailable.
        """
        del batch_size
        write = partial(answer_prompt, with_captions=with_captions)
        with self._model.threads() as pool:
            asked = []
            for request in requests:
                prompt = self._model.ready(as_prompt(request, write, with_captions=with_captions), max_tokens)
                asked.append((prompt, pool.submit(self._ask, prompt, max_tokens)))
            return [self._read(prompt, found.result()) for prompt, found in asked]

    def _ask(self, prompt: ReadyPrompt, max_tokens: int) -> Completion:
        return self._model.ask(prompt, [as_data_url(picture) for picture in prompt.pictures], max_tokens)

    def _read(self, prompt: ReadyPrompt, completion: Completion) -> GeneratedAnswer:
        tokens = [token.token_id for token in completion.tokens]
        return read_answer(self.mllm, tokens, [token.log_probability for token in completion.tokens], prompt.note)


def share_of_yes(known: Mapping[int, float], yes: int, no: int) -> float:
    """softmax over the log-probabilities of the two tokens: the share of `yes` (docs/method.md 2).

    Of an endpoint that lists the likeliest tokens only, one of the two may be missing. It is then taken for as likely
    as the least likely listed, which is the most that it can be. Raises ScoreRejected where that could change the
    relevance by more than 0.001, and where both are missing.
    """
    least = min(known.values())
    share = _sigmoid(known.get(yes, least) - known.get(no, least))
    missing = [token for token in (yes, no) if token not in known]
    if len(missing) == 2 or (missing and min(share, 1 - share) > _LARGEST_DOUBT):
        raise ScoreRejected(
            f"the endpoint lists {len(known)} likely tokens, and {'neither' if len(missing) == 2 else 'not both'} of "
            "Yes and No among them; use a vLLM that knows logprob_token_ids"
        )
    return share


def _sigmoid(difference: float) -> float:
    small = math.exp(-abs(difference))
    return (1.0 if difference >= 0 else small) / (1.0 + small)
