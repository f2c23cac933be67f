"""The same things in an archive, whichever it is: for tests of the boundary between archives."""

from __future__ import annotations

import hashlib
import io
import json
import uuid
from dataclasses import dataclass

from openai import OpenAI
from PIL import Image
from sqlalchemy import Connection

from ragllava.client import JobKind, ScheduleAction, ScheduleRequest
from ragllava.stores.archives import archive, blobs, indexes, vectors
from ragllava.stores.archives.blobs import NewBlob
from ragllava.stores.archives.descriptions import NewImage
from ragllava.stores.database import in_transaction
from tests.support.api_server import Front
from tests.support.waiting import wait_for

HOOK = "https://hooks.example.org/"


@dataclass(frozen=True)
class Place:
    """An archive, and what belongs to it, by the names of the parts of paths; `marks` are texts of it alone."""

    archive: str
    paths: dict[str, str]
    marks: tuple[str, ...]


def make_place(front: Front, archive: str) -> Place:
    """An archive with a file, a batch and a job that have ended, a picture, an index, a schedule and a webhook."""
    with OpenAI(base_url=f"{front.url}/v1", api_key=front.key("admin", [archive])) as sdk:
        body = {"model": f"ragllava/{archive}", "messages": [{"role": "user", "content": "What?"}]}
        line = {"custom_id": "q", "method": "POST", "url": "/v1/chat/completions", "body": body}
        file = sdk.files.create(file=("q.jsonl", json.dumps(line).encode()), purpose="batch")
        batch = sdk.batches.create(input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h")
        wait_for("the batch", lambda: sdk.batches.retrieve(batch.id).status == "completed", 60)
    image_id, index_id = in_transaction(front.office.engine, make_picture, front, archive)
    name = f"nightly-{uuid.uuid4().hex[:8]}"
    front.client.schedules.add(ScheduleRequest(ScheduleAction.GAPS, "0 3 * * *", archive, name=name))
    hook, _ = front.client.webhooks.create("test", archive, HOOK, [JobKind.ANSWER])
    job_id = front.client.questions.submit([{"custom_id": "q", "question": "What?"}], archive).job_id
    front.client.jobs.wait(job_id, timeout_s=60)
    front.client.reviews.feedback([{"job": job_id, "custom_id": "q", "verdict": "wrong"}])  # a noisy case
    paths = {
        "archive": archive,
        "file_id": file.id,
        "batch_id": batch.id,
        "model": f"ragllava/{archive}",
        "job_id": str(job_id),
        "custom_id": "q",
        "image_id": str(image_id),
        "index_id": str(index_id),
        "name": name,
        "webhook_id": str(hook.webhook_id),
        "version": "none",
    }
    return Place(archive, paths, (file.id, batch.id, name, f"{archive}.png"))


def make_picture(connection: Connection, front: Front, archive_name: str) -> tuple[int, int]:
    """A stored picture, and an active index without its vector."""
    archive_id = archive.get_archive(connection, archive_name).archive_id
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), "red" if archive_name == "stamps" else "blue").save(buffer, "PNG")
    data = buffer.getvalue()
    blobs.announce_blobs(connection, [NewBlob(hashlib.sha256(data).hexdigest(), len(data), "image/png")])
    sha256 = front.office.objects.put_content(data, "image/png")
    source = f"{archive_name}.png"
    [stored] = archive.store_images(
        connection, archive_id, [NewImage(sha256, source, f"file:///{source}", None, 8, 8, "image/png", embedded={})]
    )
    index = vectors.active_index(connection, archive_id)
    if index is not None:
        return stored.image_id, index.index_id
    index_id = indexes.create_index(connection, archive_id, "test", 4)
    indexes.activate(connection, index_id)
    return stored.image_id, index_id
