"""A small server that speaks the protocol of vLLM's, with a model of ours behind it; and that can be made to fail.

It renders and tokenizes by itself, from the messages that it is sent, as vLLM does: so what is compared with it has
gone the whole way over HTTP.
"""

from __future__ import annotations

import base64
import hashlib
import io
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
import uvicorn
from PIL import Image
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from ragllava.models.adapters import Adapter
from ragllava.models.mllm import Mllm
from tests.support.waiting import wait_for

BASE = "the-base"
_STOP_S = 10.0
_MAX_LOGPROBS = 20


@dataclass
class ModelServer:
    """What it serves, and how it behaves; a test changes it while it runs."""

    mllm: Mllm
    adapters: dict[str, Adapter] = field(default_factory=dict)
    names: tuple[str, ...] = (BASE,)
    key: str | None = None
    images_per_prompt: int = 999
    knows_logprob_token_ids: bool = True
    # Given the request's body, an answer instead of the right one; or None for the right one.
    instead: Callable[[dict[str, Any]], Response | None] = lambda _body: None
    changed: Callable[[dict[str, Any]], dict[str, Any]] = lambda answer: answer
    bodies: list[dict[str, Any]] = field(default_factory=list)  # of all requests, in the order that they came in
    most_at_once: int = 0
    url: str = ""
    _here: int = 0
    _counting: threading.Lock = field(default_factory=threading.Lock)
    _computing: threading.Lock = field(default_factory=threading.Lock)

    def models(self, request: Request) -> Response:
        if (refusal := self._refuse_key(request)) is not None:
            return refusal
        cards = [{"id": name, "object": "model", "parent": None} for name in self.names]
        cards += [{"id": name, "object": "model", "parent": self.names[0]} for name in self.adapters]
        return JSONResponse({"object": "list", "data": cards})

    async def chat(self, request: Request) -> Response:
        body = await request.json()
        refusal = self._refuse_key(request)
        return await run_in_threadpool(self._counted, body) if refusal is None else refusal

    def pictures_asked_about(self) -> list[str]:
        """For each request in order, a short name of its first picture."""
        return [hashlib.sha256(_urls(body)[0].encode()).hexdigest()[:8] for body in self.bodies]

    def _counted(self, body: dict[str, Any]) -> Response:
        with self._counting:
            self.bodies.append(body)
            self._here += 1
            self.most_at_once = max(self.most_at_once, self._here)
        try:
            return self.instead(body) or self._complete(body)
        finally:
            with self._counting:
                self._here -= 1

    def _complete(self, body: dict[str, Any]) -> Response:
        if body["model"] not in (*self.names, *self.adapters):
            return _error(404, f"The model `{body['model']}` does not exist.")
        if len(_urls(body)) > self.images_per_prompt:
            return _error(400, f"At most {self.images_per_prompt} image(s) may be provided in one prompt.")
        if body["top_logprobs"] > _MAX_LOGPROBS:
            return _error(400, f"Requested sample logprobs of {body['top_logprobs']}, which is too many")
        adapter = self.adapters.get(body["model"])
        with self._computing, adapter.active() if adapter else nullcontext():
            tensors = self._tensors(body)
            output = self.mllm.network.generate(
                **tensors,
                max_new_tokens=body["max_tokens"],
                eos_token_id=body["stop_token_ids"],
                return_dict_in_generate=True,
                output_logits=True,
            )
        prompt = tensors["input_ids"][0].tolist()
        made = output.sequences[0, len(prompt) :].tolist()
        steps = [logits[0].float().log_softmax(-1) for logits in output.logits]
        content = [self._entry(token, step, body) for token, step in zip(made, steps, strict=True)]
        text = self.mllm.tokenizer.decode(made, skip_special_tokens=True)
        choice = {"index": 0, "message": {"role": "assistant", "content": text}, "logprobs": {"content": content}}
        answer: dict[str, Any] = {"object": "chat.completion", "model": body["model"], "choices": [choice]}
        answer["usage"] = {"prompt_tokens": len(prompt), "completion_tokens": len(made)}
        if body["return_token_ids"]:
            answer["prompt_token_ids"] = prompt
        return JSONResponse(self.changed(answer))

    def _tensors(self, body: dict[str, Any]) -> dict[str, Any]:
        [message] = body["messages"]
        content = [part if part["type"] == "text" else {"type": "image"} for part in message["content"]]
        conversation = [{"role": message["role"], "content": content}]
        text = self.mllm.processor.apply_chat_template(conversation, add_generation_prompt=True)
        pictures = [Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))) for url in _urls(body)]
        special = body["add_special_tokens"]
        return dict(
            self.mllm.processor(text=[text], images=[pictures], add_special_tokens=special, return_tensors="pt")
        )

    def _entry(self, token: int, step: torch.Tensor, body: dict[str, Any]) -> dict[str, Any]:
        asked = body.get("logprob_token_ids") if self.knows_logprob_token_ids else None
        others = asked or step.topk(body["top_logprobs"]).indices.tolist()
        shown = dict.fromkeys([token, *others]) if body["top_logprobs"] else {}
        known = [{"token": f"token_id:{other}", "logprob": float(step[other])} for other in shown]
        return {"token": f"token_id:{token}", "logprob": float(step[token]), "top_logprobs": known}

    def _refuse_key(self, request: Request) -> Response | None:
        if self.key is None or request.headers.get("authorization") == f"Bearer {self.key}":
            return None
        return JSONResponse({"error": "Unauthorized"}, status_code=401)


@contextmanager
def serving(server: ModelServer) -> Iterator[ModelServer]:
    """The server on a port of this machine, for the length of a block."""
    routes = [
        Route("/v1/models", server.models, methods=["GET"]),
        Route("/v1/chat/completions", server.chat, methods=["POST"]),
    ]
    config = uvicorn.Config(Starlette(routes=routes), port=0, log_config=None, lifespan="off")
    listening = config.bind_socket()
    listening.listen()  # who connects before the thread serves waits, and is not refused
    runner = uvicorn.Server(config)
    thread = threading.Thread(target=runner.run, kwargs={"sockets": [listening]}, daemon=True)
    thread.start()
    server.url = f"http://127.0.0.1:{listening.getsockname()[1]}"
    try:
        wait_for("the server to start", lambda: runner.started, 60)
        yield server
    finally:
        runner.should_exit = True
        thread.join(_STOP_S)
        listening.close()


def _urls(body: dict[str, Any]) -> list[str]:
    return [part["image_url"]["url"] for part in body["messages"][0]["content"] if part["type"] == "image_url"]


def _error(status: int, message: str) -> Response:
    return JSONResponse({"error": {"message": message, "type": "BadRequestError", "code": status}}, status_code=status)
