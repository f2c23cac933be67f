"""The registered model versions, and the champion of each role in a profile.

A version is a base model, or an adapter on one, with its prompt and its threshold. Its name identifies its weights and
prompt, so a version never changes: other weights or another prompt have another name. A version is a candidate (only
registered), a challenger (passed its gate, not promoted), the champion (used by the workers), or retired.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime
from typing import Any, Literal

from sqlalchemy import ColumnElement, Connection, Row, and_, exists, func, select, text, tuple_, update
from sqlalchemy.dialects.postgresql import insert

from ragllava.errors import NotFound, UsageError
from ragllava.json_records import to_json
from ragllava.records import Role
from ragllava.stores.database import lock_name, record, same
from ragllava.stores.learning.promotions import write_promotion
from ragllava.stores.schema import model_versions, promotions


@dataclass(frozen=True, slots=True)
class BaseVersion:
    """A base model as a worker has loaded it. `threshold` (η) is for rerankers; `manifest` maps files to sha256."""

    role: Role
    name: str
    prompt: str
    threshold: float | None = None
    threshold_curve: dict[str, Any] | None = None
    manifest: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterVersion(BaseVersion):
    """A trained adapter to be registered, after its files were published (stages/champions.py).

    `adapter_sha256` is the digest of `manifest`; `base` names the version that the adapter was trained on. `training`
    is stored as given; `ragllava models` reads from it `job`, `archives`, `snapshot`, `hold_out` (ids), `gate` and
    `scores` (as a Contest has them) and `report` (a TrainingReport, for its curves). `threshold` (η) and its fit are
    for rerankers.
    """

    profile: str
    adapter_sha256: str
    base: str
    training: dict[str, Any]
    state: Literal["candidate", "challenger"] = "candidate"


@dataclass(frozen=True, slots=True)
class ModelVersion:
    """A registered version. `adapter_sha256`, `base` and `training` are None for a base model."""

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
        """The base model that must be loaded for it: its own name for a base model."""
        return self.base or self.name


@dataclass(frozen=True, slots=True)
class VersionView:
    """A version for display. `promoted_at` is None for one that was never champion."""

    version: ModelVersion
    state: str
    threshold_curve: dict[str, Any] | None
    created_at: datetime
    promoted_at: datetime | None

    def as_json(self) -> dict[str, Any]:
        """For `--json`."""
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

    A base becomes champion where there is none, or instead of another base model without an adapter: then the files of
    the profile's model were exchanged. It never replaces a champion with an adapter. Registered versions are not
    changed. Workers that start together do this one after the other.
    """
    _lock(connection, profile)
    _register(connection, profile, bases)
    _retire_other_bases(connection, profile, bases)
    _promote_bases(connection, profile, bases)
    current = champions(connection, profile)
    return {base.role: current[base.role] for base in bases if base.role in current}


def register_adapter(connection: Connection, version: AdapterVersion) -> ModelVersion:
    """Register a published adapter as a candidate or challenger; registering it again changes nothing.

    A new challenger retires the previous challenger of its role. Raises UsageError when the name belongs to another
    adapter.
    """
    _lock(connection, version.profile)
    registered = _find(connection, version.profile, version.role, version.name)
    if registered is None:
        if version.state == "challenger":
            _retire(connection, version.profile, version.role, "challenger")
        values = to_json(version)
        return _as_version(connection.execute(insert(model_versions).values(values).returning(model_versions)).one())
    if registered.adapter_sha256 != version.adapter_sha256:
        raise UsageError(
            f"the {version.role} version {version.name} is registered with other weights; give the new one another name"
        )
    return _as_version(registered)


def promote(connection: Connection, profile: str, role: Role, name: str, reason: str) -> ModelVersion:
    """Make a registered version, in any state, the champion of its role, with its own η; returns it.

    The previous champion is retired. For the present champion, nothing is written. `reason` is for display. Raises
    UsageError for an unknown name.
    """
    _lock(connection, profile)
    chosen = _find(connection, profile, role, name)
    if chosen is None:
        raise _unknown(profile, f"{role} version", name)
    if chosen.state == "champion":
        return _as_version(chosen)
    replaced = champion(connection, role, profile)
    return _promote(connection, chosen, replaced.version_id if replaced else None, reason)


def rollback(connection: Connection, profile: str, role: Role) -> ModelVersion:
    """Promote the version that the present champion of a role replaced, with its η; returns it.

    Each further call goes one champion further back. Raises UsageError when there is none.
    """
    _lock(connection, profile)
    line = _line_of_champions(connection, profile, role)
    if len(line) < 2:
        raise UsageError(
            f"the {role} of profile {profile} has no earlier version to go back to; "
            "`ragllava models promote NAME` makes any version champion"
        )
    *further, before, present = line
    rows = connection.execute(select(model_versions).where(model_versions.c.id.in_([before, present])))
    by_id = {row.id: row for row in rows}
    reason = f"rollback of {by_id[present].name}"
    return _promote(connection, by_id[before], further[-1] if further else None, reason)


