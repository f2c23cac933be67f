"""The last observed state of the objects under a binding, and the image that each picture became.

A picture has a job and a file number from the moment it is assigned to an ingest job until that file has an outcome;
until then nothing else is done about it, so that no job can overtake another one. Every function works in the
caller's transaction.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any

from sqlalchemy import ColumnElement, Connection, and_, delete, func, select, text, update
from sqlalchemy.dialects.postgresql import insert

from ragllava.metadata import Metadata, picture_name
from ragllava.picture_names import name_group
from ragllava.stores.buckets.bindings import Binding
from ragllava.stores.database import equals_any, given, records
from ragllava.stores.schema import bindings, bound_objects


class ObjectKind(StrEnum):
    """The kind of an object, by its name and the role of its binding."""

    PICTURE = "picture"
    CAPTION = "caption"  # a sidecar beside a picture
    CAPTIONS = "captions"  # a caption file of the pictures beside it and below
    QUESTIONS = "questions"
    OTHER = "other"


@dataclass(frozen=True, slots=True)
class ObjectState:
    """The observed state of an object. `image_id` is the image that was made of this content, if any."""

    key: str
    kind: ObjectKind
    etag: str
    size_bytes: int
    caption: str | None = None
    job_id: int | None = None
    reason: str | None = None  # why nothing was made of it
    image_id: int | None = None
    metadata: Metadata | None = None  # of a caption object


@dataclass(frozen=True, slots=True, kw_only=True)
class BoundObject(ObjectState):
    """The recorded state of an object. `seen_at` differs between any two states of a row."""

    file_no: int | None
    seen_at: datetime

    @property
    def is_waiting(self) -> bool:
        """A picture whose file has no outcome yet."""
        return self.job_id is not None and self.file_no is not None


@dataclass(frozen=True, slots=True)
class Settled:
    """Keys of pictures whose files have an outcome now."""

    stored: list[str]
    refused: list[str]
    transient: list[str]  # rejected for a reason that may not hold any more: to be observed again


def load_objects(connection: Connection, binding_id: int, keys: Iterable[str]) -> dict[str, BoundObject]:
    """The recorded states of these objects, by key."""
    rows = connection.execute(select(bound_objects).where(_are(binding_id, keys)))
    return {row.key: row for row in records(BoundObject, rows)}


def all_objects(connection: Connection, binding_id: int) -> list[BoundObject]:
    """The recorded states of all objects under a binding, by key. For a small binding: all of them are in memory."""
    query = select(bound_objects).where(bound_objects.c.binding_id == binding_id).order_by(bound_objects.c.key)
    return records(BoundObject, connection.execute(query))


def unlinked_pictures(connection: Connection, binding_id: int, after: str, limit: int) -> dict[str, str | None]:
    """The next settled pictures without a living image, by key, with the reason why there is none."""
    query = text("""
        SELECT key, reason FROM bound_objects LEFT JOIN images ON images.id = image_id AND NOT retired
        WHERE binding_id = :binding_id AND kind = 'picture' AND (job_id IS NULL OR file_no IS NULL)
          AND images.id IS NULL AND key > :after ORDER BY key LIMIT :limit
    """)
    return dict(connection.execute(query, {"binding_id": binding_id, "after": after, "limit": limit}).all())


def refused_objects(connection: Connection, binding_id: int, after: str, limit: int) -> list[BoundObject]:
    """The next settled objects of which nothing was made, by key."""
    refused = (
        bound_objects.c.reason.is_not(None),
        bound_objects.c.image_id.is_(None),
        bound_objects.c.job_id.is_(None),
    )
    query = select(bound_objects).where(bound_objects.c.binding_id == binding_id, bound_objects.c.key > after, *refused)
    return records(BoundObject, connection.execute(query.order_by(bound_objects.c.key).limit(limit)))


def pictures_beside(connection: Connection, binding_id: int, stems: Sequence[str]) -> list[str]:
    """The keys of pictures named `stem` or `stem.anything`; a caption object may belong to several."""
    query = text("""
        SELECT DISTINCT key FROM unnest(CAST(:stems AS text[])) AS stem
        JOIN bound_objects ON key = stem OR (key >= stem || '.' AND key < stem || '/')
        WHERE binding_id = :binding_id AND kind = 'picture'
    """)
    return list(connection.scalars(query, {"binding_id": binding_id, "stems": list(stems)}))


def save_objects(connection: Connection, binding: Binding, states: Sequence[ObjectState]) -> None:
    """Record the observed states of objects; former ones are replaced."""
    if not states:
        return
    values = [
        {"binding_id": binding.binding_id, **asdict(state), **_names(binding, state), "caption_due": False}
        for state in sorted(states, key=lambda state: state.key)  # in one order, to avoid deadlocks
    ]
    statement = insert(bound_objects)
    replaced: dict[str, Any] = {
        name: statement.excluded[name] for name in values[0] if name not in ("binding_id", "key")
    }
    # The clock and not the transaction's time, and later than before even if the clock was set back: no two states of
    # a row have the same one.
    later = func.greatest(func.clock_timestamp(), bound_objects.c.seen_at + text("interval '1 microsecond'"))
    replaced |= {"file_no": None, "seen_at": later}
    connection.execute(statement.on_conflict_do_update(index_elements=["binding_id", "key"], set_=replaced), values)


def delete_objects(connection: Connection, binding_id: int, keys: Sequence[str]) -> None:
    """Remove the records of objects that do not exist any more."""
    if keys:
        connection.execute(delete(bound_objects).where(_are(binding_id, keys)))


def assign_job(connection: Connection, binding_id: int, job_id: int, keys: Sequence[str]) -> None:
    """Record that the pictures `keys` are the files 0, 1, … of an ingest job."""
    new = given(((key, number) for number, key in enumerate(keys)), bound_objects.c.key, bound_objects.c.file_no).c
    pictures = update(bound_objects).where(bound_objects.c.binding_id == binding_id, bound_objects.c.key == new.key)
    connection.execute(pictures.values(job_id=job_id, file_no=new.file_no))


def bindings_to_settle(connection: Connection) -> set[int]:
    """The bindings with pictures that `settle` can settle."""
    return set(connection.scalars(text(f"SELECT DISTINCT binding_id {_ENDED}")))


def settle(connection: Connection, binding_id: int, transient_reasons: Sequence[str]) -> Settled:
    """Record the outcomes of files: the image, or the reason why there is none.

    The record of a cancelled file is removed, so that the next scan finds its object again; so is that of a file that
    was rejected for one of the `transient_reasons`.
    """
    parameters = {"binding_id": binding_id, "transient": list(transient_reasons)}
    removed = connection.execute(
        text(f"""
            DELETE FROM bound_objects AS removed USING (
                SELECT binding_id, key, files.status {_ENDED} AND binding_id = :binding_id
                AND (files.status = 'cancelled' OR files.reason = ANY(:transient))
            ) ended
            WHERE removed.binding_id = ended.binding_id AND removed.key = ended.key
            RETURNING removed.key, ended.status
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
        transient=[row.key for row in removed if row.status != "cancelled"],
    )


