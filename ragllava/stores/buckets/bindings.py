"""Bindings: which part of a bucket belongs to an archive. Every function works in the caller's transaction."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any

from sqlalchemy import Connection, Select, delete, func, literal, select, text, update
from sqlalchemy.dialects.postgresql import insert

from ragllava.errors import UsageError
from ragllava.stores.database import record, records
from ragllava.stores.schema import archives, bindings


class BindingRole(StrEnum):
    """What the objects under a binding are."""

    PICTURES = "pictures"  # pictures and their captions, for the archive
    INBOX = "inbox"  # question files, to be answered from the archive


@dataclass(frozen=True, slots=True)
class Binding:
    """One bound part of a bucket. `prefix` ends with a slash, or is empty: then the whole bucket is bound.

    `options` of an inbox hold `outbox` (`s3://bucket/prefix/`), and perhaps `answer`, `skip_invalid` and `priority`.
    """

    binding_id: int
    archive_id: int
    archive: str
    role: BindingRole
    bucket: str
    prefix: str
    options: dict[str, Any]

    @property
    def address(self) -> str:
        """`s3://bucket/prefix/`."""
        return f"s3://{self.bucket}/{self.prefix}"


@dataclass(frozen=True, slots=True)
class BindingView:
    """A binding and counts of its objects."""

    binding: Binding
    objects: int
    pictures: int
    refused: int  # not usable
    waiting: int  # their pictures are being embedded
    scanned_at: datetime | None

    def as_json(self) -> dict[str, Any]:
        """For `--json`."""
        return {
            "address": self.binding.address,
            "role": self.binding.role.value,
            "options": self.binding.options,
            "objects": self.objects,
            "pictures": self.pictures,
            "refused": self.refused,
            "waiting": self.waiting,
            "scanned_at": self.scanned_at.isoformat() if self.scanned_at else None,
        }


def bind(
    connection: Connection, archive_id: int, role: BindingRole, bucket: str, prefix: str, options: dict[str, Any]
) -> Binding:
    """Bind a part of a bucket to an archive; binding the same part again only replaces the options.

    Raises UsageError when the part overlaps with another binding, or with an outbox: an object belongs to one binding,
    and results must not become inputs.
    """
    address, outbox = f"s3://{bucket}/{prefix}", options.get("outbox")
    if outbox is not None and _overlap(outbox, address):
        raise UsageError(f"{address} overlaps with its own outbox {outbox}: the results would become inputs")
    # Overlapping bindings must not be created concurrently.
    connection.execute(text("LOCK TABLE bindings IN SHARE ROW EXCLUSIVE MODE"))
    for binding in list_bindings(connection):
        if (binding.address, binding.archive_id, binding.role) != (address, archive_id, role):
            _refuse_overlap(binding, address, outbox)
    new = insert(bindings).values(archive_id=archive_id, role=role, bucket=bucket, prefix=prefix, options=options)
    connection.execute(
        new.on_conflict_do_update(index_elements=["bucket", "prefix"], set_={"options": new.excluded.options})
    )
    return get_binding(connection, bucket, prefix)


def unbind(connection: Connection, binding_id: int) -> None:
    """Remove a binding and the records of its objects; the archive's images stay."""
    connection.execute(delete(bindings).where(bindings.c.id == binding_id))


def get_binding(connection: Connection, bucket: str, prefix: str) -> Binding:
    """The binding of exactly this part. Raises UsageError that lists the existing ones."""
    row = connection.execute(_select().where(bindings.c.bucket == bucket, bindings.c.prefix == prefix)).one_or_none()
    if row is not None:
        return record(Binding, row)
    addresses = [binding.address for binding in list_bindings(connection)]
    bound = f"; these are bound: {', '.join(addresses[:10])}" if addresses else ", and no other bucket is bound"
    raise UsageError(f"s3://{bucket}/{prefix} is not bound{bound}")