def champion(connection: Connection, role: Role, profile: str) -> ModelVersion | None:
    """The champion of a role; None before the first worker of the profile has started."""
    return champions(connection, profile).get(role)


def champions(connection: Connection, profile: str) -> dict[Role, ModelVersion]:
    """The champions of all roles of a profile at one moment."""
    rows = connection.execute(
        select(model_versions).where(model_versions.c.profile == profile, model_versions.c.state == "champion")
    )
    return {Role(row.role): _as_version(row) for row in rows}


def record_contest(
    connection: Connection,
    version: ModelVersion,
    found: Mapping[str, Any],
    threshold: float | None,
    threshold_curve: dict[str, Any] | None,
    *,
    passed: bool,
) -> None:
    """Store a further contest of a candidate: what was `found` replaces that of the one before, which still counts as
    a try. One that `passed` is challenger and retires the previous one of its role. Raises UsageError for another state
    of the version.
    """
    _lock(connection, version.profile)
    row = connection.execute(select(model_versions).where(model_versions.c.id == version.version_id)).one()
    if row.state != "candidate":
        raise UsageError(f"version {version.name} became {row.state} while it was evaluated again")
    if passed:
        _retire(connection, version.profile, version.role, "challenger")
    story = row.training or {}
    before = {"champion": (story.get("gate") or {}).get("champion"), "at": _judged_at(row)}
    training = {
        **story,
        **found,
        "earlier": [*story.get("earlier", []), before],
        "judged_at": connection.execute(select(func.now())).scalar_one().isoformat(),
    }
    connection.execute(
        update(model_versions)
        .where(model_versions.c.id == version.version_id)
        .values(
            state="challenger" if passed else "candidate",
            threshold=threshold,
            threshold_curve=threshold_curve,
            training=training,
        )
    )


def count_tries(connection: Connection, champion: ModelVersion) -> int:
    """How many times a gate has compared a version with this champion since it was promoted."""
    query = text("""
        SELECT count(*) FROM model_versions v CROSS JOIN LATERAL (
            SELECT v.training->'gate'->>'champion', coalesce((v.training->>'judged_at')::timestamptz, v.created_at)
            UNION ALL SELECT earlier->>'champion', (earlier->>'at')::timestamptz
            FROM jsonb_array_elements(coalesce(v.training->'earlier', '[]')) earlier) AS contest (champion, at)
        WHERE v.profile = :profile AND v.role = :role AND contest.champion = :champion
          AND contest.at > (SELECT promoted_at FROM model_versions WHERE id = :id)
    """)
    values = {
        "profile": champion.profile,
        "role": champion.role.value,
        "champion": champion.name,
        "id": champion.version_id,
    }
    return int(connection.execute(query, values).scalar_one())


def newest_refused(connection: Connection, champion: ModelVersion) -> ModelVersion | None:
    """The newest version that the gate refused when it compared it with this champion."""
    refused = (
        _of_role(champion.profile, champion.role),
        model_versions.c.state == "candidate",
        model_versions.c.adapter_sha256.is_not(None),
        model_versions.c.training["gate"]["champion"].astext == champion.name,
    )
    newest = select(model_versions).where(*refused).order_by(model_versions.c.id.desc()).limit(1)
    row = connection.execute(newest).one_or_none()
    return None if row is None else _as_version(row)


def list_versions(
    connection: Connection, profile: str | None = None, role: Role | None = None, prefix: str = "", limit: int = 10**9
) -> list[VersionView]:
    """All versions whose names begin with `prefix`, by profile and role, the newest first; the first `limit`."""
    query = select(model_versions).order_by(model_versions.c.profile, model_versions.c.role, model_versions.c.id.desc())
    query = query.where(model_versions.c.name.startswith(prefix, autoescape=True)).limit(limit)
    if profile is not None:
        query = query.where(model_versions.c.profile == profile)
    if role is not None:
        query = query.where(model_versions.c.role == role.value)
    return [record(VersionView, row, version=_as_version(row)) for row in connection.execute(query)]


def find_version(connection: Connection, profile: str, name: str, role: Role | None = None) -> VersionView:
    """The version of this name, or the only version whose name starts so. Raises UsageError for none or several."""
    matches = _matching(list_versions(connection, profile, role, name), name)
    if len(matches) == 1:
        return matches[0]
    if not matches:
        raise _unknown(profile, f"{role} version" if role else "version", name)
    names = ", ".join(f"{view.version.role} {view.version.name}" for view in matches[:5])
    advice = "add --role" if len({view.version.name for view in matches}) == 1 else "write more of the name"
    raise UsageError(f"{name} may be any of {len(matches)} versions ({names}); {advice}")


