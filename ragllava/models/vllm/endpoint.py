"""An OpenAI-compatible endpoint that serves an MLLM, as vLLM's server does: what goes over HTTP, and nothing of models.

Beyond OpenAI's protocol it needs what vLLM adds to it: tokens named by their ids (`return_tokens_as_token_ids`), the
log-probabilities of asked tokens (`logprob_token_ids`; a server that does not know it gives the likeliest 20 instead,
vLLM's own limit for `top_logprobs`), the begin token as the checkpoint has it (`add_special_tokens`).
"""

from __future__ import annotations

import base64
import io
import json
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import certifi
import urllib3
from PIL import Image
from urllib3.exceptions import HTTPError

from ragllava.errors import RagllavaError, ScoreRejected, ServiceUnavailable, SettingsError
from ragllava.prompts import PromptParts
from ragllava.settings import Settings

_CONNECT_S = 3.0
_LIKELIEST = 20  # vLLM refuses more unless it was started with --max-logprobs
_TRY_AGAIN = (429, 502, 503, 504)
_OK, _NOT_FOUND, _TIMEOUT, _SERVER_ERRORS = 200, 404, 408, 500
_KEY_REFUSED = (401, 403)
_TOKEN = "token_id:"  # noqa: S105 - how vLLM writes a token by its id
_SHOWN_LETTERS = 300  # of what the endpoint says about an error


@dataclass(frozen=True, slots=True)
class ServedModel:
    """A model by the name that requests use; `parent` is the base of an adapter, None for a base."""

    name: str
    parent: str | None


@dataclass(frozen=True, slots=True)
class ChatRequest:
    """One user turn to be continued greedily; `pictures` are data URLs, one for each mark in `parts`.

    `asked` are tokens whose log-probability is wanted, wherever they rank.
    """

    model: str
    parts: PromptParts
    pictures: Sequence[str]
    max_tokens: int
    add_special_tokens: bool
    end_token_ids: Sequence[int]
    asked: Sequence[int] = ()


@dataclass(frozen=True, slots=True)
class GeneratedToken:
    """A token, its log-probability, and those known of other tokens in its place, itself among them."""

    token_id: int
    log_probability: float
    known: dict[int, float]


@dataclass(frozen=True, slots=True)
class Completion:
    """What the endpoint made of a request: at least one token, and the prompt as its tokens.

    `prompt_token_ids` is None where the endpoint does not show them.
    """

    tokens: list[GeneratedToken]
    prompt_tokens: int
    prompt_token_ids: list[int] | None


