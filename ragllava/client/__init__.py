"""The Python client: what the command line does, for programs.

    client = Client(load_settings())
    job = client.submit(Path("questions.jsonl"), Submission(archive="harbour"))
    client.wait(job.job_id)
    for row in client.results(job.job_id): ...

Everything is written to Postgres first; the message to the workers is only a hint, so a submit succeeds with no
broker in reach, and a worker finds the job at its next tick.
"""

from __future__ import annotations

from ragllava.client.archives import ArchiveClient, Ingested
from ragllava.client.indexes import IndexClient
from ragllava.client.jobs import is_success
from ragllava.client.models import ModelClient
from ragllava.client.questions import QuestionClient
from ragllava.client.reviews import ReviewClient

__all__ = ["Client", "Ingested", "is_success"]


class Client(ArchiveClient, IndexClient, QuestionClient, ReviewClient, ModelClient):
    """Talks to Postgres and the object store; tells the workers through the queue."""