def covers(connection: Connection, bucket: str, key: str, *, pictures_of: int | None = None) -> bool:
    """Whether a binding covers this object, or all objects below this prefix.

    With `pictures_of`, only bindings count from which the archive of this id has its pictures.
    """
    below = [bindings.c.bucket == bucket, func.starts_with(literal(key), bindings.c.prefix)]
    if pictures_of is not None:
        below += [bindings.c.archive_id == pictures_of, bindings.c.role == BindingRole.PICTURES]
    return connection.scalar(select(bindings.c.id).where(*below).limit(1)) is not None


def has_dots(key: str) -> bool:
    """Whether a key or prefix has a segment `.` or `..`, which a store may resolve to another bucket."""
    return bool({".", ".."} & set(key.split("/")))


def list_bindings(connection: Connection, archive_id: int | None = None) -> list[Binding]:
    """The bindings of one archive, or of all, by bucket and prefix."""
    query = _select().order_by(bindings.c.bucket, bindings.c.prefix)
    if archive_id is not None:
        query = query.where(bindings.c.archive_id == archive_id)
    return records(Binding, connection.execute(query))


def load_bindings(connection: Connection, ids: set[int]) -> dict[int, Binding]:
    """Bindings by id; those that are gone are left out."""
    rows = connection.execute(_select().where(bindings.c.id.in_(ids)))
    return {row.binding_id: record(Binding, row) for row in rows}


def lock(connection: Connection, binding_id: int) -> bool:
    """Lock this binding until the transaction ends; False when it does not exist any more."""
    query = select(bindings.c.id).where(bindings.c.id == binding_id).with_for_update()
    return connection.scalar(query) is not None


def record_scan(connection: Connection, binding_id: int) -> None:
    """Record that the binding was compared with its bucket now."""
    connection.execute(update(bindings).where(bindings.c.id == binding_id).values(scanned_at=func.now()))


def view_bindings(connection: Connection, archive_id: int) -> list[BindingView]:
    """The bindings of an archive with counts. Reads the rows of all their objects: slow for large buckets."""
    query = text("""
        SELECT bindings.id, scanned_at, count(key) AS objects,
               count(*) FILTER (WHERE kind = 'picture') AS pictures,
               count(*) FILTER (WHERE reason IS NOT NULL) AS refused,
               count(*) FILTER (WHERE job_id IS NOT NULL AND file_no IS NOT NULL) AS waiting
        FROM bindings LEFT JOIN bound_objects ON binding_id = bindings.id
        WHERE archive_id = :archive_id GROUP BY bindings.id
    """)
    counts = {row.id: row for row in connection.execute(query, {"archive_id": archive_id})}
    return [
        record(BindingView, counts[binding.binding_id], binding=binding)
        for binding in list_bindings(connection, archive_id)
        if binding.binding_id in counts
    ]


def covering(candidates: list[Binding], bucket: str, key: str) -> Binding | None:
    """The one of the bindings that an object belongs to."""
    return next((b for b in candidates if b.bucket == bucket and key.startswith(b.prefix)), None)


def _refuse_overlap(binding: Binding, address: str, outbox: str | None) -> None:
    if _overlap(address, binding.address):
        raise UsageError(
            f"{address} overlaps with {binding.address}, which is bound to the archive {binding.archive} as "
            f"{binding.role.value}; choose another prefix, or run "
            f"`ragllava archive unbind {binding.archive} {binding.address}` first"
        )
    for results, inputs in ((binding.options.get("outbox"), address), (outbox, binding.address)):
        if results is not None and _overlap(results, inputs):
            raise UsageError(f"{inputs} overlaps with the outbox {results}: the results would become inputs")


def _overlap(first: str, second: str) -> bool:
    return first.startswith(second) or second.startswith(first)


def _select() -> Select[Any]:
    columns = (bindings.c.id.label("binding_id"), bindings, archives.c.name.label("archive"))
    return select(*columns).join(archives, archives.c.id == bindings.c.archive_id)
