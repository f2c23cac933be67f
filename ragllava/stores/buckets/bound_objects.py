"""What is known of the objects under a binding, and which image each picture became.

A picture has a job and a file number from the moment it is handed to an ingest job until that file has an outcome;
until then nothing else is done about it, so that no job can overtake another one. Every function works in the
caller's transaction.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any

from sqlalchemy import Connection, Row, bindparam, delete, func, select, text, update
from sqlalchemy.dialects.postgresql import insert

from ragllava.stores.schema import bound_objects


class ObjectKind(StrEnum):
    """What an object is taken for, by its name and the role of its binding."""

    PICTURE = "picture"
    CAPTION = "caption"  # a text file beside a picture
    CAPTIONS = "captions"  # a caption file of the whole binding
    QUESTIONS = "questions"
    OTHER = "other"


@dataclass(frozen=True, slots=True)
class KnownObject:
    """An object as it was when it was last looked at. `seen_at` tells this state of the row from any other."""

    key: str
    kind: ObjectKind
    etag: str
    size_bytes: int
    caption: str | None
    job_id: int | None
    file_no: int | None
    image_id: int | None
    reason: str | None
    seen_at: datetime

    @property
    def is_waiting(self) -> bool:
        """A picture whose file has no outcome yet."""
        return self.job_id is not None and self.file_no is not None


@dataclass(frozen=True, slots=True)
class SeenObject:
    """What a look at an object found, to be remembered. `image_id` is that of its former content, if it is kept."""

    key: str
    kind: ObjectKind
    etag: str
    size_bytes: int
    caption: str | None = None
    job_id: int | None = None
    reason: str | None = None
    image_id: int | None = None


@dataclass(frozen=True, slots=True)
class Settled:
    """Keys of pictures whose files have an outcome now."""

    stored: list[str]
    refused: list[str]
    passed: list[str]  # refused for a reason that may have passed: to be looked at again


def known_objects(connection: Connection, binding_id: int, keys: Sequence[str]) -> dict[str, KnownObject]:
    """What is known of these objects, by key."""
    rows = connection.execute(
        select(bound_objects).where(
            bound_objects.c.binding_id == binding_id, bound_objects.c.key == text("ANY(:keys)")
        ),
        {"keys": list(keys)},
    )
    return {row.key: _known(row) for row in rows}


def all_objects(connection: Connection, binding_id: int) -> Iterator[KnownObject]:
    """Everything known under a binding, by key."""
    query = select(bound_objects).where(bound_objects.c.binding_id == binding_id).order_by(bound_objects.c.key)
    return (_known(row) for row in connection.execute(query))


def picture_keys(connection: Connection, binding_id: int) -> list[str]:
    """The keys of all pictures, in order."""
    query = select(bound_objects.c.key).where(
        bound_objects.c.binding_id == binding_id, bound_objects.c.kind == ObjectKind.PICTURE
    )
    return list(connection.scalars(query.order_by(bound_objects.c.key)))


def keys_of_kind(connection: Connection, binding_id: int, kind: ObjectKind) -> list[str]:
    """The keys of the objects of one kind, in order; meant for kinds of which there are few."""
    query = select(bound_objects.c.key).where(bound_objects.c.binding_id == binding_id, bound_objects.c.kind == kind)
    return list(connection.scalars(query.order_by(bound_objects.c.key)))


def pictures_beside(connection: Connection, binding_id: int, stems: Sequence[str]) -> list[str]:
    """The keys of pictures named `stem` or `stem.anything`; a caption object may stand beside several."""
    return list(
        connection.scalars(
            text("""
                SELECT DISTINCT key FROM unnest(CAST(:stems AS text[])) AS stem
                JOIN bound_objects ON key = stem OR (key >= stem || '.' AND key < stem || '/')
                WHERE binding_id = :binding_id AND kind = 'picture'
            """),
            {"binding_id": binding_id, "stems": list(stems)},
        )
    )


def remember(connection: Connection, binding_id: int, seen: Sequence[SeenObject]) -> None:
    """Write what was seen; what was known of these objects before is replaced."""
    if not seen:
        return
    values = [
        {
            "binding_id": binding_id,
            "key": found.key,
            "kind": found.kind.value,
            "etag": found.etag,
            "size_bytes": found.size_bytes,
            "caption": found.caption,
            "job_id": found.job_id,
            "reason": found.reason,
            "image_id": found.image_id,
        }
        for found in seen
    ]
    statement = insert(bound_objects)
    replaced: dict[str, Any] = {
        name: statement.excluded[name] for name in values[0] if name not in ("binding_id", "key")
    }
    # The clock and not the transaction's time: two states of a row never bear the same.
    replaced |= {"file_no": None, "seen_at": func.clock_timestamp()}
    connection.execute(statement.on_conflict_do_update(index_elements=["binding_id", "key"], set_=replaced), values)


def forget(connection: Connection, binding_id: int, keys: Sequence[str]) -> None:
    """The objects are gone."""
    if keys:
        connection.execute(
            delete(bound_objects).where(
                bound_objects.c.binding_id == binding_id, bound_objects.c.key == text("ANY(:keys)")
            ),
            {"keys": list(keys)},
        )


def hand_over(connection: Connection, binding_id: int, job_id: int, keys: Sequence[str]) -> None:
    """The pictures `keys` are the files 0, 1, … of an ingest job."""
    connection.execute(
        text("""
            UPDATE bound_objects SET job_id = :job_id, file_no = handed.number - 1
            FROM unnest(CAST(:keys AS text[])) WITH ORDINALITY AS handed (key, number)
            WHERE binding_id = :binding_id AND bound_objects.key = handed.key
        """),
        {"binding_id": binding_id, "job_id": job_id, "keys": list(keys)},
    )


def bindings_to_settle(connection: Connection) -> set[int]:
    """The bindings that `settle` has something to do for."""
    return set(connection.scalars(text(f"SELECT DISTINCT binding_id {_ENDED}")))


def settle(connection: Connection, binding_id: int, passing: Sequence[str]) -> Settled:
    """Take over the outcomes of files: the image, or the reason why there is none.

    A cancelled file leaves no trace here, so that the next scan finds its object anew; neither does one that was
    rejected for one of the `passing` reasons.
    """
    parameters = {"binding_id": binding_id, "passing": list(passing)}
    open_again = connection.execute(
        text(f"""
            DELETE FROM bound_objects AS again USING (
                SELECT binding_id, key, files.status {_ENDED} AND binding_id = :binding_id
                AND (files.status = 'cancelled' OR files.reason = ANY(:passing))
            ) ended
            WHERE again.binding_id = ended.binding_id AND again.key = ended.key
            RETURNING again.key, ended.status
        """),  # noqa: S608 - a constant
        parameters,
    ).all()
    rows = connection.execute(
        text(f"""
            UPDATE bound_objects AS settled SET job_id = NULL, file_no = NULL, image_id = ended.image_id,
                   reason = CASE WHEN ended.image_id IS NULL THEN coalesce(ended.reason, ended.status) END
            FROM (SELECT binding_id, key, files.image_id, files.status, files.reason {_ENDED}
                  AND binding_id = :binding_id) ended
            WHERE settled.binding_id = ended.binding_id AND settled.key = ended.key
            RETURNING settled.key, settled.image_id
        """),  # noqa: S608 - a constant
        parameters,
    ).all()
    return Settled(
        stored=[row.key for row in rows if row.image_id is not None],
        refused=[row.key for row in rows if row.image_id is None],
        passed=[row.key for row in open_again if row.status != "cancelled"],
    )


def sharers(connection: Connection, archive_id: int, image_ids: Sequence[int]) -> dict[int, list[tuple[int, str]]]:
    """By image the (binding, key) of every bound object of the archive that has it, in order."""
    rows = connection.execute(
        text("""
            SELECT image_id, binding_id, key FROM bound_objects JOIN bindings ON bindings.id = binding_id
            WHERE archive_id = :archive_id AND image_id = ANY(:image_ids) ORDER BY image_id, binding_id, key
        """),
        {"archive_id": archive_id, "image_ids": list(image_ids)},
    )
    found: dict[int, list[tuple[int, str]]] = {}
    for row in rows:
        found.setdefault(row.image_id, []).append((row.binding_id, row.key))
    return found


def adopt(connection: Connection, binding_id: int, images: Mapping[str, int]) -> None:
    """Note which image each of these pictures is, by key."""
    if images:
        statement = update(bound_objects).where(
            bound_objects.c.binding_id == binding_id, bound_objects.c.key == bindparam("of_key")
        )
        connection.execute(
            statement.values(image_id=bindparam("found"), reason=None),
            [{"of_key": key, "found": image_id} for key, image_id in images.items()],
        )


_ENDED = """
    FROM bound_objects JOIN files USING (job_id, file_no)
    WHERE bound_objects.job_id IS NOT NULL AND files.status IS NOT NULL
"""


def _known(row: Row[Any]) -> KnownObject:
    return KnownObject(
        row.key,
        ObjectKind(row.kind),
        row.etag,
        row.size_bytes,
        row.caption,
        row.job_id,
        row.file_no,
        row.image_id,
        row.reason,
        row.seen_at,
    )
