"""Asking for a training: what the request holds, what it would learn from, and the job made of it. Loads no torch."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Connection, Engine

from ragllava.errors import UsageError
from ragllava.jobs import control, views
from ragllava.jobs.control import NewJob
from ragllava.jobs.isolation import Isolation
from ragllava.json_records import from_json, to_json
from ragllava.models.profiles import get_profile
from ragllava.records import JobKind, Role
from ragllava.settings import Settings
from ragllava.stores.archives import archive
from ragllava.stores.database import in_transaction
from ragllava.stores.learning import registry, trainings
from ragllava.stores.learning.registry import ModelVersion
from ragllava.training.data.datasets import DatasetOptions
from ragllava.training.data.snapshot import Snapshot, SnapshotRules, collect
from ragllava.training.finetune.presets import ChosenSettings, accumulation_steps, choose_settings
from ragllava.training.gate import ANSWER_SPREAD, GAIN_SPREAD, PRIMARY_SHARES, named_groups, provable_gain
from ragllava.training.gate_report import GateRules
from ragllava.training.unseen import leave_out_known

_PRESET_OF_PROFILE = {"mini": "mini", "paper": "llava-1.5-13b"}
_LEAST_LEFT = 0.5  # of the questions that would be trained on if each were about one picture
_OTHER_PRESET = "internvl2-2b"  # for small models of today


@dataclass(frozen=True, slots=True)
class TrainingRequest:
    """What one training is to do, as stored in its job's spec.

    The labelled questions of all `archives` are trained on, and the first one's held-out questions decide; those of
    the others must not get worse. `since`: only what was labelled at that time or later, in the first archive; the
    others are a replay of what the model knew. `version` is a refused version that is evaluated again, on the labels of
    now, instead of training one. Wrong images come from the first
    `top_k` candidates (None: as the settings say). For rerankers: `negatives` are hard ones for each positive;
    `bare_share` of the pairs show no caption; `precision` asks for an η that promises it, else η is the adaptive one
    (docs/method.md 3).
    """

    role: Role
    archives: tuple[str, ...]
    preset: str
    overrides: dict[str, Any] = field(default_factory=dict)
    since: datetime | None = None
    promote: bool = True
    negatives: float = 1.0
    precision: float | None = None
    top_k: int | None = None
    bare_share: float = 0.0
    version: str | None = None

    @property
    def settings(self) -> ChosenSettings:
        """The settings of the fine-tuning; the generator learns with noise on token level unless told otherwise."""
        usual = {"token_weighting": True} if self.role is Role.GENERATOR else {}
        return choose_settings(self.preset, usual | self.overrides)

    def as_spec(self) -> dict[str, Any]:
        """As stored in the job."""
        return {**to_json(self), "since": self.since.isoformat() if self.since else None}


@dataclass(frozen=True, slots=True)
class TrainingPlan:
    """What a training would learn from.

    `shortage` says in one sentence why it cannot be done, None if it can; `note` what should be thought over before.
    `tried` counts the versions that were tried against the champion before. `provable_gain` is the gain, of F1 or of
    the share of right answers, that passes the gate in four of five trainings on this hold-out, None if none does.
    """

    request: TrainingRequest
    snapshot: Snapshot
    steps: int
    shortage: str | None
    note: str | None = None
    tried: int = 0
    provable_gain: float | None = None

    def as_json(self) -> dict[str, Any]:
        """For `--json`."""
        return {
            "role": self.request.role.value,
            "preset": self.request.preset,
            "snapshot": self.snapshot.snapshot_id,
            "archives": [share.figures() for share in self.snapshot.shares],
            "examples": len(self.snapshot.examples),
            "steps": self.steps,
            "tried": self.tried,
            "provable_gain": None if self.provable_gain is None else round(self.provable_gain, 3),
            "shortage": self.shortage,
            "note": self.note,
        }


def default_preset(profile: str) -> str:
    """The training preset that belongs to a profile's models."""
    return _PRESET_OF_PROFILE.get(profile, _OTHER_PRESET)


def plan_training(connection: Connection, request: TrainingRequest, settings: Settings) -> TrainingPlan:
    """What a training would learn from the labels of now.

    Raises UsageError, SettingsError, and ServiceUnavailable where the champion's own data had to be looked at.
    """
    check_request(request)
    chosen = request.settings.values
    accumulation_steps(chosen, settings.train_processes)  # raises where the processes cannot share a batch evenly
    rules = SnapshotRules(
        held_out=settings.held_out_share,
        # η is fitted for rerankers only; a generator may learn from those questions.
        calibration=settings.calibration_share if request.role is Role.RERANKER else 0.0,
        options=DatasetOptions(
            seed=chosen.seed,
            top_k=request.top_k or settings.top_k,
            ratio=request.negatives,
            certain=settings.set_aside_above,
            bare_share=request.bare_share,
            # What is never shown together needs no practice, and with one wrong picture there are two.
            pictures_shown=max(2, settings.top_n),
        ),
    )
    collected = collect(connection, request.role, request.archives, request.since, rules)
    snapshot = leave_out_known(connection, collected, settings, request.version)
    steps = chosen.max_steps or math.ceil(len(snapshot.examples) * chosen.epochs / chosen.global_batch)
    spread = find_spread(snapshot, rules)
    shortage = find_shortage(snapshot, rules, request.since, spread)
    champion = registry.champion(connection, request.role, get_profile(settings).name)
    tried = 0 if champion is None else registry.count_tries(connection, champion)
    provable = find_provable_gain(snapshot, tried)
    return TrainingPlan(request, snapshot, steps, shortage, spread if shortage is None else None, tried, provable)


