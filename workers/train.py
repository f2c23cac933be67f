"""Trains an adapter: a thin task around the stage."""

from __future__ import annotations

from typing import Any

from workers.app import app
from workers.runtime import run_message


@app.task(name="ragllava.train", queue="train", bind=True)
def train(self: Any, shard_id: int, message_version: int) -> None:
    """A message that comes twice, late or never does no harm: the lease decides."""
    run_message(shard_id, message_version, self.request.hostname)
