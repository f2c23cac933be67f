"""Which versions became champion, when and why: the registry writes it, people look at it."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Row, insert, select

from ragllava.records import Role
from ragllava.stores.database import records
from ragllava.stores.schema import model_versions, promotions


@dataclass(frozen=True, slots=True)
class Promotion:
    """A version that became champion. `replaced` is what a rollback of it leads to; None: it is the first."""

    role: Role
    version: str
    replaced: str | None
    reason: str
    promoted_at: datetime


def list_promotions(
    connection: Connection, profile: str, role: Role | None = None, limit: int = 100
) -> list[Promotion]:
    """The promotions and rollbacks of a profile, the newest first."""
    replaced = model_versions.alias("replaced")
    query = (
        select(promotions, model_versions.c.name.label("version"), replaced.c.name.label("replaced"))
        .join(model_versions, model_versions.c.id == promotions.c.version_id)
        .outerjoin(replaced, replaced.c.id == promotions.c.replaced_id)
        .where(promotions.c.profile == profile)
    )
    if role is not None:
        query = query.where(promotions.c.role == role.value)
    return records(Promotion, connection.execute(query.order_by(promotions.c.id.desc()).limit(limit)))


def write_promotion(connection: Connection, version: Row[Any], replaced_id: int | None, reason: str) -> None:
    """The version of this row became champion; a rollback of it goes to `replaced_id`."""
    values = {"role": version.role, "profile": version.profile, "version_id": version.id}
    connection.execute(insert(promotions).values(**values, replaced_id=replaced_id, reason=reason))
