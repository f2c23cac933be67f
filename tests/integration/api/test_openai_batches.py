"""Files and batches with the openai SDK, against a real server."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import openai
import pytest
from openai import OpenAI
from sqlalchemy import func, select, text, update

from ragllava.stores.schema import batches, jobs, questions, uploads
from tests.support.api_server import Front
from tests.support.lock_waiters import counting_waiters
from tests.support.waiting import wait_for

ENDED = ("failed", "completed", "expired", "cancelled")


def line(number: int, *, model: str = "ragllava/stamps", url: str = "/v1/chat/completions", **changed: Any) -> str:
    body = {"model": model, "messages": [{"role": "user", "content": f"What color is stamp {number}?"}]}
    return json.dumps({"custom_id": f"q{number}", "method": "POST", "url": url, "body": body} | changed)


def lines(number: int, **changed: Any) -> bytes:
    return "".join(line(each, **changed) + "\n" for each in range(number)).encode()


@pytest.fixture
def sdk(front: Front) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{front.url}/v1", api_key=front.key("ask", ["stamps"]), max_retries=0) as client:
        yield client


def upload(sdk: OpenAI, content: bytes, **options: Any) -> str:
    return sdk.files.create(file=("q.jsonl", content), purpose="batch", **options).id


def create(sdk: OpenAI, file_id: str, **options: Any) -> Any:
    given = {"endpoint": "/v1/chat/completions", "completion_window": "24h"} | options
    return sdk.batches.create(input_file_id=file_id, **given)


def ended(sdk: OpenAI, batch_id: str) -> Any:
    wait_for("the end of the batch", lambda: sdk.batches.retrieve(batch_id).status in ENDED, 60)
    return sdk.batches.retrieve(batch_id)


def read_lines(sdk: OpenAI, file_id: str) -> list[Any]:
    return [json.loads(row) for row in sdk.files.content(file_id).text.splitlines()]


def test_from_upload_to_output(sdk: OpenAI, front: Front) -> None:
    front.office.hold_up()  # else the batch may end before its creation is answered
    file_id = upload(sdk, lines(3))
    stored = sdk.files.retrieve(file_id)
    assert (stored.filename, stored.purpose, stored.bytes) == ("q.jsonl", "batch", len(lines(3)))
    assert stored.expires_at == stored.created_at + 30 * 86_400
    created = create(sdk, file_id, metadata={"mine": "yes", "top_k": "5"})
    assert created.status in ("validating", "in_progress")
    assert created.output_file_id is None and created.expires_at == created.created_at + 86_400
    front.office.go_on()
    batch = ended(sdk, created.id)
    assert batch.status == "completed" and batch.completed_at and batch.in_progress_at and batch.finalizing_at
    assert batch.metadata == {"mine": "yes", "top_k": "5"} and batch.error_file_id is None and batch.errors is None
    assert batch.request_counts.model_dump() == {"total": 3, "completed": 3, "failed": 0}
    assert (batch.usage.input_tokens, batch.usage.output_tokens, batch.usage.total_tokens) == (36, 9, 45)
    output = read_lines(sdk, batch.output_file_id)
    assert [row["custom_id"] for row in output] == ["q0", "q1", "q2"]
    body = output[0]["response"]["body"]
    assert output[0]["response"]["status_code"] == 200 and output[0]["error"] is None
    assert body["choices"][0]["message"]["content"] == "yes" and body["model"] == "ragllava/stamps"
    assert body["evidence"] == [] and body["status"] == "answered"
    assert {file.id: file.purpose for file in sdk.files.list()} == {
        file_id: "batch",
        batch.output_file_id: "batch_output",
    }


def test_options_of_metadata_reach_the_job(sdk: OpenAI, front: Front) -> None:
    batch = create(sdk, upload(sdk, lines(1)), metadata={"top_k": "5", "threshold": "0.4", "retrieval": "picture"})
    ended(sdk, batch.id)
    with front.office.engine.connect() as connection:
        spec = connection.execute(select(jobs.c.spec).where(jobs.c.name == batch.id)).scalar_one()
    assert (spec["options"]["top_k"], spec["options"]["threshold"]) == (5, 0.4)
    assert spec["options"]["retrieval"] == "picture"


def test_lines_with_pictures(sdk: OpenAI, front: Front) -> None:
    data = b"\x89PNG of no size"
    own = sdk.files.create(file=("ship.png", data), purpose="vision").id
    with OpenAI(base_url=f"{front.url}/v1", api_key=front.key("ask", ["coins"]), max_retries=0) as other:
        foreign = other.files.create(file=("ship.png", data), purpose="vision").id

    def asking(number: int, address: str) -> str:
        parts = [{"type": "text", "text": "?"}, {"type": "image_url", "image_url": {"url": address}}]
        body = {"model": "ragllava/stamps", "messages": [{"role": "user", "content": parts}]}
        return line(number, body=body) + "\n"

    inline = f"data:image/png;base64,{base64.b64encode(data).decode()}"
    good = asking(0, inline) + asking(1, own)
    batch = ended(sdk, create(sdk, upload(sdk, (good + line(2)).encode())).id)
    assert batch.status == "completed" and batch.request_counts.completed == 3
    with front.office.engine.connect() as connection:
        found = connection.scalars(select(questions.c.picture).order_by(questions.c.question_no)).all()
    assert found == [hashlib.sha256(data).hexdigest()] * 2 + [None]
    bad = [foreign, "/etc/hostname", "https://example.org/a.png", "s3://bucket/key"]
    refused = ended(sdk, create(sdk, upload(sdk, "".join(asking(*row) for row in enumerate(bad)).encode())).id)
    assert refused.status == "failed"
    assert [error.code for error in refused.errors.data] == ["invalid_picture"] * len(bad)


def test_responses_lines_have_response_bodies(sdk: OpenAI) -> None:
    body = {"model": "ragllava/stamps", "input": "?"}
    row = {"custom_id": "a", "method": "POST", "url": "/v1/responses", "body": body}
    batch = ended(sdk, create(sdk, upload(sdk, json.dumps(row).encode()), endpoint="/v1/responses").id)
    [output] = read_lines(sdk, batch.output_file_id)
    assert output["response"]["body"]["output"][0]["content"][0]["text"] == "yes"


@pytest.mark.parametrize(
    ("content", "code", "number"),
    [
        (b"", "empty_file", None),
        (b"{no json\n", "invalid_json_line", 1),
        ((line(0) + "\n" + line(0) + "\n").encode(), "duplicate_custom_id", 2),
        (line(0, url="/v1/responses").encode(), "url_mismatch", 1),
        ((line(0) + "\n" + line(1, model="ragllava/coins")).encode(), "model_mismatch", 2),
        (line(0, custom_id=None).encode(), "missing_custom_id", 1),
    ],
)
def test_a_file_that_cannot_be_read_fails_the_batch(
    sdk: OpenAI, front: Front, content: bytes, code: str, number: int | None
) -> None:
    batch = ended(sdk, create(sdk, upload(sdk, content), metadata={"archive": "stamps"}).id)
    assert batch.status == "failed" and batch.failed_at and batch.output_file_id is None
    assert [(error.code, error.line) for error in batch.errors.data] == [(code, number)]
    assert batch.request_counts.total == 0
    with front.office.engine.connect() as connection:  # its quota is free again
        assert connection.execute(text("SELECT coalesce(sum(questions), 0) FROM api_usage")).scalar_one() == 0


def test_a_hundred_errors_are_named_and_the_others_counted(sdk: OpenAI) -> None:
    content = "".join(line(number, url="/v1/other") + "\n" for number in range(130)).encode()
    errors = ended(sdk, create(sdk, upload(sdk, content)).id).errors.data
    assert len(errors) == 101 and errors[-1].code == "more_errors" and "30 more" in errors[-1].message


def test_invalid_lines_may_be_skipped(sdk: OpenAI) -> None:
    content = (line(0) + "\n" + line(1, url="/v1/other") + "\n").encode()
    batch = ended(sdk, create(sdk, upload(sdk, content), metadata={"skip_invalid": "true"}).id)
    assert batch.status == "completed" and batch.request_counts.model_dump()["failed"] == 1
    [error] = read_lines(sdk, batch.error_file_id)
    assert error["response"] is None and error["error"]["code"] == "url_mismatch" and error["error"]["line"] == 2


def test_cancel_keeps_what_is_answered(sdk: OpenAI, front: Front) -> None:
    front.office.hold_up()
    batch = create(sdk, upload(sdk, lines(4)))
    wait_for("the job", lambda: sdk.batches.retrieve(batch.id).status == "in_progress", 30)
    assert sdk.batches.cancel(batch.id).status in ("cancelling", "cancelled")
    cancelled = ended(sdk, batch.id)
    assert cancelled.status == "cancelled" and cancelled.cancelling_at and cancelled.cancelled_at
    assert cancelled.request_counts.model_dump() == {"total": 4, "completed": 0, "failed": 4}
    codes = {row["error"]["code"] for row in read_lines(sdk, cancelled.error_file_id)}
    assert codes == {"batch_cancelled"} and cancelled.output_file_id is None
    assert sdk.batches.cancel(batch.id).status == "cancelled"


def test_an_ended_batch_cannot_be_cancelled(sdk: OpenAI, front: Front) -> None:
    batch = ended(sdk, create(sdk, upload(sdk, lines(1))).id)
    with pytest.raises(openai.ConflictError) as refused:
        sdk.batches.cancel(batch.id)
    assert refused.value.response.headers["x-should-retry"] == "false"


def test_the_completion_window_is_kept(sdk: OpenAI, front: Front) -> None:
    front.office.hold_up()
    batch = create(sdk, upload(sdk, lines(3)), completion_window="1h")
    assert batch.expires_at == batch.created_at + 3_600
    wait_for("the job", lambda: sdk.batches.retrieve(batch.id).status == "in_progress", 30)
    with front.office.engine.begin() as connection:
        connection.execute(update(batches).values(expires_at=func.now()))
    expired = ended(sdk, batch.id)
    assert expired.status == "expired" and expired.expired_at
    rows = read_lines(sdk, expired.error_file_id)
    assert [row["custom_id"] for row in rows] == ["q0", "q1", "q2"]
    assert {row["error"]["code"] for row in rows} == {"batch_expired"}


@pytest.mark.parametrize("window", ["0h", "8d", "24", "soon", "-1h"])
def test_other_windows_are_refused(sdk: OpenAI, window: str) -> None:
    with pytest.raises(openai.BadRequestError, match="completion_window"):
        create(sdk, upload(sdk, lines(1)), completion_window=window)


@pytest.mark.parametrize(
    ("metadata", "sentence"),
    [
        ({"top_k": "many"}, "metadata.top_k"),
        ({"top_k": "0"}, "top_k"),
        ({"depth": "deep"}, "depth"),
        ({"where": "{"}, "filter|where|JSON"),
        ({"skip_invalid": "perhaps"}, "skip_invalid"),
    ],
)
def test_wrong_metadata_are_refused(sdk: OpenAI, metadata: dict[str, str], sentence: str) -> None:
    with pytest.raises(openai.BadRequestError, match=sentence):
        create(sdk, upload(sdk, lines(1)), metadata=metadata)


def test_a_file_without_an_archive_is_refused(sdk: OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match=r"metadata\.archive"):
        create(sdk, upload(sdk, lines(1, model="gpt-4o")))


def test_250_batches_are_listed_once_each_newest_first(sdk: OpenAI, front: Front) -> None:
    file_id = upload(sdk, lines(1))
    first = create(sdk, file_id)
    ended(sdk, first.id)
    with front.office.engine.begin() as connection:  # as many requests would take long; they differ in id and time
        names = [column.name for column in batches.c if column.name not in ("id", "created_at")]
        listed = ", ".join(names)
        connection.execute(
            text(f"""
                INSERT INTO batches (id, created_at, {listed})
                SELECT 'batch_' || lpad(n::text, 4, '0'), date_trunc('hour', now()) - make_interval(secs => n / 7),
                       {listed} FROM batches, generate_series(1, 249) n
            """)
        )
    found = list(sdk.batches.list(limit=100))
    assert len(found) == 250 == len({batch.id for batch in found})
    assert found == sorted(found, key=lambda batch: (batch.created_at, batch.id), reverse=True)
    status, page, _ = front.call("GET", "/v1/batches?limit=100", sdk.api_key)
    assert status == 200 and page["has_more"] and page["last_id"] == page["data"][-1]["id"]
    status, page, _ = front.call("GET", f"/v1/batches?after={found[-1].id}", sdk.api_key)
    assert (page["data"], page["has_more"], page["first_id"], page["last_id"]) == ([], False, None, None)
    status, body, _ = front.call("GET", "/v1/batches?after=batch_none", sdk.api_key)
    assert status == 400 and "after" in body["error"]["message"]


def test_files_are_listed_by_pages_and_purpose(sdk: OpenAI) -> None:
    ids = [upload(sdk, b"x") for _ in range(5)]
    assert [file.id for file in sdk.files.list(limit=2)] == ids[::-1]
    assert [file.id for file in sdk.files.list(limit=2, order="asc")] == ids
    assert list(sdk.files.list(purpose="batch_output")) == []


def test_an_expired_file_is_gone(sdk: OpenAI, front: Front) -> None:
    file_id = upload(sdk, lines(1), expires_after={"anchor": "created_at", "seconds": 3_600})
    stored = sdk.files.retrieve(file_id)
    assert stored.expires_at == stored.created_at + 3_600
    with front.office.engine.begin() as connection:
        connection.execute(update(uploads).values(expires_at=func.now()))
    for call in (sdk.files.retrieve, sdk.files.content, sdk.files.delete):
        with pytest.raises(openai.NotFoundError):
            call(file_id)
    key = f"uploads/{file_id}"
    wait_for("its bytes to be deleted", lambda: not front.office.objects.exists(key), 30)


def test_deleting_a_file(sdk: OpenAI, front: Front) -> None:
    file_id = upload(sdk, b"x")
    assert sdk.files.delete(file_id).deleted
    assert not front.office.objects.exists(f"uploads/{file_id}")
    with pytest.raises(openai.NotFoundError):
        sdk.files.retrieve(file_id)


def test_a_repeated_create_makes_no_second_batch(sdk: OpenAI, front: Front) -> None:
    """As the SDK does after a lost answer: it sends the same again, and says which attempt it is."""
    file_id = upload(sdk, lines(2))
    first = create(sdk, file_id)
    again = create(sdk, file_id, extra_headers={"x-stainless-retry-count": "1"})
    other = create(sdk, file_id)
    changed = create(sdk, file_id, metadata={"top_k": "3"}, extra_headers={"x-stainless-retry-count": "1"})
    assert again.id == first.id and len({first.id, other.id, changed.id}) == 3
    twice = [create(sdk, file_id, extra_headers={"Idempotency-Key": "monday"}).id for _ in range(2)]
    assert twice[0] == twice[1] != first.id
    with pytest.raises(openai.UnprocessableEntityError, match="Idempotency-Key"):
        create(sdk, file_id, metadata={"top_k": "3"}, extra_headers={"Idempotency-Key": "monday"})
    second_upload = sdk.files.create(
        file=("q.jsonl", lines(2)), purpose="batch", extra_headers={"x-stainless-retry-count": "1"}
    )
    assert second_upload.id == file_id


def test_a_server_that_stalls_makes_no_second_batch(sdk: OpenAI, front: Front) -> None:
    """The SDK gives up waiting and repeats, while the first request still waits for the table."""
    file_id, impatient = upload(sdk, lines(2)), sdk.with_options(timeout=0.5, max_retries=20)
    engine = front.office.engine
    with counting_waiters(engine) as waiters, engine.connect() as stalling, ThreadPoolExecutor(1) as threads:
        stalling.execute(text("LOCK TABLE batches IN SHARE ROW EXCLUSIVE MODE"))
        creating = threads.submit(create, impatient, file_id)
        try:
            wait_for("the request and its repetition", lambda: waiters() >= 2, 60)
        finally:
            impatient.timeout = 60.0  # from its next attempt on: a slow server answers in time, too
            stalling.rollback()
        batch = creating.result()
        wait_for("the end of those that were given up", lambda: waiters() == 0, 60)
    ended(sdk, batch.id)
    with front.office.engine.connect() as connection:
        assert connection.execute(select(func.count()).select_from(batches)).scalar_one() == 1
        assert connection.execute(select(func.count()).select_from(jobs)).scalar_one() == 1


def test_many_equal_creates_at_once_make_one_batch(front: Front, sdk: OpenAI) -> None:
    file_id, found = upload(sdk, lines(2)), list[str]()

    def repeat() -> None:
        found.append(create(sdk, file_id, extra_headers={"Idempotency-Key": "once"}).id)

    threads = [threading.Thread(target=repeat) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8 and len(set(found)) == 1
    ended(sdk, found[0])
    with front.office.engine.connect() as connection:
        assert connection.execute(select(func.count()).select_from(jobs)).scalar_one() == 1


def test_uploads_without_a_file_or_with_a_wrong_purpose_are_refused(front: Front, sdk: OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="purpose"):
        sdk.files.create(file=("q.jsonl", b"x"), purpose="fine-tune")
    status, body, _ = front.call("POST", "/v1/files", sdk.api_key, json={"purpose": "batch"})
    assert status == 400 and "multipart" in body["error"]["message"]


@pytest.mark.usefixtures("one_day")
def test_quotas(front: Front) -> None:
    with OpenAI(
        base_url=f"{front.url}/v1", api_key=front.key("ask", questions_per_day=5, open_jobs=1), max_retries=0
    ) as sdk:
        file_id = upload(sdk, lines(4))
        front.office.hold_up()
        batch = create(sdk, file_id)
        with pytest.raises(openai.RateLimitError, match="jobs of this caller are open") as refused:
            create(sdk, file_id)
        assert int(refused.value.response.headers["retry-after"]) > 0
        front.office.go_on()
        ended(sdk, batch.id)
        with pytest.raises(openai.RateLimitError, match="5 questions a day") as refused:
            create(sdk, file_id)
        assert 0 < int(refused.value.response.headers["retry-after"]) <= 86_400
    with OpenAI(base_url=f"{front.url}/v1", api_key=front.key("ask", requests_per_minute=3), max_retries=0) as sdk:
        for _ in range(3):
            sdk.models.list()
        with pytest.raises(openai.RateLimitError, match="3 requests a minute"):
            for _ in range(3):  # a bucket gets another one in 20 s (tests/unit/test_rates.py)
                sdk.models.list()
    with OpenAI(base_url=f"{front.url}/v1", api_key=front.key("ask", stored_mib=1), max_retries=0) as sdk:
        upload(sdk, bytes(600_000))
        with pytest.raises(openai.RateLimitError, match="1 MiB"):
            upload(sdk, bytes(600_000))


def test_a_job_that_is_removed_while_the_batch_runs_fails_it(sdk: OpenAI, front: Front) -> None:
    front.office.hold_up()
    batch = create(sdk, upload(sdk, lines(2)))
    wait_for("the job", lambda: sdk.batches.retrieve(batch.id).status == "in_progress", 30)
    with front.office.engine.begin() as connection:
        connection.execute(text("DELETE FROM jobs"))
    assert ended(sdk, batch.id).errors.data[0].code == "job_removed"


def names(rows: Sequence[Any]) -> list[str]:
    return [row.id for row in rows]


def test_models_are_archives(sdk: OpenAI) -> None:
    assert names(sdk.models.list().data) == ["ragllava", "ragllava/stamps"]
    assert sdk.models.retrieve("ragllava/stamps").owned_by == "ragllava"
    with pytest.raises(openai.NotFoundError):
        sdk.models.retrieve("ragllava/coins")


def test_a_broken_upload_leaves_no_file(front: Front, sdk: OpenAI, tmp_path: Path) -> None:
    import socket

    host, _, port = front.url.removeprefix("http://").partition(":")
    head = (
        f"POST /v1/files HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer {sdk.api_key}\r\n"
        "Content-Type: multipart/form-data; boundary=x\r\nContent-Length: 100000\r\n\r\n"
        '--x\r\nContent-Disposition: form-data; name="file"; filename="q.jsonl"\r\n\r\n'
    )
    with socket.create_connection((host, int(port)), timeout=60) as cut:
        cut.sendall(head.encode() + b"half of it")
    assert names(sdk.files.list().data) == []
    assert list(front.office.objects.list_objects("uploads/")) == []
