"""Embeds the pictures of one shard: a thin task around the stage."""

from __future__ import annotations

from typing import Any

from workers.app import app
from workers.runtime import run_message


@app.task(name="ragllava.ingest", queue="ingest", bind=True)
def ingest(self: Any, shard_id: int, message_version: int) -> None:
    """A message that comes twice, late or never does no harm: the lease decides."""
    run_message(shard_id, message_version, self.request.hostname)
