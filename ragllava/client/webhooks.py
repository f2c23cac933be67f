"""Webhooks: who is told when a job ends."""

from __future__ import annotations

from collections.abc import Sequence

from ragllava.client.connections import Namespace, forwarded
from ragllava.records import JobKind
from ragllava.stages.webhooks.deliver import new_secret
from ragllava.stages.webhooks.origins import require_allowed
from ragllava.stores.access import webhooks
from ragllava.stores.access.webhooks import NewWebhook, WebhookView
from ragllava.stores.archives.archive import get_archive


class Webhooks(Namespace):
    """Webhooks. Each method raises NotFound for one that is not there, or that the caller may not see."""

    get = forwarded(webhooks.load_webhook)
    delete = forwarded(webhooks.delete_webhook)
    deliveries = forwarded(webhooks.list_deliveries)

    def create(self, owner: str, archive: str | None, url: str, kinds: Sequence[JobKind]) -> tuple[WebhookView, str]:
        """Tell `url` when a job of these kinds ends, of one archive or of all; returns the webhook and its secret.

        Nobody can read the secret again. Raises UsageError for an address that `settings.webhook_hosts` does not allow.
        """
        require_allowed(self._connections.settings, url)
        archive_id = None if archive is None else self._do(get_archive, archive).archive_id
        new = NewWebhook(owner, archive_id, url, tuple(dict.fromkeys(kinds)), new_secret())
        return self._do(webhooks.insert_webhook, new), new.secret

    list = forwarded(webhooks.list_webhooks)