def find_pair(
    connection: Connection, profile: str, names: tuple[str, str], role: Role | None = None
) -> tuple[VersionView, VersionView]:
    """Two versions by their names, as `find_version`; without a role, in the only role that has both names."""
    if role is None:
        everything = list_versions(connection, profile)
        roles = [{view.version.role for view in _matching(everything, name)} for name in names]
        shared = roles[0] & roles[1]
        role = shared.pop() if len(shared) == 1 else None
    first, second = (find_version(connection, profile, name, role) for name in names)
    return first, second


def _matching(views: Sequence[VersionView], name: str) -> list[VersionView]:
    """The versions of this name; if there is none, those whose name starts so."""
    exact = [view for view in views if view.version.name == name]
    return exact or [view for view in views if view.version.name.startswith(name)]


def _unknown(profile: str, kind: str, name: str) -> NotFound:
    return NotFound(f"profile {profile} has no {kind} {name}; `ragllava models list` shows all versions")


def _lock(connection: Connection, profile: str) -> None:
    lock_name(connection, "champions", profile)


def _find(connection: Connection, profile: str, role: Role, name: str) -> Row[Any] | None:
    of_role = _of_role(profile, role)
    return connection.execute(select(model_versions).where(of_role, model_versions.c.name == name)).one_or_none()


def _as_version(row: Row[Any]) -> ModelVersion:
    return record(ModelVersion, row, version_id=row.id)


def _promote(connection: Connection, chosen: Row[Any], replaced_id: int | None, reason: str) -> ModelVersion:
    """Retire the champion, promote `chosen`, and record it; a rollback of `chosen` goes to `replaced_id`."""
    _retire(connection, chosen.profile, Role(chosen.role), "champion")
    row = connection.execute(
        update(model_versions)
        .where(model_versions.c.id == chosen.id)
        .values(state="champion", promoted_at=func.now())
        .returning(model_versions)
    ).one()
    write_promotion(connection, row, replaced_id, reason)
    return _as_version(row)


def _line_of_champions(connection: Connection, profile: str, role: Role) -> list[int]:
    """Ids of the champions that a rollback can reach, the present champion last, each once.

    The row of a promotion names the champion that it replaced. The row of a rollback names the version that the
    restored version had replaced: it differs from the previous champion, because each version is in the line once.
    """
    line: list[int] = []
    rows = connection.execute(
        select(promotions.c.version_id, promotions.c.replaced_id)
        .where(promotions.c.profile == profile, promotions.c.role == role.value)
        .order_by(promotions.c.id)
    )
    for version_id, replaced_id in rows:
        if replaced_id is None:
            line = [version_id]  # the first champion, or the only one left
        elif not line or line[-1] == replaced_id:
            line = [earlier for earlier in line or [replaced_id] if earlier != version_id] + [version_id]
        else:
            line.pop()
    return line


def _retire(connection: Connection, profile: str, role: Role, state: str) -> None:
    """Retire the versions of a role that are in this state."""
    in_state = model_versions.c.state == state
    connection.execute(update(model_versions).where(_of_role(profile, role), in_state).values(state="retired"))


def _of_role(profile: str, role: Role) -> ColumnElement[bool]:
    return and_(model_versions.c.profile == profile, model_versions.c.role == role)


def _judged_at(row: Row[Any]) -> str:
    """When the version was compared with a champion last, as ISO 8601."""
    return str((row.training or {}).get("judged_at") or row.created_at.isoformat())


def _register(connection: Connection, profile: str, bases: Sequence[BaseVersion]) -> None:
    values = [asdict(base) | {"profile": profile, "state": "candidate"} for base in bases]
    connection.execute(insert(model_versions).on_conflict_do_nothing(), values)


def _retire_other_bases(connection: Connection, profile: str, bases: Sequence[BaseVersion]) -> None:
    columns = model_versions.c
    champion_base = (columns.profile == profile, columns.state == "champion", columns.adapter_sha256.is_(None))
    replaced = (*champion_base, columns.role.in_([base.role for base in bases]), ~_is_one_of(bases))
    connection.execute(update(model_versions).where(*replaced).values(state="retired"))


def _promote_bases(connection: Connection, profile: str, bases: Sequence[BaseVersion]) -> None:
    """Where a role has no champion. A rollback from here is not possible: the files of an earlier base are gone."""
    present = model_versions.alias("present")
    has_champion = exists().where(same(present, model_versions, "role", "profile"), present.c.state == "champion")
    promoted = connection.execute(
        update(model_versions)
        .where(model_versions.c.profile == profile, _is_one_of(bases), ~has_champion)
        .values(state="champion", promoted_at=func.now())
        .returning(model_versions)
    )
    for row in promoted.all():
        write_promotion(connection, row, None, "the base model of the first worker that started with it")


def _is_one_of(bases: Sequence[BaseVersion]) -> ColumnElement[bool]:
    names = [(base.role.value, base.name) for base in bases]
    return tuple_(model_versions.c.role, model_versions.c.name).in_(names)
