"""Runs a job to its end in this process, without broker and workers. `ragllava eval` measures the stages this way.

The shards are leased as any worker leases them, so workers that run beside this process do no harm and may help.
"""

from __future__ import annotations

import os
import time

from sqlalchemy import Connection, Engine, select, update

from ragllava.jobs import dispatch, ending, views
from ragllava.jobs.runner import run_shard
from ragllava.jobs.turns import IS_READY
from ragllava.jobs.views import JobView
from ragllava.settings import Settings
from ragllava.stores.database import in_transaction
from ragllava.stores.schema import shards

_PAUSE_S = 0.2  # while no shard is ready, because one waits for a service or another process has it


def run_job(job_id: int, settings: Settings, engine: Engine, resources: object) -> JobView:
    """Run the job's shards one after the other until it has ended, well or not; returns the ended job.

    Shards that another worker has are waited for, and taken over when its lease runs out.
    """
    worker = f"inline@{os.getpid()}"
    while not (job := in_transaction(engine, views.view, job_id)).is_final:
        shard_id = in_transaction(engine, take_pending, job_id)
        if shard_id is not None:
            run_shard(shard_id, worker, settings, engine, resources)
        else:
            dispatch.reap(engine, settings)
            ending.end_jobs(engine)
            time.sleep(_PAUSE_S)
    return job


def take_pending(connection: Connection, job_id: int) -> int | None:
    """Mark the job's first ready shard `queued`, as dispatch would, and return its id; None when none is ready.

    Of several callers at once each gets another shard.
    """
    ready = select(shards.c.id).where(shards.c.job_id == job_id, IS_READY).order_by(shards.c.lo).limit(1)
    queued = update(shards).where(shards.c.id == ready.with_for_update(skip_locked=True).scalar_subquery())
    shard_id: int | None = connection.scalar(queued.values(dispatch.QUEUED).returning(shards.c.id))
    return shard_id
