"""A process with many workers, each in a thread: they claim, send heartbeats and finish as real ones, and sleep."""

from __future__ import annotations

import json
import random
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import redis
from sqlalchemy import Connection, Engine, text

from ragllava.errors import RagllavaError
from ragllava.jobs.runner import ShardContext, run_shard
from ragllava.records import Answer, AnswerStatus, JobKind
from ragllava.settings import Settings
from ragllava.stages.resources import Resources
from ragllava.stores.database import in_transaction, make_engine
from ragllava.stores.jobs import answers, workers
from tests.fleet.measures import Statements
from tests.support.workshop import stages_replaced

MESSAGES = "fleet:messages"
STOP = "fleet:stop"
FIGURES = "fleet:figures"
_CANDIDATES = text("""
    INSERT INTO candidates
        (job_id, question_no, run_no, image_id, retrieval_rank, retrieval_score, relevance, evidence_no)
    SELECT :job_id, number, :run_no, 1 + (number * 7919 + rank * 104729) % :images, rank, 0.5, 0.5,
        CASE rank WHEN 0 THEN 1 END
    FROM unnest(CAST(:numbers AS bigint[])) number, generate_series(0, :most - 1) rank ON CONFLICT DO NOTHING
""")


def sleeping_stage(images: int, candidates: int, shard_s: float) -> Callable[[ShardContext[Resources]], None]:
    """A stage that sleeps `shard_s` on average, and then stores an answer and some candidates for each question."""

    def stage(context: ShardContext[Resources]) -> None:
        lease = context.lease
        numbers = context.open_inputs()
        # As real shards, they end one after another.
        until = time.monotonic() + shard_s * random.Random(lease.shard_id).uniform(0.5, 1.5)
        while (left := until - time.monotonic()) > 0:
            time.sleep(min(left, 1.0))
            context.check()

        def store(connection: Connection) -> None:
            results = [Answer(number, AnswerStatus.ANSWERED, text="yes") for number in numbers]
            answers.insert_answers(connection, lease.job_id, lease.run_no, lease.shard_id, lease.epoch, results)
            values = {"job_id": lease.job_id, "run_no": lease.run_no, "numbers": numbers}
            connection.execute(_CANDIDATES, values | {"images": images, "most": candidates})

        context.commit(store)

    return stage


def _work(name: str, engine: Engine, settings: Settings, messages: Any, errors: list[str]) -> None:
    in_transaction(engine, workers.register, name, ["query"], 1)
    in_transaction(engine, workers.report_ready, name, {"fleet": "1"})
    while not messages.exists(STOP):
        taken = messages.brpop([MESSAGES], timeout=1)
        if taken is None:
            continue
        try:
            run_shard(int(taken[1]), name, settings, engine, None)
        except RagllavaError as error:
            errors.append(str(error))


def _beat(names: list[str], engine: Engine, settings: Settings, messages: Any) -> None:
    while not messages.exists(STOP):
        began = time.monotonic()
        for name in names:
            in_transaction(engine, workers.beat, name, "live")
        time.sleep(max(0.0, settings.tick_s - (time.monotonic() - began)))


def main(order: dict[str, float | int | str]) -> None:
    """Run the workers that `order` names until they are told to stop, then report the statements."""
    settings = Settings(**json.loads(str(order["settings"])))
    engine = make_engine(settings.require_database(), pool_size=int(order["connections"]), name="fleet")
    statements = Statements()
    statements.watch(engine)
    messages = redis.Redis.from_url(settings.require_redis())
    names = [f"fleet{order['process']}-{number}" for number in range(int(order["workers"]))]
    errors: list[str] = []
    stage = sleeping_stage(int(order["images"]), int(order["candidates"]), float(order["shard_s"]))
    with stages_replaced({JobKind.ANSWER: stage}):
        threads = [threading.Thread(target=_work, args=(name, engine, settings, messages, errors)) for name in names]
        threads.append(threading.Thread(target=_beat, args=(names, engine, settings, messages)))
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    figures = {name: [each.calls, each.seconds, each.longest_s] for name, each in statements.by_text.items()}
    messages.rpush(FIGURES, json.dumps({"statements": figures, "errors": errors}))
    engine.dispose()


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
