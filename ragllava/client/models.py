"""Model versions: trained, compared, promoted."""

from __future__ import annotations

from sqlalchemy import Connection

from ragllava.client.base import BaseClient
from ragllava.models.profiles import get_profile
from ragllava.records import Role
from ragllava.stores.learning import registry
from ragllava.stores.learning.registry import ModelVersion, VersionView
from ragllava.training.request import TrainingPlan, TrainingRequest, plan_training, submit_training


class ModelClient(BaseClient):
    """What concerns trainings and the versions that come of them."""

    def plan_training(self, request: TrainingRequest) -> TrainingPlan:
        """What a training now would learn from. Raises UsageError for what no training can do."""
        return self._do(plan_training, request, self.settings)

    def train(self, request: TrainingRequest, idempotency_key: str | None = None) -> int:
        """Queue a training; returns its job.

        Raises UsageError when too little is labelled, or while another job trains this role.
        """
        job_id, _ = submit_training(self.engine, self.settings, request, idempotency_key)
        self._dispatch()
        return job_id

    def versions(self, role: Role | None = None) -> list[VersionView]:
        """The model versions of this profile, by role, the newest first."""
        return self._do(registry.list_versions, self.profile_name, role)

    def version(self, name: str, role: Role | None = None) -> VersionView:
        """One version by its name or the beginning of it. Raises UsageError for none or several."""
        return self._do(registry.find_version, self.profile_name, name, role)

    def version_pair(self, first: str, second: str, role: Role | None = None) -> tuple[VersionView, VersionView]:
        """Two versions by name; where one name fits one role only, the other is taken in that role.

        Raises UsageError for none or several.
        """
        return self._do(registry.find_pair, self.profile_name, (first, second), role)

    def promote(self, name: str, role: Role, reason: str) -> ModelVersion:
        """Make a version champion: workers take it up at their next shard. Raises UsageError for an unknown one."""
        return self._do(registry.promote, self.profile_name, role, name, reason)

    def rollback(self, role: Role) -> ModelVersion:
        """Bring back what the champion replaced. Raises UsageError when there is nothing to go back to."""
        profile = self.profile_name
        before = self._do(registry.champion, role, profile)

        def once(connection: Connection) -> ModelVersion:
            # Tried again after a commit whose answer was lost, it must not go one version further back.
            present = registry.champion(connection, role, profile)
            return present if present and present != before else registry.rollback(connection, profile, role)

        return self._do(once)

    @property
    def profile_name(self) -> str:
        """The profile whose versions are meant. Raises SettingsError for a wrong one."""
        return get_profile(self.settings).name