class Endpoint:
    """The endpoint of the settings. Safe to use from several threads at once."""

    def __init__(self, settings: Settings) -> None:
        """Connects to nothing yet. Raises SettingsError where no endpoint is set."""
        if settings.vllm_url is None:
            raise SettingsError("no endpoint: set RAGLLAVA_VLLM_URL")
        self.url = settings.vllm_url
        key = settings.vllm_api_key
        self._headers = {"Authorization": f"Bearer {key.get_secret_value()}"} if key else {}
        self._pool = urllib3.PoolManager(
            timeout=urllib3.Timeout(connect=_CONNECT_S, read=settings.vllm_timeout_s),
            maxsize=settings.vllm_requests,
            block=True,
            cert_reqs="CERT_REQUIRED",
            ca_certs=os.environ.get("SSL_CERT_FILE") or certifi.where(),
            # Greedy answers: to ask twice changes nothing. What lasts longer is for the shard's own retries.
            retries=urllib3.Retry(
                connect=2,
                read=1,
                status=2,
                other=0,
                backoff_factor=0.2,
                status_forcelist=_TRY_AGAIN,
                allowed_methods=None,
                raise_on_status=False,
                # It may ask for hours, and whoever sleeps here sees no cancel and no stop.
                respect_retry_after_header=False,
            ),
        )

    def served(self) -> list[ServedModel]:
        """The models that can be asked now. Raises ServiceUnavailable, ScoreRejected for what is no list of models."""
        answer = self._send("GET", "/v1/models")
        try:
            return [ServedModel(str(card["id"]), card.get("parent")) for card in answer["data"]]
        except (KeyError, TypeError, AttributeError) as error:
            raise ScoreRejected(f"{self.url}/v1/models gives no list of models: {error!r}") from None

    def complete(self, request: ChatRequest) -> Completion:
        """Ask. Raises ServiceUnavailable where asking again may help, ScoreRejected for a prompt that is refused and
        for an answer without the log-probabilities that we need."""
        answer = self._send("POST", "/v1/chat/completions", _body(request))
        try:
            return _read(answer)
        except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
            raise ScoreRejected(
                f"the answer of {self.url} lacks what we read ({error!r}); it must give log-probabilities, and tokens "
                "by their ids, as vLLM does"
            ) from None

    def _send(self, method: str, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        try:
            response = self._pool.request(method, self.url + path, json=body, headers=self._headers)
        except HTTPError as error:
            cause = getattr(error, "reason", None) or error
            raise ServiceUnavailable(
                f"the endpoint {self.url} does not answer ({cause}); start it, or correct RAGLLAVA_VLLM_URL"
            ) from error
        if response.status != _OK:
            raise self._refusal(response.status, response.data, body)
        try:
            answer = json.loads(response.data)
            return answer if isinstance(answer, dict) else {}
        except ValueError:
            raise ScoreRejected(f"{self.url}{path} answers with something that is no JSON") from None

    def _refusal(self, status: int, data: bytes, body: dict[str, Any] | None) -> RagllavaError:
        said = _message(data)
        if status in _KEY_REFUSED:
            return ServiceUnavailable(
                f"the endpoint {self.url} refuses the key ({status}): set RAGLLAVA_VLLM_API_KEY to its own"
            )
        if status == _NOT_FOUND:
            # It was there a moment ago: whoever tries again looks first, and is told what to do.
            what = f"does not serve {body['model']} any more" if body else "has no such page; is it a vLLM server?"
            return ServiceUnavailable(f"the endpoint {self.url} {what} ({said})")
        if status >= _SERVER_ERRORS or status in (*_TRY_AGAIN, _TIMEOUT):
            return ServiceUnavailable(f"the endpoint {self.url} failed ({status}): {said}")
        advice = ""
        if "At most" in said and "image" in said:
            advice = "; start it with a larger --limit-mm-per-prompt, or let an answer rest on fewer pictures (top_n)"
        return ScoreRejected(f"the endpoint {self.url} refuses the prompt ({status}): {said}{advice}")


def as_data_url(picture: Image.Image) -> str:
    """The picture inside an address, pixel by pixel as it is."""
    stream = io.BytesIO()
    picture.save(stream, "PNG", compress_level=1)
    return "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode()


def _body(request: ChatRequest) -> dict[str, Any]:
    pictures = iter(request.pictures)
    content: list[dict[str, Any]] = [
        {"type": "image_url", "image_url": {"url": next(pictures)}} if part is None else {"type": "text", "text": part}
        for part in request.parts.parts
    ]
    body: dict[str, Any] = {
        "model": request.model,
        "messages": [{"role": "user", "content": content}],
        "max_tokens": request.max_tokens,
        # Each by name: the server's defaults are those of the checkpoint, which samples and punishes repetition.
        "temperature": 0.0,
        "top_p": 1.0,
        "repetition_penalty": 1.0,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
        "stop_token_ids": list(request.end_token_ids),
        "add_special_tokens": request.add_special_tokens,
        "logprobs": True,
        "top_logprobs": 0,
        "return_tokens_as_token_ids": True,
        "return_token_ids": True,
    }
    if request.asked:
        body |= {"top_logprobs": _LIKELIEST, "logprob_token_ids": list(request.asked)}
    return body


def _read(answer: dict[str, Any]) -> Completion:
    entries = answer["choices"][0]["logprobs"]["content"]
    tokens = []
    for entry in entries:
        token_id, log_probability = _known(entry)
        known = dict(_known(other) for other in entry.get("top_logprobs") or ())
        tokens.append(GeneratedToken(token_id, log_probability, {**known, token_id: log_probability}))
    if not tokens:
        raise ValueError("no token")
    shown = answer.get("prompt_token_ids")
    return Completion(tokens, int(answer["usage"]["prompt_tokens"]), [int(token) for token in shown] if shown else None)


def _known(entry: dict[str, Any]) -> tuple[int, float]:
    log_probability = float(entry["logprob"])
    if not math.isfinite(log_probability):
        raise ValueError(f"a log-probability of {log_probability}")
    text = entry["token"]
    if not text.startswith(_TOKEN):
        raise ValueError(f"the token {text!r} instead of its id")
    return int(text.removeprefix(_TOKEN)), log_probability


def _message(data: bytes) -> str:
    """What an error says, in OpenAI's form or in any."""
    text = data.decode(errors="replace")
    try:
        said = json.loads(text)
        text = str(said["error"]["message"] if isinstance(said["error"], dict) else said["error"])
    except (ValueError, KeyError, TypeError):
        pass
    return " ".join(text.split())[:_SHOWN_LETTERS] or "without a word"
