"""Remove pictures, jobs and archives: what a removal would erase, and the removal itself."""

from __future__ import annotations

import getpass
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from sqlalchemy import Connection, Engine, select, text

from ragllava.errors import UsageError
from ragllava.settings import Settings
from ragllava.stages.erasing.holders import copies_of_images, copies_of_trainings
from ragllava.stages.erasing.steps import Eraser, Step, no_step
from ragllava.stores.archives.archive import check_name, get_archive
from ragllava.stores.database import equals_any, in_transaction
from ragllava.stores.maintenance import erasing_images, erasing_jobs, erasures
from ragllava.stores.maintenance.erasures import ErasureKind, Pending
from ragllava.stores.objects import ObjectStore
from ragllava.stores.schema import images


@dataclass(frozen=True, slots=True)
class Removal:
    """What is removed, or would be. `subject` names it for people, `counts` has numbers by what they count.

    `kept` are sentences about what keeps a copy, or was derived from it. `waits_for` are jobs that were running: what
    they write about the pictures goes when they have ended. `erasure_id` None: nothing was removed.
    """

    subject: str
    counts: dict[str, int]
    kept: tuple[str, ...]
    erasure_id: int | None = None
    waits_for: tuple[int, ...] = ()

    def as_json(self) -> dict[str, Any]:
        """For `--json`."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Remover:
    """The services of a removal. `account` asked for it; `before_step` is called before each step.

    With `only_begin`, as in the HTTP API, whose role may not drop indexes and must not see what others keep, a removal
    is begun and left to the next tick; then `kept` is empty and `counts` are what is expected.
    """

    engine: Engine
    settings: Settings
    objects: ObjectStore
    account: str
    before_step: Step = no_step
    only_begin: bool = False

    def pictures(self, archive_name: str, names: Sequence[str], *, dry_run: bool = False) -> Removal:
        """Remove pictures of an archive by id or source, of a source also those that are retired.

        Raises UsageError for an unknown picture, for a source that several pictures have, and while a job ingests one.
        """
        archive_id, image_ids = in_transaction(self.engine, _find_images, archive_name, names)
        counted = in_transaction(self.engine, erasing_images.count, archive_id, image_ids)
        answers = counted.answers
        asking, others = counted.asking, ("jobs", "shared", "asking")

        def copies() -> list[str]:
            kept = copies_of_images(self.engine, self.settings, self.objects, archive_id, image_ids, answers)
            if asking:
                kept.append(f"{asking:,} questions name it in their text, id or filter, and stay as they are")
            return kept

        counts = {name: value for name, value in asdict(counted).items() if name not in others}
        removal = Removal(
            f"{', '.join(names)} of {archive_name}",
            counts | {"results_written_again": len(counted.jobs)},
            self._copies(copies),
        )
        if dry_run:
            return removal

        def begin(connection: Connection) -> int:
            _refuse_open_files(connection, archive_id, image_ids)
            if self.only_begin:  # its role may not write vectors
                pending = Pending(images=tuple(image_ids), is_requested=True)
            else:
                pending = erasing_images.retire(connection, archive_id, image_ids)
            target = image_ids[0] if len(image_ids) == 1 else None
            return erasures.begin(
                connection, ErasureKind.PICTURES, self.account, archive_id=archive_id, target_id=target, pending=pending
            )

        return self._erase(removal, in_transaction(self.engine, begin))

    def job(self, job_id: int, *, dry_run: bool = False) -> Removal:
        """Remove a job that has ended, with its inputs, answers, labels and result files.

        Raises UsageError for an unknown or open job, and for a training whose model version is there.
        """
        counted = in_transaction(self.engine, erasing_jobs.count_job, job_id)
        if counted.version is not None:
            raise UsageError(f"job {job_id} made the model version {counted.version}, which names it; it is kept")
        names = ("inputs", "answers", "labels", "noisy_cases")
        kept = [f"job {other} refreshed it, and keeps its answers beside its own" for other in counted.refreshes]
        if counted.outbox is not None:
            kept.append(f"the outbox keeps the results below {counted.outbox}{job_id}/")
        counts = {name: getattr(counted, name) for name in names}
        removal = Removal(f"job {job_id}", counts, self._copies(lambda: kept))
        if dry_run:
            return removal

        def begin(connection: Connection) -> int:
            erasing_jobs.begin_job(connection, job_id)
            return erasures.begin(
                connection, ErasureKind.JOB, self.account, archive_id=counted.archive_id, target_id=job_id
            )

        return self._erase(removal, in_transaction(self.engine, begin))

    def archive(self, name: str, *, dry_run: bool = False) -> Removal:
        """Remove an archive with its pictures, indexes, jobs, labels, bindings and schedules.

        Its trainings stay, as model versions name them. Raises UsageError for an unknown archive, and while it has open
        jobs.
        """
        archive_id = in_transaction(self.engine, get_archive, name).archive_id
        counted = in_transaction(self.engine, erasing_jobs.count_archive, archive_id, name)

        def copies() -> list[str]:
            kept = [f"the bucket keeps its objects below {address}" for address in counted.bindings]
            kept += copies_of_trainings(self.engine, self.objects, counted.trainings)
            return kept + [f"the schedule {schedule} goes with it" for schedule in counted.schedules]

        counts = {name: value for name, value in asdict(counted).items() if isinstance(value, int)}
        removal = Removal(f"the archive {name}", counts, self._copies(copies))
        if dry_run:
            return removal

        def begin(connection: Connection) -> int:
            erasing_jobs.begin_archive(connection, archive_id)
            return erasures.begin(connection, ErasureKind.ARCHIVE, self.account, archive_id=archive_id)

        return self._erase(removal, in_transaction(self.engine, begin))

    def finish_interrupted(self) -> int:
        """Continue the removals that were interrupted; returns how many are finished now."""
        return self._eraser.continue_all(idle_s=0.0)

    @property
    def _eraser(self) -> Eraser:
        return Eraser(self.engine, self.objects, self.before_step)

    def _copies(self, find: Callable[[], list[str]]) -> tuple[str, ...]:
        return () if self.only_begin else tuple(find())

    def _erase(self, removal: Removal, erasure_id: int) -> Removal:
        if self.only_begin:
            in_transaction(self.engine, erasures.leave_to_tick, erasure_id)
            return replace(removal, erasure_id=erasure_id)
        waits_for = self._eraser.continue_erasure(erasure_id)
        line = in_transaction(self.engine, erasures.view, erasure_id)
        return Removal(removal.subject, line.counts, removal.kept, erasure_id, waits_for)


def rename_archive(connection: Connection, name: str, new: str) -> None:
    """Give an archive another name. Its jobs, indexes, bindings and schedules keep to it.

    Raises UsageError for an unknown archive, and for a name that is not allowed or taken.
    """
    check_name(new)
    archive_id = get_archive(connection, name).archive_id
    connection.execute(text("LOCK TABLE archives IN SHARE ROW EXCLUSIVE MODE"))  # nobody takes the name meanwhile
    if connection.scalar(text("SELECT 1 FROM archives WHERE name = :new"), {"new": new}):
        raise UsageError(f"there is an archive {new!r} already; choose another name, or remove that one first")
    erasing_jobs.rename_archive(connection, archive_id, name, new)


def this_account() -> str:
    """The name of the account that runs this process."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container may run under a number that has no name
        return "unknown"


