"""Model versions of a profile: trained, compared, promoted."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import Connection

from ragllava.client.connections import Namespace
from ragllava.client.learning.comparison import Comparison, compare_versions
from ragllava.client.learning.previews import ChangedExamples, ThresholdCurve, changed_examples, threshold_curve
from ragllava.errors import UsageError
from ragllava.models.profiles import get_profile
from ragllava.records import Role
from ragllava.stores.learning import registry, trainings
from ragllava.stores.learning.promotions import Promotion, list_promotions
from ragllava.stores.learning.registry import ModelVersion, VersionView
from ragllava.stores.learning.trainings import StepLoss
from ragllava.training.finetune.presets import PRESETS
from ragllava.training.request import (
    TrainingPlan,
    TrainingRequest,
    default_preset,
    plan_training,
    request_again,
    submit_training,
)


class Models(Namespace):
    """Trainings, and the versions of the settings' profile. A name may be shortened to a beginning that fits one."""

    def train(self, request: TrainingRequest, idempotency_key: str | None = None, *, name: str | None = None) -> int:
        """Queue a training; returns its job.

        `name` is what the lists of jobs call it.
        Raises UsageError for an unknown archive, when too few questions are labelled, and while another job trains
        this role.
        """
        return self._queue(submit_training, request, idempotency_key, name=name)[0]

    def judge(self, name: str, role: Role | None = None) -> int:
        """Queue a further evaluation of a version that the gate refused, on the labels of now; returns its job.

        It counts as one more try against the champion. Raises UsageError when the name fits none or several, for a
        version that was not refused, when too few questions are labelled, and while another job trains the role.
        """
        view = self.get(name, role)
        if view.state != "candidate":
            raise UsageError(f"version {view.version.name} is {view.state}; only a refused one is evaluated again")
        return self.train(self._do(request_again, view.version, self._connections.settings.profile))

    def plan_training(self, request: TrainingRequest) -> TrainingPlan:
        """The examples of a training if it were queued now. Raises UsageError for an unknown archive or setting.

        Near-duplicates are taken into account among pictures that a training has looked at before.
        """
        return self._do(plan_training, request, self._connections.settings)

    def labelled_archives(self, role: Role) -> Sequence[str]:
        """The archives, by name, with labels that a training of this role can use."""
        return self._do(trainings.labelled_archives, role)

    def new_labels(self, archive: str, role: Role = Role.RERANKER) -> int:
        """How many questions of an archive were labelled since the last training of a role began there.

        Raises UsageError for an unknown archive.
        """
        return self._of_archive(archive, trainings.count_new_labels, role)

    def default_preset(self) -> str:
        """The training preset for the models of the profile."""
        return default_preset(self._connections.settings.profile)

    def presets(self) -> Sequence[str]:
        """The names of all presets."""
        return tuple(PRESETS)

    def get(self, name: str, role: Role | None = None) -> VersionView:
        """One version. Raises UsageError when the name fits none or several."""
        return self._do(registry.find_version, self._profile, name, role)

    def compare(self, first: str, second: str, role: Role | None = None) -> Comparison:
        """The figures of two versions of one role, from when they were trained.

        Where one was evaluated against the other, both columns come from that contest. A name that fits both roles is
        taken in the role of the other name. Raises UsageError when a name fits none or several, and for two roles.
        """
        return compare_versions(*self._do(registry.find_pair, self._profile, (first, second), role))

    def losses(self, job_id: int, after: int = 0) -> Sequence[StepLoss]:
        """The losses of a training after a step, also while it runs: at most about 1,000 of its steps."""
        return self._do(trainings.load_losses, job_id, after)

    def examples(self, view: VersionView) -> ChangedExamples:
        """The held-out questions that a version answers better and worse than the champion it was compared with."""
        return self._do(changed_examples, view)

    def promotions(self, role: Role | None = None, limit: int = 100) -> Sequence[Promotion]:
        """Who became champion when, and why; the newest first."""
        return self._do(list_promotions, self._profile, role, limit)

    def threshold_curve(self, archive: str, version: str | None = None) -> ThresholdCurve:
        """What each threshold would do to the newest labelled questions of an archive that a reranker has answered.

        Without a version, of the champion. Raises UsageError for an unknown archive or version.
        """
        return self._do(threshold_curve, self._profile, archive, version)

    def promote(self, name: str, role: Role, reason: str) -> ModelVersion:
        """Make a version champion; workers load it at their next shard. Raises UsageError for an unknown name."""
        return self._do(registry.promote, self._profile, role, name, reason)

    def rollback(self, role: Role) -> ModelVersion:
        """Promote the version that the champion of a role replaced. Raises UsageError when there is none."""
        champion = self._do(registry.champion, role, self._profile)
        return self._do(_roll_back, self._profile, role, champion)

    def list(self, role: Role | None = None, *, limit: int = 10**9) -> list[VersionView]:
        """The versions of the profile, by role, the newest first; at most `limit`."""
        return self._do(registry.list_versions, self._profile, role, limit=limit)

    def champion(self, role: Role) -> VersionView | None:
        """The version of a role that answers; None before the first worker has registered it."""
        return self._do(_champion, self._profile, role)

    @property
    def _profile(self) -> str:
        """The name of the profile. Raises SettingsError for an unknown one."""
        return get_profile(self._connections.settings).name


def _champion(connection: Connection, profile: str, role: Role) -> VersionView | None:
    champion = registry.champion(connection, role, profile)
    return registry.find_version(connection, profile, champion.name, role) if champion else None


def _roll_back(connection: Connection, profile: str, role: Role, champion: ModelVersion | None) -> ModelVersion:
    """Roll back if `champion` is still there: a repetition after a lost commit must not go one version further back."""
    present = registry.champion(connection, role, profile)
    return present if present and present != champion else registry.rollback(connection, profile, role)
