"""Which model versions there are, and which one is the champion of its role in a profile.

A version is a base model, or an adapter on one, with its prompt and its threshold. Its name says which weights it
is, so a version never changes: other weights or another prompt are another name.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import ColumnElement, Connection, and_, func, select, text, tuple_, update
from sqlalchemy.dialects.postgresql import insert

from ragllava.records import Role
from ragllava.stores.schema import model_versions

_LOCK_SPACE = 0x52616752  # our corner of the advisory locks: champions


@dataclass(frozen=True, slots=True)
class BaseVersion:
    """A base model as a worker has loaded it. `threshold` (η) is for rerankers; `manifest` maps files to sha256."""

    role: Role
    name: str
    prompt: str
    threshold: float | None = None
    threshold_curve: dict[str, Any] | None = None
    manifest: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ModelVersion:
    """A registered version. `adapter_sha256` is None for a base model as it is."""

    version_id: int
    role: Role
    name: str
    profile: str
    prompt: str
    threshold: float | None
    adapter_sha256: str | None


def ensure_champions(connection: Connection, profile: str, bases: Sequence[BaseVersion]) -> dict[Role, ModelVersion]:
    """Register the base models that a worker has loaded, and return the champion of each of their roles.

    A base becomes champion where there is none, or in place of another base that is as it came: then the files
    of the profile's model were exchanged. It never takes the place of a champion with an adapter. What is
    registered is not changed. Workers that start together do this one after the other.
    """
    connection.execute(select(func.pg_advisory_xact_lock(_LOCK_SPACE, func.hashtext(profile))))
    _register(connection, profile, bases)
    _retire_other_bases(connection, profile, bases)
    _promote(connection, profile, bases)
    found = {base.role: champion(connection, base.role, profile) for base in bases}
    return {role: version for role, version in found.items() if version is not None}


def champion(connection: Connection, role: Role, profile: str) -> ModelVersion | None:
    """The version that a role is played by; None before the first worker of the profile has started."""
    row = connection.execute(
        select(model_versions).where(
            model_versions.c.role == role.value,
            model_versions.c.profile == profile,
            model_versions.c.state == "champion",
        )
    ).one_or_none()
    if row is None:
        return None
    return ModelVersion(row.id, Role(row.role), row.name, row.profile, row.prompt, row.threshold, row.adapter_sha256)


def _register(connection: Connection, profile: str, bases: Sequence[BaseVersion]) -> None:
    values = [
        {
            "role": base.role.value,
            "name": base.name,
            "profile": profile,
            "state": "candidate",
            "prompt": base.prompt,
            "threshold": base.threshold,
            "threshold_curve": base.threshold_curve,
            "manifest": base.manifest,
        }
        for base in bases
    ]
    connection.execute(insert(model_versions).on_conflict_do_nothing(), values)


def _retire_other_bases(connection: Connection, profile: str, bases: Sequence[BaseVersion]) -> None:
    connection.execute(
        update(model_versions)
        .where(
            model_versions.c.profile == profile,
            model_versions.c.state == "champion",
            model_versions.c.adapter_sha256.is_(None),
            model_versions.c.role.in_([base.role.value for base in bases]),
            ~_is_one_of(bases),
        )
        .values(state="retired")
    )


def _promote(connection: Connection, profile: str, bases: Sequence[BaseVersion]) -> None:
    present = model_versions.alias("present")
    has_champion = select(text("1")).where(
        present.c.role == model_versions.c.role,
        present.c.profile == model_versions.c.profile,
        present.c.state == "champion",
    )
    connection.execute(
        update(model_versions)
        .where(and_(model_versions.c.profile == profile, _is_one_of(bases), ~has_champion.exists()))
        .values(state="champion", promoted_at=func.now())
    )


def _is_one_of(bases: Sequence[BaseVersion]) -> ColumnElement[bool]:
    names = [(base.role.value, base.name) for base in bases]
    return tuple_(model_versions.c.role, model_versions.c.name).in_(names)
