"""Work beside the questions, some of which fails."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress

from sqlalchemy import text

from ragllava.client import BindingRole, ReindexRequest
from ragllava.errors import UsageError
from ragllava.records import Role, Selection
from ragllava.stores.buckets import change_events
from ragllava.stores.database import in_transaction
from ragllava.stores.learning import registry
from ragllava.stores.learning.registry import AdapterVersion
from ragllava.stores.objects import ObjectStore
from tests.chaos.process_faults import kill_named
from tests.chaos.registry import SHORT_S, expect_completed, fault, other_job
from tests.chaos.system import ARCHIVE, System
from tests.support import cut_commits
from tests.support.waiting import wait_for

SECOND_CHAMPION = "chaos-second"


POST = "chaos-post"  # a bucket that is not ours


@fault("poisoned-binding", "a bound bucket brings files that cannot be read, and another one a picture")
def _poison_binding(system: System) -> None:
    archives, picture = system.client.archives, system.late_pictures.pop()
    archives.ensure_bucket(f"s3://{POST}/")
    for part in ("bad", "good"):
        archives.bind(part, f"s3://{POST}/{part}/", BindingRole.PICTURES)
    bucket = ObjectStore(system.settings.model_copy(update={"s3_bucket": POST}))
    captions = b'[{"image": "a.png", "caption": "x", "n": ' + b"9" * 4_301 + b"}]"
    poison = {"bad/captions.json": captions, "bad/captions.parquet": b"PAR1 no Parquet", "bad/a.png": b"no picture"}
    for key, content in {**poison, "good/a.png": picture.read_bytes()}.items():
        bucket.put(key, content)
    events = [(POST, key) for key in (*poison, f"bad/{'x' * 1_100}.png", "bad/../b.png", "good/a.png")]
    in_transaction(system.client.engine, change_events.record, events)
    stored = text("SELECT count(*) FROM images JOIN archives ON archives.id = archive_id WHERE name = 'good'")

    def is_stored() -> bool:
        return bool(in_transaction(system.client.engine, lambda connection: connection.scalar(stored) == 1))

    wait_for("the picture of the other binding", is_stored, 100)


@fault("pause-resume", "pause and resume every open job")
def _pause(system: System) -> None:
    paused = [job.job_id for job in system.client.jobs.list(only_open=True) if job.kind == "answer"]
    for job_id in list(paused):
        try:
            system.client.jobs.pause(job_id)
        except UsageError:  # it has ended
            paused.remove(job_id)
    time.sleep(SHORT_S)
    for job_id in paused:
        system.client.jobs.resume(job_id)


@fault("cancel-other", "cancel another job")
def _cancel(system: System) -> None:
    job_id = other_job(system, 200)
    time.sleep(0.5)
    system.client.jobs.cancel(job_id)

    def check() -> str | None:
        job = system.client.jobs.get(job_id)
        done = sum(job.progress.by_status.values())
        right = (job.state.value, done) == ("cancelled", 200) and set(job.progress.by_status) <= {
            "answered",
            "cancelled",
        }
        return None if right else f"the cancelled job {job_id} is {job.state} with {job.progress.by_status}"

    system.checks.append(check)


@fault("reindex", "a reindexing of the archive, with a kill of the worker that embeds")
def _reindex(system: System) -> None:
    try:
        job_id = system.client.archives.reindex(ReindexRequest(ARCHIVE, Selection.ALL))
    except UsageError:  # the one that another fault began has not ended
        return
    time.sleep(1.0)
    kill_named(system, "ingest")

    def check() -> str | None:
        """The last input is the gate, which refuses: it needs the models, for which our workers have a stand-in."""
        progress = system.client.jobs.get(job_id).progress
        embedded = progress.by_status.get("embedded", 0) + progress.by_status.get("skipped", 0)  # removed meanwhile
        return None if embedded == progress.total - 1 else f"the reindexing {job_id} ended with {progress.by_status}"

    system.checks.append(check)


@fault("champion-switch", "another champion, and back")
def _switch_champion(system: System) -> None:
    system.client.models.promote(SECOND_CHAMPION, Role.RERANKER, "chaos")
    time.sleep(1.0)
    champion = system.client.models.rollback(Role.RERANKER)
    assert champion.name != SECOND_CHAMPION


@fault("ingest-beside", "an ingest of new pictures")
def _ingest(system: System) -> None:
    pictures = [system.late_pictures.pop() for _ in range(min(6, len(system.late_pictures)))]
    if pictures:
        expect_completed(system, system.client.archives.ingest(pictures, ARCHIVE).job_id)


@fault("remove-beside", "the removal of a picture")
def _remove(system: System) -> None:
    with system.client.engine.begin() as connection:
        late = text("SELECT id FROM images WHERE source LIKE 'late%' AND NOT retired ORDER BY id LIMIT 1")
        image_id = connection.scalar(late)
    if image_id is not None:
        with suppress(UsageError):  # a job ingests it just now
            system.client.archives.remove_pictures(ARCHIVE, [str(image_id)])


@fault("ask-beside", "an urgent question beside the bulk job")
def _ask(system: System) -> None:
    row = system.client.questions.ask("an urgent question?", ARCHIVE, timeout_s=60)
    assert row.status.value == "answered", row


@fault("commit-cut", "the connection breaks right after the COMMIT of the submit", cuts_submit=True)
def _commit_cut(_system: System) -> None:
    """The submit has been disturbed already."""


def submit_over_a_cut_connection(system: System, submit: Callable[[], int]) -> int:
    """Submit while the first COMMIT takes effect and its acknowledgement is lost."""
    with cut_commits.cut(system.client.engine, cut_commits.after) as cuts:
        job_id = submit()
    assert cuts == [True]
    return job_id


def register_second_champion(system: System) -> None:
    """A version to switch to. Nothing loads it, so it has no files."""
    version = AdapterVersion(
        role=Role.RERANKER,
        name=SECOND_CHAMPION,
        profile="mini",
        prompt="none",
        adapter_sha256="0" * 64,
        base="fragile",
        training={},
    )
    in_transaction(system.client.engine, registry.register_adapter, version)
