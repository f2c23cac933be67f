"""A backup as a maintenance task, for schedules."""

from __future__ import annotations

from dataclasses import asdict

from ragllava.errors import UsageError
from ragllava.jobs.runner import ShardContext
from ragllava.stages.backup.backup import BackupMaker
from ragllava.stages.backup.vaults import open_vault
from ragllava.stages.maintenance.task_report import Report, counted, mebibytes
from ragllava.stages.resources import Resources


def back_up(context: ShardContext[Resources]) -> Report:
    """Save everything where the settings say. One that is interrupted continues at the next run.

    Raises UsageError without a vault, and for one that cannot be written.
    """
    settings = context.settings
    if not settings.backup_to:
        raise UsageError("set RAGLLAVA_BACKUP_TO to a folder or s3://bucket/prefix, for all workers")
    vault = open_vault(settings.backup_to, settings)
    maker = BackupMaker(context.engine, context.resources.objects, vault, check=context.check)
    made = maker.make(settings.backup_keep)
    summary = (
        f"{made.name}: {counted(made.rows, 'row')} and {counted(made.pictures, 'picture')}, "
        f"{counted(made.copied, 'new file')} of {mebibytes(made.copied_bytes)}"
    )
    if made.absent:
        summary += f"; {counted(len(made.absent), 'object')} that rows name are missing in the object store"
    summary += "".join(f"; {note}" for note in made.notes)
    return Report(summary, asdict(made) | {"absent": list(made.absent[:10])}, failed=bool(made.absent))
