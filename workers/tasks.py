"""The tasks that run shards, one for each queue: thin wrappers around jobs/runner.py."""

from __future__ import annotations

from typing import Any

from workers.app import TASK_OF_QUEUE, app
from workers.runtime import run_message


def _run(self: Any, shard_id: int, message_version: int) -> None:
    """A message that comes twice, late or never does no harm: the lease decides."""
    run_message(shard_id, message_version, self.request.hostname)


for _name in TASK_OF_QUEUE.values():
    app.task(_run, name=_name, bind=True)