def objects_of_images(
    connection: Connection, archive_id: int, image_ids: Sequence[int]
) -> dict[int, list[tuple[int, str]]]:
    """By image, the (binding, key) of every bound object of the archive with this image, in order."""
    columns = (bound_objects.c.image_id, bound_objects.c.binding_id, bound_objects.c.key)
    query = select(*columns).join(bindings, bindings.c.id == bound_objects.c.binding_id)
    query = query.where(bindings.c.archive_id == archive_id, equals_any(bound_objects.c.image_id, image_ids))
    objects: dict[int, list[tuple[int, str]]] = defaultdict(list)
    for image_id, binding_id, key in connection.execute(query.order_by(*columns)):
        objects[image_id].append((binding_id, key))
    return objects


def link_images(connection: Connection, binding_id: int, images: Mapping[str, int]) -> None:
    """Record which image each of these pictures is, by key."""
    new = given(images.items(), bound_objects.c.key, bound_objects.c.image_id).c
    pictures = update(bound_objects).where(bound_objects.c.binding_id == binding_id, bound_objects.c.key == new.key)
    connection.execute(pictures.values(image_id=new.image_id, reason=None))


_ENDED = """
    FROM bound_objects JOIN files USING (job_id, file_no)
    WHERE bound_objects.job_id IS NOT NULL AND files.status IS NOT NULL
"""


def _names(binding: Binding, state: ObjectState) -> dict[str, str | None]:
    """How caption files name a picture."""
    if state.kind is not ObjectKind.PICTURE:
        return {"name": None, "base_name": None}
    name = picture_name(state.key.removeprefix(binding.prefix))
    return {"name": name, "base_name": name_group(name)}


def _are(binding_id: int, keys: Iterable[str]) -> ColumnElement[bool]:
    return and_(bound_objects.c.binding_id == binding_id, equals_any(bound_objects.c.key, keys))
