"""Backups of the whole system: made beside running work, verified, restored into an empty system."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ragllava.client.connections import Namespace
from ragllava.errors import UsageError
from ragllava.stages.backup.backup import BackupMaker, Made
from ragllava.stages.backup.manifest import list_names
from ragllava.stages.backup.restore import Restored, Restorer
from ragllava.stages.backup.vaults import Vault, open_vault
from ragllava.stages.backup.verify import Verified, verify

OnProgress = Callable[[str, int, int], None]  # what is being done, how much of it, and of how much


def _silent(_what: str, _done: int, _total: int) -> None:
    """Nothing is shown."""


class Backups(Namespace):
    """Each vault is a folder or `s3://bucket/prefix`; without one, that of `settings.backup_to`."""

    def make(self, vault: str | None = None, *, keep: int | None = None, on_progress: OnProgress = _silent) -> Made:
        """Save all rows and objects; what the vault has already is not copied again.

        The newest `keep` backups stay there (0: all; None: `settings.backup_keep`). Raises UsageError for a vault that
        cannot be used, Conflict while another backup is made, ServiceUnavailable.
        """
        connections = self._connections
        to = self._vault(vault)
        maker = BackupMaker(connections.engine, connections.objects, to, on_progress)
        return maker.make(connections.settings.backup_keep if keep is None else keep)

    def verify(
        self, vault: str | None = None, name: str | None = None, *, on_progress: OnProgress = _silent
    ) -> Verified:
        """Read a backup, the newest without a name, and compare every hash and number with its manifest.

        A damaged file is moved below `damaged/`, so that the next backup writes it again if the system still has it.
        Raises UsageError when there is none, ObjectCorrupt for a damaged manifest.
        """
        return verify(self._vault(vault), name, on_progress)

    def restore(
        self, vault: str | None = None, name: str | None = None, *, on_progress: OnProgress = _silent
    ) -> Restored:
        """Restore a backup, the newest without a name, into the empty database and bucket of the settings.

        The role of `settings.database_owner_url` is needed. What later backups of the same vault show as erased is
        erased again. Raises UsageError for a system that is not empty, a vault without backups, and tables of a later
        version; ObjectMissing and ObjectCorrupt for a damaged backup.
        """
        return Restorer(self._connections.settings, self._vault(vault), on_progress).restore(name)

    def _vault(self, vault: str | None) -> Vault:
        address = vault or self._connections.settings.backup_to
        if not address:
            raise UsageError("name a folder or s3://bucket/prefix, or set RAGLLAVA_BACKUP_TO")
        return open_vault(address, self._connections.settings)

    def list(self, vault: str | None = None) -> Sequence[str]:
        """The names of the complete backups in a vault, the oldest first."""
        return list_names(self._vault(vault))
