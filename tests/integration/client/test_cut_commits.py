"""Whatever a client creates exists once, also when the connection breaks right after the commit that creates it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from PIL import Image
from sqlalchemy import text

from ragllava import Client
from ragllava.client import ScheduleRequest
from ragllava.errors import UsageError
from ragllava.records import ScheduleAction, TaskName
from ragllava.settings import Settings
from ragllava.stores.database import in_transaction
from tests.support import cut_commits
from tests.support.job_rows import Desk, without_ticks

Action = Callable[[Client, Path], object]


@pytest.fixture
def client(settings: Settings) -> Iterator[Client]:
    unhurried = without_ticks(settings)
    with Client(unhurried) as client:
        desk = Desk(client.engine, unhurried)
        desk.live_worker()
        desk.questions_job(2, per_shard=1)
        desk.drain()
        yield client


def _submit(client: Client, folder: Path) -> object:
    (folder / "questions.jsonl").write_text(json.dumps({"custom_id": "a", "question": "what is it?"}))
    return client.questions.submit(folder / "questions.jsonl", "test")


def _ask(client: Client, _folder: Path) -> None:
    with pytest.raises(UsageError, match="no answer within"):
        client.questions.ask("what is it?", "test", timeout_s=0.01)


def _ingest(client: Client, folder: Path) -> object:
    Image.new("RGB", (8, 8)).save(folder / "a.png")
    return client.archives.ingest([folder], "test")


def _add_schedule(client: Client, _folder: Path) -> object:
    return client.schedules.add(ScheduleRequest(ScheduleAction.VACUUM, "0 3 * * *", name="nightly"))


def _label(client: Client, _folder: Path) -> object:
    return client.reviews.feedback([{"job": 1, "custom_id": "q0", "verdict": "right"}])


# Each with the tables in which it makes one row.
ACTIONS: dict[str, tuple[Action, tuple[str, ...]]] = {
    "submit": (_submit, ("jobs",)),
    "ask": (_ask, ("jobs",)),
    "ingest": (_ingest, ("jobs", "files")),
    "refresh": (lambda client, _: client.questions.refresh(1), ("jobs",)),
    "maintenance task": (lambda client, _: client.schedules.run_task(TaskName.VACUUM), ("jobs", "maintenance_tasks")),
    "schedule": (_add_schedule, ("schedules",)),
    "label": (_label, ("labels",)),
}


@pytest.mark.parametrize("name", ACTIONS)
def test_a_creation_creates_one_thing_when_its_commit_is_cut(client: Client, tmp_path: Path, name: str) -> None:
    action, tables = ACTIONS[name]
    before = [_count(client, table) for table in tables]
    with cut_commits.cut(client.engine, cut_commits.after) as cuts:
        action(client, tmp_path)
    assert cuts
    assert [_count(client, table) for table in tables] == [number + 1 for number in before]


def test_a_schedule_that_is_run_now_starts_one_job_and_names_it(client: Client, tmp_path: Path) -> None:
    _add_schedule(client, tmp_path)
    with cut_commits.cut(client.engine, cut_commits.after):
        fired = client.schedules.run("nightly")
    assert fired.job_id is not None
    assert _count(client, "schedule_runs") == 1


def test_a_cancelled_and_a_retried_job_report_no_error(client: Client) -> None:
    job_id = Desk(client.engine, client.settings).questions_job(2, per_shard=1)
    with cut_commits.cut(client.engine, cut_commits.after) as cuts:
        client.jobs.cancel(job_id)
    assert cuts and client.jobs.get(job_id).state == "cancelled"
    with cut_commits.cut(client.engine, cut_commits.after) as cuts:
        assert client.jobs.retry(job_id) == 2
    assert cuts


def _count(client: Client, table: str) -> int:
    return in_transaction(
        client.engine,
        lambda connection: int(connection.execute(text(f"SELECT count(*) FROM {table}")).scalar_one()),
    )
