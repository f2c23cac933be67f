"""Which model versions there are, and which one is the champion of its role in a profile.

A version is a base model, or an adapter on one, with its prompt and its threshold. Its name says which weights it
is, so a version never changes: other weights or another prompt are another name. A version is a candidate (known,
no more), a challenger (it passed its gate and waits), the champion (what workers compute with), or retired.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal

from sqlalchemy import ColumnElement, Connection, Row, and_, func, select, text, tuple_, update
from sqlalchemy.dialects.postgresql import insert

from ragllava.errors import UsageError
from ragllava.json_records import to_json
from ragllava.records import Role
from ragllava.stores.schema import model_versions, promotions

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
class AdapterVersion:
    """A trained adapter to be registered, after its files were published (stages/champions.py).

    `adapter_sha256` is the digest of `manifest`; `base` names the version that the adapter lies on. `training` is
    kept as given; `ragllava models` reads from it `job`, `archives`, `snapshot`, `hold_out` (ids), `gate` and `scores`
    (as a Contest has them) and `report` (a TrainingReport, for its curves). `threshold` (η) and its fit are for
    rerankers.
    """

    role: Role
    name: str
    profile: str
    prompt: str
    threshold: float | None
    threshold_curve: dict[str, Any] | None
    adapter_sha256: str
    manifest: dict[str, str]
    base: str
    training: dict[str, Any]
    state: Literal["candidate", "challenger"] = "candidate"


@dataclass(frozen=True, slots=True)
class ModelVersion:
    """A registered version. `adapter_sha256`, `base` and `training` are None for a base model as it is."""

    version_id: int
    role: Role
    name: str
    profile: str
    prompt: str
    threshold: float | None
    adapter_sha256: str | None
    base: str | None = None
    manifest: dict[str, str] = field(default_factory=dict)
    training: dict[str, Any] | None = None

    @property
    def base_name(self) -> str:
        """The base model that must be loaded for it: its own name for a base as it is."""
        return self.base or self.name


@dataclass(frozen=True, slots=True)
class VersionView:
    """A version as people see it. `promoted_at` is None for one that was never champion."""

    version: ModelVersion
    state: str
    threshold_curve: dict[str, Any] | None
    created_at: datetime
    promoted_at: datetime | None

    def as_json(self) -> dict[str, Any]:
        """Everything about it, for programs."""
        version = self.version
        return {
            "name": version.name,
            "role": version.role.value,
            "profile": version.profile,
            "state": self.state,
            "base": version.base_name,
            "adapter_sha256": version.adapter_sha256,
            "prompt": version.prompt,
            "threshold": version.threshold,
            "threshold_curve": self.threshold_curve,
            "training": version.training,
            "manifest": version.manifest,
            "created_at": self.created_at,
            "promoted_at": self.promoted_at,
        }


def ensure_champions(connection: Connection, profile: str, bases: Sequence[BaseVersion]) -> dict[Role, ModelVersion]:
    """Register the base models that a worker has loaded, and return the champion of each of their roles.

    A base becomes champion where there is none, or in place of another base that is as it came: then the files
    of the profile's model were exchanged. It never takes the place of a champion with an adapter. What is
    registered is not changed. Workers that start together do this one after the other.
    """
    _lock(connection, profile)
    _register(connection, profile, bases)
    _retire_other_bases(connection, profile, bases)
    _promote_bases(connection, profile, bases)
    found = champions(connection, profile)
    return {base.role: found[base.role] for base in bases if base.role in found}


def register_adapter(connection: Connection, version: AdapterVersion) -> ModelVersion:
    """Register a published adapter as a candidate or challenger; doing it again changes nothing.

    A new challenger sets aside (retires) the one that waited in its role. Raises UsageError when the name belongs
    to another adapter.
    """
    _lock(connection, version.profile)
    known = _find(connection, version.profile, version.role, version.name)
    if known is None:
        if version.state == "challenger":
            _set_aside_challengers(connection, version)
        made = insert(model_versions).values(to_json(version)).returning(model_versions)
        return _as_version(connection.execute(made).one())
    if known.adapter_sha256 != version.adapter_sha256:
        raise UsageError(
            f"the {version.role} version {version.name} is registered with other weights; give the new one another name"
        )
    return _as_version(known)


def promote(connection: Connection, profile: str, role: Role, name: str, reason: str) -> ModelVersion:
    """Make a registered version, in whatever state, the champion of its role, with its own η; returns it.

    The champion of before retires. A version that is champion already stays so, and nothing is written. `reason` is
    for people. Raises UsageError for an unknown name.
    """
    _lock(connection, profile)
    chosen = _find(connection, profile, role, name)
    if chosen is None:
        raise UsageError(f"profile {profile} has no {role} version {name}; `ragllava models list` shows what there is")
    if chosen.state == "champion":
        return _as_version(chosen)
    replaced = champion(connection, role, profile)
    return _crown(connection, chosen, replaced.version_id if replaced else None, reason)


def rollback(connection: Connection, profile: str, role: Role) -> ModelVersion:
    """Bring back the version that the present champion of a role replaced, with its η; returns it.

    Done again it goes one champion further back. Raises UsageError when there is nothing to go back to.
    """
    _lock(connection, profile)
    line = _line_of_champions(connection, profile, role)
    if len(line) < 2:
        raise UsageError(
            f"there is no further version that the {role} of profile {profile} can go back to; "
            "`ragllava models promote NAME` makes any version champion"
        )
    *further, before, present = line
    rows = connection.execute(select(model_versions).where(model_versions.c.id.in_([before, present])))
    by_id = {row.id: row for row in rows}
    reason = f"rollback of {by_id[present].name}"
    return _crown(connection, by_id[before], further[-1] if further else None, reason)


def champion(connection: Connection, role: Role, profile: str) -> ModelVersion | None:
    """The version that a role is played by; None before the first worker of the profile has started."""
    return champions(connection, profile).get(role)


def champions(connection: Connection, profile: str) -> dict[Role, ModelVersion]:
    """The champions of all roles of a profile as of one moment."""
    rows = connection.execute(
        select(model_versions).where(model_versions.c.profile == profile, model_versions.c.state == "champion")
    )
    return {Role(row.role): _as_version(row) for row in rows}


def list_versions(connection: Connection, profile: str | None = None, role: Role | None = None) -> list[VersionView]:
    """All versions, by profile and role, the newest first."""
    query = select(model_versions).order_by(model_versions.c.profile, model_versions.c.role, model_versions.c.id.desc())
    if profile is not None:
        query = query.where(model_versions.c.profile == profile)
    if role is not None:
        query = query.where(model_versions.c.role == role.value)
    return [
        VersionView(_as_version(row), row.state, row.threshold_curve, row.created_at, row.promoted_at)
        for row in connection.execute(query)
    ]


def find_version(connection: Connection, profile: str, name: str, role: Role | None = None) -> VersionView:
    """The version of this name, or the only one whose name begins so. Raises UsageError for none or several."""
    found = _matching(list_versions(connection, profile, role), name)
    if len(found) == 1:
        return found[0]
    if not found:
        what = f"{role} version" if role else "version"
        raise UsageError(f"profile {profile} has no {what} {name}; `ragllava models list` shows what there is")
    meant = ", ".join(f"{view.version.role} {view.version.name}" for view in found[:5])
    advice = "add --role" if len({view.version.name for view in found}) == 1 else "write more of the name"
    raise UsageError(f"{name} may be any of {len(found)} versions ({meant}); {advice}")


def find_pair(
    connection: Connection, profile: str, names: tuple[str, str], role: Role | None = None
) -> tuple[VersionView, VersionView]:
    """Two versions by their names, as `find_version`; without a role, in the only one that both names may have."""
    if role is None:
        everything = list_versions(connection, profile)
        roles = [{view.version.role for view in _matching(everything, name)} for name in names]
        shared = roles[0] & roles[1]
        role = shared.pop() if len(shared) == 1 else None
    first, second = (find_version(connection, profile, name, role) for name in names)
    return first, second


def _matching(views: Sequence[VersionView], name: str) -> list[VersionView]:
    """The versions of this name; where there is none, those whose name begins so."""
    exact = [view for view in views if view.version.name == name]
    return exact or [view for view in views if view.version.name.startswith(name)]


def _lock(connection: Connection, profile: str) -> None:
    connection.execute(select(func.pg_advisory_xact_lock(_LOCK_SPACE, func.hashtext(profile))))


def _find(connection: Connection, profile: str, role: Role, name: str) -> Row[Any] | None:
    return connection.execute(
        select(model_versions).where(
            model_versions.c.profile == profile, model_versions.c.role == role.value, model_versions.c.name == name
        )
    ).one_or_none()


def _as_version(row: Row[Any]) -> ModelVersion:
    return ModelVersion(
        version_id=row.id,
        role=Role(row.role),
        name=row.name,
        profile=row.profile,
        prompt=row.prompt,
        threshold=row.threshold,
        adapter_sha256=row.adapter_sha256,
        base=row.base,
        manifest=row.manifest,
        training=row.training,
    )


def _crown(connection: Connection, chosen: Row[Any], replaced_id: int | None, reason: str) -> ModelVersion:
    """Retire the champion, put `chosen` in its place and write that down; `replaced_id` is what it rests on."""
    of_role = and_(model_versions.c.role == chosen.role, model_versions.c.profile == chosen.profile)
    connection.execute(
        update(model_versions).where(of_role, model_versions.c.state == "champion").values(state="retired")
    )
    row = connection.execute(
        update(model_versions)
        .where(model_versions.c.id == chosen.id)
        .values(state="champion", promoted_at=func.now())
        .returning(model_versions)
    ).one()
    _write_promotion(connection, row, replaced_id, reason)
    return _as_version(row)


def _write_promotion(connection: Connection, row: Row[Any], replaced_id: int | None, reason: str) -> None:
    connection.execute(
        insert(promotions).values(
            role=row.role, profile=row.profile, version_id=row.id, replaced_id=replaced_id, reason=reason
        )
    )


def _line_of_champions(connection: Connection, profile: str, role: Role) -> list[int]:
    """Ids of the champions that a rollback can reach, the present one last, each of them once.

    The row of a promotion names the champion that it replaced. The row of a rollback names what the version that
    came back had replaced itself: that differs from the champion before, since a version stands in the line once.
    """
    line: list[int] = []
    rows = connection.execute(
        select(promotions.c.version_id, promotions.c.replaced_id)
        .where(promotions.c.profile == profile, promotions.c.role == role.value)
        .order_by(promotions.c.id)
    )
    for version_id, replaced_id in rows:
        if replaced_id is None:
            line = [version_id]  # the first champion, or the only one that was left
        elif not line or line[-1] == replaced_id:
            line = [known for known in line or [replaced_id] if known != version_id] + [version_id]
        else:
            line.pop()
    return line


def _set_aside_challengers(connection: Connection, version: AdapterVersion) -> None:
    connection.execute(
        update(model_versions)
        .where(
            model_versions.c.profile == version.profile,
            model_versions.c.role == version.role.value,
            model_versions.c.state == "challenger",
        )
        .values(state="retired")
    )


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


def _promote_bases(connection: Connection, profile: str, bases: Sequence[BaseVersion]) -> None:
    """Where a role has no champion. There is nothing to go back to: the files of a base of before are gone."""
    present = model_versions.alias("present")
    has_champion = select(text("1")).where(
        present.c.role == model_versions.c.role,
        present.c.profile == model_versions.c.profile,
        present.c.state == "champion",
    )
    crowned = connection.execute(
        update(model_versions)
        .where(and_(model_versions.c.profile == profile, _is_one_of(bases), ~has_champion.exists()))
        .values(state="champion", promoted_at=func.now())
        .returning(model_versions)
    )
    for row in crowned.all():
        _write_promotion(connection, row, None, "the base model of the first worker that started with it")


def _is_one_of(bases: Sequence[BaseVersion]) -> ColumnElement[bool]:
    names = [(base.role.value, base.name) for base in bases]
    return tuple_(model_versions.c.role, model_versions.c.name).in_(names)