def _find_images(connection: Connection, archive_name: str, names: Sequence[str]) -> tuple[int, list[int]]:
    """The ids of the pictures with these ids or sources, in order; of a source with those that are retired."""
    archive_id = get_archive(connection, archive_name).archive_id
    if not names:
        raise UsageError("name at least one picture, by its id or source")
    numbers = [int(name) for name in names if name.isascii() and name.isdigit() and int(name) < 2**63]
    columns = (images.c.id, images.c.source, images.c.retired)
    named = equals_any(images.c.source, names) | equals_any(images.c.id, numbers)
    rows = connection.execute(
        select(*columns).where(images.c.archive_id == archive_id, named).order_by(images.c.id)
    ).all()
    chosen: list[int] = []
    for name in names:
        by_source = [row for row in rows if row.source == name]
        by_id = [row for row in rows if str(row.id) == name]
        living = [row for row in by_source if not row.retired]
        if len(living) + len(by_id) > 1:
            ids = ", ".join(str(row.id) for row in [*living, *by_id][:10])
            raise UsageError(f"several pictures of {archive_name} are called {name!r}; give one of the ids {ids}")
        if not by_source and not by_id:
            raise UsageError(
                f"the archive {archive_name} has no picture {name!r}; give the id or the source that "
                f"`ragllava archive search {archive_name}` shows"
            )
        chosen += [row.id for row in (by_id or by_source)]
    return archive_id, sorted(set(chosen))


def _refuse_open_files(connection: Connection, archive_id: int, image_ids: Sequence[int]) -> None:
    query = text("""
        SELECT j.id FROM jobs j JOIN files f ON f.job_id = j.id
        WHERE j.archive_id = :archive_id AND j.kind = 'ingest' AND j.finished_at IS NULL AND f.status IS NULL
          AND f.uri IN (SELECT uri FROM images WHERE id = ANY(:ids)) ORDER BY j.id LIMIT 1
    """)
    job_id = connection.scalar(query, {"archive_id": archive_id, "ids": list(image_ids)})
    if job_id is not None:
        raise UsageError(
            f"job {job_id} ingests it at this moment: wait for it, or stop it with `ragllava jobs cancel {job_id}`"
        )