def check_request(request: TrainingRequest) -> None:
    """Raises UsageError or SettingsError for what no training can do."""
    if not request.archives or len(set(request.archives)) < len(request.archives):
        raise UsageError("name at least one archive to train on, and each only once")
    if not 0 <= request.negatives <= 100:
        raise UsageError(f"hard negatives for each positive must be from 0 to 100, not {request.negatives:g}")
    if request.top_k is not None and request.top_k < 1:
        raise UsageError(f"hard negatives come from at least the first candidate, not from {request.top_k}")
    if not 0 <= request.bare_share <= 1:
        raise UsageError(f"the share of pairs without caption must be from 0 to 1, not {request.bare_share:g}")
    if request.precision is not None and (request.role is not Role.RERANKER or not 0 < request.precision < 1):
        raise UsageError("a promised precision is between 0 and 1, and for rerankers only")
    _ = request.settings


def find_provable_gain(snapshot: Snapshot, tried: int) -> float | None:
    """The gain on the first archive's held-out questions that passes in four of five trainings, None if none does."""
    images = [[item.image for item in question.relevant] for question in snapshot.shares[0].held_out]
    relevant = named_groups(images, snapshot.groups)
    if snapshot.role is Role.RERANKER:
        return provable_gain(relevant, GAIN_SPREAD, GateRules(), max(PRIMARY_SHARES.values()), tried)
    return provable_gain(relevant, ANSWER_SPREAD, GateRules(), tried=tried)


def find_spread(snapshot: Snapshot, rules: SnapshotRules) -> str | None:
    """What to do when so many pictures belong to a question that less than half of the expected share is trained on.

    One held-out picture holds a question out, so the shares are those of questions about one picture only.
    """
    share = rules.held_out + rules.calibration
    shares = f"RAGLLAVA_HELD_OUT_SHARE={rules.held_out:g}"
    if rules.calibration:
        shares += f" or RAGLLAVA_CALIBRATION_SHARE={rules.calibration:g}"
    for source in snapshot.shares:
        left = source.dataset.card.questions
        usable = left + len(source.calibration) + len(source.held_out)
        if source.images_each > 1 and left < _LEAST_LEFT * (1 - share) * usable:
            return (
                f"archive {source.archive} leaves {left} of {usable} questions to train on: they name "
                f"{source.images_each:.1f} relevant images on average, and one image that is held out or fits the "
                f"threshold keeps its whole question from the training; lower {shares}"
            )
    return None


def find_shortage(
    snapshot: Snapshot, rules: SnapshotRules, since: datetime | None = None, spread: str | None = None
) -> str | None:
    """Why these questions are too few to train and to evaluate on; None when they suffice.

    `since` is the request's. `spread` is the reason, if it is known, why next to nothing is left to train on.
    """
    first = snapshot.shares[0]
    needed = GateRules().fewest_questions
    held_out = len(first.held_out)
    if held_out < needed:
        seen = f" ({first.seen} others do not count, since the champion was trained on them)" if first.seen else ""
        labelled = f"{first.labelled} labelled questions"
        advice = "label more questions, with `ragllava feedback`"
        if since is not None:
            labelled = f"{first.labelled} questions labelled since {since.astimezone(UTC):%Y-%m-%d %H:%M} UTC"
            advice = f"take an earlier time, or {advice}"
        share = held_out / first.labelled if held_out else rules.held_out
        return (
            f"archive {first.archive} has {labelled}, of which {held_out} that a {snapshot.role} can be evaluated on "
            f"are held out{seen}; the gate needs {needed}, for which about {math.ceil(needed / share)} labelled "
            f"questions suffice at RAGLLAVA_HELD_OUT_SHARE={rules.held_out:g}: {advice}"
        )
    if not snapshot.examples:
        return (
            spread
            or f"none of the labelled questions gives the {snapshot.role} anything to learn; name their relevant images"
        )
    return None


