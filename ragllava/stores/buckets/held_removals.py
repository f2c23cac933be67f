"""Folders and buckets that lost many pictures at once, which were not retired without being asked.

An unmounted disk looks like an empty folder, and a bucket that was restored half like one whose objects were deleted.
Every function works in the caller's transaction.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import Connection, delete, func, select
from sqlalchemy.dialects.postgresql import insert

from ragllava.stores.database import records
from ragllava.stores.schema import archives, held_removals

FEWEST = 5  # pictures that are gone but not all; fewer are always believed
_FEWEST_OF_ALL = 2  # pictures of a folder in which none is left


@dataclass(frozen=True, slots=True)
class HeldRemoval:
    """`gone` of the `pictures` that came from `origin` (a folder's uri, a bucket's address) are not there any more."""

    archive: str
    origin: str
    gone: int
    pictures: int
    noticed_at: datetime

    @property
    def problem(self) -> str:
        """What is wrong and what to do."""
        if self.origin.startswith("s3://"):
            advice = f"`ragllava archive scan {self.archive} --allow-removals` lets them go"
        else:
            advice = f"`ragllava watch FOLDER --archive {self.archive} --allow-removals` lets them go"
        return (
            f"{self.gone:,} of {self.pictures:,} pictures of {self.archive} are gone from {self.origin} at once and "
            f"were kept; check that it is there as a whole; {advice}"
        )


def is_too_much(gone: int, pictures: int, share: float) -> bool:
    """Whether so many pictures are gone that somebody has to be asked: more than this share of all."""
    enough = gone >= FEWEST or (gone == pictures and gone >= _FEWEST_OF_ALL)
    return enough and gone > share * pictures


def hold(connection: Connection, archive_id: int, origin: str, gone: int, pictures: int) -> None:
    """Record that so many pictures of an origin are gone and stay."""
    new = insert(held_removals).values(archive_id=archive_id, origin=origin, gone=gone, pictures=pictures)
    changed = {"gone": new.excluded.gone, "pictures": new.excluded.pictures}
    connection.execute(new.on_conflict_do_update(index_elements=["archive_id", "origin"], set_=changed))


def release(connection: Connection, archive_id: int, origin: str) -> None:
    """The pictures of the origin are there again, or were allowed to go."""
    rows = (held_removals.c.archive_id == archive_id, held_removals.c.origin == origin)
    if connection.scalar(select(func.count()).where(*rows)):
        connection.execute(delete(held_removals).where(*rows))


def list_held(connection: Connection) -> list[HeldRemoval]:
    """All of them, by archive and origin."""
    columns = (held_removals, archives.c.name.label("archive"))
    query = select(*columns).join(archives, archives.c.id == held_removals.c.archive_id)
    return records(HeldRemoval, connection.execute(query.order_by(archives.c.name, held_removals.c.origin)))
