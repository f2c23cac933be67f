"""Single questions with the stock clients: chat completions, their streams, responses."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator
from typing import Any

import openai
import pytest
from openai import OpenAI
from sqlalchemy import func, select

from ragllava.client import Client
from ragllava.stores.schema import jobs, questions
from tests.support.api_server import Front, serving

ASKED: Any = [{"role": "user", "content": "What color is the barn?"}]


@pytest.fixture
def sdk(front: Front) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{front.url}/v1", api_key=front.key("ask", ["stamps"]), max_retries=0) as client:
        yield client


def test_a_chat_completion(sdk: OpenAI, front: Front) -> None:
    said: Any = [{"role": "system", "content": "Be brief."}, *ASKED]
    completion = sdk.chat.completions.create(model="ragllava/stamps", messages=said)
    [choice] = completion.choices
    assert (choice.message.content, choice.message.role, choice.finish_reason) == ("yes", "assistant", "stop")
    assert completion.model == "ragllava/stamps" and completion.usage is None
    assert completion.model_extra is not None and completion.model_extra["evidence"] == []
    with front.office.engine.connect() as connection:
        assert list(connection.scalars(select(questions.c.text))) == ["What color is the barn?"]
        [owner] = connection.scalars(select(jobs.c.owner))
        assert owner == f"key {sdk.api_key.rpartition('_')[0][:12]}"


def test_a_streamed_chat_completion(sdk: OpenAI) -> None:
    chunks: list[Any] = list(sdk.chat.completions.create(model="ragllava/stamps", messages=ASKED, stream=True))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == "yes"
    assert chunks[-1].choices[0].finish_reason == "stop" and chunks[-1].model_extra["evidence"] == []
    assert {chunk.object for chunk in chunks} == {"chat.completion.chunk"}


def test_the_stream_as_it_is_sent(front: Front) -> None:
    body = {"model": "ragllava/stamps", "messages": ASKED, "stream": True}
    status, sent, headers = front.call("POST", "/v1/chat/completions", front.key(), json=body)
    assert status == 200 and headers["content-type"].startswith("text/event-stream")
    events = sent.decode().split("\n\n")
    assert events[-2:] == ["data: [DONE]", ""]
    assert all(json.loads(event.removeprefix("data: "))["id"] for event in events[:-2])


def test_a_response(sdk: OpenAI) -> None:
    response = sdk.responses.create(model="ragllava", input="What?", metadata={"archive": "stamps"})
    assert response.output_text == "yes" and response.status == "completed"
    parts: Any = [{"role": "user", "content": [{"type": "input_text", "text": "What?"}]}]
    assert sdk.responses.create(model="ragllava/stamps", input=parts).output_text == "yes"
    with pytest.raises(openai.BadRequestError, match="not streamed"):
        sdk.responses.create(model="ragllava/stamps", input="What?", stream=True)


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"model": "gpt-4o"}, "does not exist"),
        ({"model": "ragllava"}, r"metadata\.archive"),
        ({"n": 2}, "n must be 1"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "system", "content": "x"}]}, "no message of the role user"),
        ({"messages": [{"role": "user", "content": " "}]}, "empty"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]}, "be text"),
        ({"metadata": {"top_k": "0"}}, "top_k"),
        ({"metadata": {"x" * 65: "0"}}, "metadata"),
    ],
)
def test_what_cannot_be_answered_is_refused(front: Front, changed: dict[str, object], sentence: str) -> None:
    body = {"model": "ragllava/stamps", "messages": ASKED} | changed
    status, answer, headers = front.call("POST", "/v1/chat/completions", front.key(), json=body)
    assert status == 400 and re.search(sentence, answer["error"]["message"])
    assert set(answer["error"]) == {"message", "type", "param", "code"} and headers["x-request-id"]


def test_no_answer_in_time_is_an_error_that_is_not_repeated(front: Front) -> None:
    front.office.may_answer.clear()
    hurried = front.settings.model_copy(update={"api_answer_timeout_s": 0.3})
    with (
        Client(hurried, name="hurried", for_tenants=True) as client,
        serving(client) as url,
        OpenAI(base_url=f"{url}/v1", api_key=front.key(), max_retries=2) as sdk,
        pytest.raises(openai.InternalServerError, match="no answer within"),
    ):
        sdk.chat.completions.create(model="ragllava/stamps", messages=ASKED)
    with front.office.engine.connect() as connection:
        assert connection.execute(select(func.count()).select_from(jobs)).scalar_one() == 1


def test_many_callers_at_once(front: Front) -> None:
    key, found = front.key(), list[str | None]()

    def ask() -> None:
        with OpenAI(base_url=f"{front.url}/v1", api_key=key, max_retries=0, timeout=60) as sdk:
            completion = sdk.chat.completions.create(model="ragllava/stamps", messages=ASKED)
            found.append(completion.choices[0].message.content)

    threads = [threading.Thread(target=ask) for _ in range(24)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == ["yes"] * 24