def submit_training(
    connection: Connection,
    settings: Settings,
    request: TrainingRequest,
    idempotency_key: str | None = None,
    *,
    name: str | None = None,
) -> tuple[int, bool]:
    """Make a train job, under a name for people; returns its id and whether it is new.

    Of one role at most one job is open at a time. Raises UsageError when there is another one, for an unknown archive,
    when the labelled questions are too few, and for a key that belongs to a job with another content.
    """
    trainings.lock_role(connection, request.role)
    if idempotency_key is not None and views.find_job(connection, idempotency_key) is not None:
        return create_job(connection, request, idempotency_key, name)
    trainings.require_none_open(connection, request.role)
    shortage = plan_training(connection, request, settings).shortage
    if shortage is not None:
        raise UsageError(shortage)
    return create_job(connection, request, idempotency_key, name)


def submit_due_trainings(engine: Engine, settings: Settings) -> list[int]:
    """Begin the trainings for which enough was labelled since the last one (`retrain_after`); returns their jobs.

    Half as many labels are enough to evaluate again the newest version that was refused. Any number may ask at once:
    one job is made for each role. Whether the labels suffice is found out by the job, so that its reason can be read.
    A role that fails holds up no other.
    """
    if not settings.retrain_after:
        return []
    isolation = Isolation(engine, "trainings", [role.value for role in Role])
    jobs = [
        isolation.run(role.value, in_transaction, engine, begin_retraining, role, settings, settings.retrain_after)
        for role in Role
        if not isolation.is_postponed(role.value)
    ]
    return [job_id for job_id in jobs if job_id is not None]


def request_again(connection: Connection, version: ModelVersion, profile: str) -> TrainingRequest:
    """To evaluate a refused version again, as it was trained; all archives with labels guard it."""
    story = version.training or {}
    if not story.get("archives"):
        raise UsageError(f"version {version.name} was not trained here, so it cannot be evaluated again")
    first = str(story["archives"][0])
    others = (name for name in trainings.labelled_archives(connection, version.role) if name != first)
    given = story.get("request")
    request = (
        from_json(TrainingRequest, given) if given else TrainingRequest(version.role, (first,), default_preset(profile))
    )
    return replace(request, archives=(first, *others), since=None, version=version.name)


def create_job(
    connection: Connection, request: TrainingRequest, idempotency_key: str | None = None, name: str | None = None
) -> tuple[int, bool]:
    """The job with its one input, for the first archive; returns its id and whether it is new."""
    spec = request.as_spec()
    job_id, is_new = control.create(
        connection,
        NewJob(
            kind=JobKind.TRAIN,
            archive_id=archive.get_archive(connection, request.archives[0]).archive_id,
            spec=spec,
            total=1,
            per_shard=1,
            idempotency_key=idempotency_key,
            content_digest=json.dumps(spec, sort_keys=True),
            name=name,
        ),
    )
    if is_new:
        trainings.insert_training(connection, job_id, request.role)
    return job_id, is_new


def begin_due(
    connection: Connection, role: Role, profile: str, labelled: int, archive_name: str | None = None
) -> int | None:
    """Begin the training of a role for the first archive with so many newly labelled questions, or for the named one.

    A champion serves all archives and learns from the base, so it is trained on, and guarded by, what was labelled in
    the others as well. Returns its job; None when none is due, or while another job trains the role.
    """
    due = trainings.due_archives(connection, role, labelled)
    if archive_name is not None:
        due = [candidate for candidate in due if candidate.archive == archive_name]
    if not due:
        return None
    trainings.lock_role(connection, role)
    if trainings.open_training(connection, role) is not None:
        return None
    for first in due:
        # The clock may call labels new that were given while their training began.
        key = f"retrain:{role}:{first.archive}:{first.last_label}"
        if views.find_job(connection, key) is None:
            others = (name for name in trainings.labelled_archives(connection, role) if name != first.archive)
            request = TrainingRequest(role, (first.archive, *others), default_preset(profile))
            return create_job(connection, request, key)[0]
    return None


def begin_retraining(
    connection: Connection, role: Role, settings: Settings, labelled: int, archive_name: str | None = None
) -> int | None:
    """Begin the training of a role that is due after so many newly labelled questions (`begin_due`); if none is, and
    half as many were labelled, evaluate the newest refused version again.

    Returns the job; None when nothing is due, or while another job trains the role.
    """
    job_id = begin_due(connection, role, settings.profile, labelled, archive_name)
    return job_id or _begin_judging(connection, role, settings, math.ceil(labelled / 2), archive_name)


def _begin_judging(
    connection: Connection, role: Role, settings: Settings, labelled: int, archive_name: str | None
) -> int | None:
    champion = registry.champion(connection, role, get_profile(settings).name)
    refused = None if champion is None else registry.newest_refused(connection, champion)
    if refused is None or not (refused.training or {}).get("archives"):
        return None
    request = request_again(connection, refused, settings.profile)
    first = request.archives[0]
    due = trainings.due_archives(connection, role, labelled, to_judge=True)
    source = next((source for source in due if source.archive == first), None)
    if source is None or archive_name not in (None, first):
        return None
    trainings.lock_role(connection, role)
    key = f"judge:{role}:{first}:{source.last_label}"
    if trainings.open_training(connection, role) is not None or views.find_job(connection, key) is not None:
        return None
    return create_job(connection, request, key)[0]
