"""The HTTP client of an OpenAI-compatible endpoint that serves an MLLM, such as vLLM's server.

Beyond OpenAI's protocol it needs vLLM's additions: tokens named by their ids (`return_tokens_as_token_ids`), the
log-probabilities of given tokens (`logprob_token_ids`; a server without it gives the likeliest 20 instead, vLLM's limit
for `top_logprobs`), the begin token as in the checkpoint (`add_special_tokens`).
"""

from __future__ import annotations

import base64
import io
import json
import math
import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import certifi
import urllib3
from PIL import Image
from urllib3.exceptions import HTTPError

from ragllava.errors import RagllavaError, ScoreRejected, ServiceUnavailable, SettingsError
from ragllava.settings import Settings

_CONNECT_S = 3.0
_LIKELIEST = 20  # vLLM refuses more unless it was started with --max-logprobs
_TRY_AGAIN = (429, 502, 503, 504)
_OK, _NOT_FOUND, _TIMEOUT, _SERVER_ERRORS = 200, 404, 408, 500
_KEY_REFUSED = (401, 403)
_TOKEN = "token_id:"  # noqa: S105 - vLLM's form of a token named by its id
_SHOWN_LETTERS = 300  # of the endpoint's message about an error

# All are set, because the server's defaults are those of the checkpoint, which may sample and penalise repetition.
_GREEDY = {
    "temperature": 0.0,
    "top_p": 1.0,
    "repetition_penalty": 1.0,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
    "logprobs": True,
    "top_logprobs": 0,
    "return_tokens_as_token_ids": True,
    "return_token_ids": True,
}


@dataclass(frozen=True, slots=True)
class ServedModel:
    """A model by its name in requests; `parent` is the base of an adapter, None for a base."""

    name: str
    parent: str | None


@dataclass(frozen=True, slots=True)
class GeneratedToken:
    """A token, and the log-probabilities that the endpoint gives for this position: its own, and those of others."""

    token_id: int
    log_probabilities: dict[int, float]


@dataclass(frozen=True, slots=True)
class Completion:
    """The endpoint's answer to a request: at least one token, and the prompt as its tokens.

    `prompt_token_ids` is None if the endpoint does not give them.
    """

    tokens: list[GeneratedToken]
    prompt_tokens: int
    prompt_token_ids: list[int] | None


class Endpoint:
    """The endpoint of the settings. Thread-safe."""

    def __init__(self, settings: Settings) -> None:
        """Connects to nothing yet. Raises SettingsError if no endpoint is set."""
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
            # Decoding is greedy, so requests can be repeated. Longer failures are left to the retries of the shard.
            retries=urllib3.Retry(
                connect=2,
                read=1,
                status=2,
                other=0,
                backoff_factor=0.2,
                status_forcelist=_TRY_AGAIN,
                allowed_methods=None,
                raise_on_status=False,
                # It may be hours, and a thread that sleeps here notices neither cancel nor stop.
                respect_retry_after_header=False,
            ),
        )

    def served(self) -> list[ServedModel]:
        """The models that are served now. Raises ServiceUnavailable, and ScoreRejected for any other answer."""
        answer = self._send("GET", "/v1/models")
        try:
            return [ServedModel(str(card["id"]), card.get("parent")) for card in answer["data"]]
        except (KeyError, TypeError, AttributeError) as error:
            raise ScoreRejected(f"{self.url}/v1/models is not a list of models: {error!r}") from None

    def complete(
        self, model: str, content: Sequence[dict[str, Any]], extra_tokens: Sequence[int] = (), **options: Any
    ) -> Completion:
        """Continue one user turn greedily. `options` are added to the request's body; the log-probabilities of
        `extra_tokens` are given at any rank.

        Raises ServiceUnavailable if a retry may help, ScoreRejected for a prompt that is refused and for an answer
        without the necessary log-probabilities.
        """
        body = {"model": model, "messages": [{"role": "user", "content": content}], **_GREEDY, **options}
        if extra_tokens:
            body |= {"top_logprobs": _LIKELIEST, "logprob_token_ids": list(extra_tokens)}
        answer = self._send("POST", "/v1/chat/completions", body)
        try:
            return _read(answer)
        except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
            raise ScoreRejected(
                f"the answer of {self.url} is incomplete ({error!r}); it must give log-probabilities, and tokens by "
                "their ids, as vLLM does"
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
            raise ScoreRejected(f"the answer of {self.url}{path} is not JSON") from None

    def _refusal(self, status: int, data: bytes, body: dict[str, Any] | None) -> RagllavaError:
        message = _message(data)
        if status in _KEY_REFUSED:
            return ServiceUnavailable(
                f"the endpoint {self.url} refuses the key ({status}): set RAGLLAVA_VLLM_API_KEY to its own"
            )
        if status == _NOT_FOUND:
            # It was there a moment ago. A retry lists the models first, and its error says what to do.
            problem = f"does not serve {body['model']} any more" if body else "has no such page; is it a vLLM server?"
            return ServiceUnavailable(f"the endpoint {self.url} {problem} ({message})")
        if status >= _SERVER_ERRORS or status in (*_TRY_AGAIN, _TIMEOUT):
            return ServiceUnavailable(f"the endpoint {self.url} failed ({status}): {message}")
        advice = ""
        if "At most" in message and "image" in message:
            advice = "; start it with a larger --limit-mm-per-prompt, or use fewer pictures for an answer (top_n)"
        return ScoreRejected(f"the endpoint {self.url} refuses the prompt ({status}): {message}{advice}")


def as_data_url(picture: Image.Image) -> str:
    """The picture as a data URL, without loss."""
    stream = io.BytesIO()
    picture.save(stream, "PNG", compress_level=1)
    return "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode()


def _read(answer: dict[str, Any]) -> Completion:
    entries = answer["choices"][0]["logprobs"]["content"]
    tokens = []
    for entry in entries:
        token_id, log_probability = _log_probability(entry)
        listed = dict(map(_log_probability, entry.get("top_logprobs") or ()))
        tokens.append(GeneratedToken(token_id, {**listed, token_id: log_probability}))
    if not tokens:
        raise ValueError("no token")
    shown = answer.get("prompt_token_ids")
    return Completion(tokens, int(answer["usage"]["prompt_tokens"]), [int(token) for token in shown] if shown else None)


def _log_probability(entry: dict[str, Any]) -> tuple[int, float]:
    log_probability = float(entry["logprob"])
    if not math.isfinite(log_probability):
        raise ValueError(f"a log-probability of {log_probability}")
    text = entry["token"]
    if not text.startswith(_TOKEN):
        raise ValueError(f"the token {text!r} instead of its id")
    return int(text.removeprefix(_TOKEN)), log_probability


def _message(data: bytes) -> str:
    """The message of an error, in OpenAI's form or in any other."""
    text = data.decode(errors="replace")
    with suppress(ValueError, KeyError, TypeError):
        error = json.loads(text)["error"]
        text = str(error["message"] if isinstance(error, dict) else error)
    return " ".join(text.split())[:_SHOWN_LETTERS] or "without a message"
