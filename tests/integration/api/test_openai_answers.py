"""Single questions with the stock clients: chat completions, their streams, responses."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from typing import Any

import openai
import pytest
import urllib3
from openai import OpenAI
from sqlalchemy import func, select

from ragllava.client import Client
from ragllava.stores.schema import jobs, questions
from tests.support.api_server import Front, serving

ASKED: Any = [{"role": "user", "content": "What color is the barn?"}]


def picture(*addresses: str) -> dict[str, Any]:
    """A body whose message has these pictures."""
    parts = [{"type": "image_url", "image_url": {"url": address}} for address in addresses]
    return {"messages": [{"role": "user", "content": [{"type": "text", "text": "What?"}, *parts]}]}


@pytest.fixture
def sdk(front: Front) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{front.url}/v1", api_key=front.key("ask", ["stamps"]), max_retries=0) as client:
        yield client


def test_a_chat_completion(sdk: OpenAI, front: Front) -> None:
    said: Any = [{"role": "system", "content": "Be brief."}, *ASKED]
    completion = sdk.chat.completions.create(model="ragllava/stamps", messages=said)
    [choice] = completion.choices
    assert (choice.message.content, choice.message.role, choice.finish_reason) == ("yes", "assistant", "stop")
    assert completion.model == "ragllava/stamps"
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


def test_a_streamed_response(sdk: OpenAI) -> None:
    events: list[Any] = list(sdk.responses.create(model="ragllava/stamps", input="What?", stream=True))
    kinds = [event.type for event in events]
    assert kinds == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
        "response.output_text.delta",
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.completed",
    ]
    assert [event.sequence_number for event in events] == list(range(len(events)))
    whole = events[-1].response
    assert whole.output_text == "yes" and whole.usage.total_tokens == 15 and whole.model_extra["evidence"] == []


def test_a_response_followed_by_the_sdk(sdk: OpenAI) -> None:
    with sdk.responses.stream(model="ragllava/stamps", input="What?") as stream:
        text = "".join(event.delta for event in stream if event.type == "response.output_text.delta")
        final = stream.get_final_response()
    assert text == final.output_text == "yes" and final.status == "completed"


def test_tokens_are_stated(sdk: OpenAI) -> None:
    completion = sdk.chat.completions.create(model="ragllava/stamps", messages=ASKED)
    assert completion.usage is not None
    assert (completion.usage.prompt_tokens, completion.usage.completion_tokens) == (12, 3)
    chunks: list[Any] = list(
        sdk.chat.completions.create(
            model="ragllava/stamps", messages=ASKED, stream=True, stream_options={"include_usage": True}
        )
    )
    assert chunks[-1].usage.total_tokens == 15 and chunks[-1].choices == []
    response = sdk.responses.create(model="ragllava/stamps", input="What?")
    assert response.usage is not None and (response.usage.input_tokens, response.usage.output_tokens) == (12, 3)


def picture_of(front: Front) -> str | None:
    with front.office.engine.connect() as connection:
        picture: str | None = connection.scalar(
            select(questions.c.picture).order_by(questions.c.job_id.desc()).limit(1)
        )
        return picture


def test_a_question_with_a_picture(sdk: OpenAI, front: Front) -> None:
    data = b"\x89PNG of no size"
    sha256 = hashlib.sha256(data).hexdigest()
    url = f"data:image/png;base64,{base64.b64encode(data).decode()}"
    text: Any = {"type": "text", "text": "What is it?"}
    said: Any = [{"role": "user", "content": [text, {"type": "image_url", "image_url": {"url": url}}]}]
    completion = sdk.chat.completions.create(model="ragllava/stamps", messages=said)
    assert completion.choices[0].message.content == "yes" and picture_of(front) == sha256
    assert front.office.objects.get_content(sha256) == data
    file = sdk.files.create(file=("ship.png", data), purpose="vision")
    for part in ({"type": "input_image", "file_id": file.id}, {"type": "input_image", "image_url": url}):
        asked: Any = [{"role": "user", "content": [{"type": "input_text", "text": "What is it?"}, part]}]
        assert sdk.responses.create(model="ragllava/stamps", input=asked).output_text == "yes"
        assert picture_of(front) == sha256
    by_file: Any = [{"role": "user", "content": [text, {"type": "file", "file": {"file_id": file.id}}]}]
    sdk.chat.completions.create(model="ragllava/stamps", messages=by_file)
    assert picture_of(front) == sha256


def test_pictures_of_questions_count_as_stored(front: Front) -> None:
    key = front.key("ask", ["stamps"], stored_mib=1)
    stored, address = (f"data:image/png;base64,{base64.b64encode(bytes([n]) * 600_000).decode()}" for n in (1, 2))
    for _ in range(2):  # the second time, nothing more is stored
        body = {"model": "ragllava/stamps"} | picture(stored)
        assert front.call("POST", "/v1/chat/completions", key, json=body)[0] == 200
    body = {"model": "ragllava/stamps"} | picture(address)
    status, answer, _ = front.call("POST", "/v1/chat/completions", key, json=body)
    assert status == 429 and "1 MiB" in answer["error"]["message"]
    rows: dict[str, Any] = {"archive": "stamps", "questions": [{"question": "What?", "picture": address}]}
    assert front.call("POST", "/v1/jobs", key, json=rows)[0] == 429
    # Under any name of the column, in a line of OpenAI's format, and in a file.
    for row in ({"question": "What?", "Picture": address}, {"url": "/v1/chat/completions", "body": body}):
        assert front.call("POST", "/v1/jobs", key, json={"archive": "stamps", "questions": [row]})[0] == 429
    fields: dict[str, Any] = {"archive": "stamps", "file": ("q.jsonl", json.dumps(rows["questions"][0]))}
    sent = urllib3.request(
        "POST", f"{front.url}/v1/jobs/file", fields=fields, headers={"Authorization": f"Bearer {key}"}
    )
    assert sent.status == 429


def test_pictures_that_are_searched_by_count_as_stored(front: Front) -> None:
    key = front.key("ask", ["stamps"], stored_mib=1)
    first, second, third = (
        f"data:image/png;base64,{base64.b64encode(bytes([n]) * 600_000).decode()}" for n in (3, 4, 5)
    )

    def status(path: str, address: str) -> int:
        documents = [{"image": address}]
        bodies = {"/v1/archives/stamps/search": {"image_url": address}}
        body: dict[str, Any] = bodies.get(path, {"model": "ragllava/stamps", "query": "x", "documents": documents})
        return front.call("POST", path, key, json=body)[0]

    search, rerank = "/v1/archives/stamps/search", "/rerank"
    assert (status(search, first), status(search, first), status(search, second)) == (200, 200, 429)
    assert (status(rerank, first), status(rerank, third)) == (200, 429)


def test_a_picture_of_many_lines_counts_once(front: Front) -> None:
    key = front.key("ask", ["stamps"], stored_mib=1)
    address = f"data:image/png;base64,{base64.b64encode(bytes([7]) * 600_000).decode()}"
    rows = [{"question": f"What {number}?", "picture": address} for number in range(3)]
    assert front.call("POST", "/v1/jobs", key, json={"archive": "stamps", "questions": rows})[0] == 201


def test_a_file_of_another_tenant_is_no_picture(sdk: OpenAI, front: Front) -> None:
    with OpenAI(base_url=f"{front.url}/v1", api_key=front.key("ask", ["coins"]), max_retries=0) as other:
        file = other.files.create(file=("ship.png", b"x"), purpose="vision")
    part = {"type": "image_url", "image_url": {"url": file.id}}
    said: Any = [{"role": "user", "content": [{"type": "text", "text": "?"}, part]}]
    with pytest.raises(openai.NotFoundError):
        sdk.chat.completions.create(model="ragllava/stamps", messages=said)


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"model": "gpt-4o"}, "does not exist"),
        ({"model": "ragllava"}, r"metadata\.archive"),
        ({"n": 2}, "n must be 1"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "system", "content": "x"}]}, "no message of the role user"),
        ({"messages": [{"role": "user", "content": " "}]}, "empty"),
        (picture("x"), "is not the address of a picture"),
        (picture("/etc/hostname"), "is not the address of a picture"),
        (picture("https://example.org/a.png"), "RAGLLAVA_API_PICTURE_HOSTS"),
        (picture("http://169.254.169.254/"), "RAGLLAVA_API_PICTURE_HOSTS"),
        (picture("s3://bucket/key"), "no prefix that is bound"),
        (picture("data:image/png;base64,***"), "not valid base64"),
        (picture("data:image/png;base64,AAAA") | {"metadata": {"retrieval": "caption"}}, "no picture is looked at"),
        (picture("data:,", "data:,"), "at most one picture"),
        ({"messages": [{"role": "user", "content": [{"type": "input_audio", "text": "x"}]}]}, "input_audio"),
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
    front.office.hold_up()
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
