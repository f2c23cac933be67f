"""The system itself: its workers, its events and the consistency of what it stores."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence

from sqlalchemy import Connection, text

from ragllava.client.connections import Namespace, forwarded
from ragllava.models.profiles import get_profile
from ragllava.stages.maintenance.inspect import Checked, Inspector, inspect
from ragllava.stores.buckets import change_events
from ragllava.stores.jobs.workers import list_workers
from ragllava.stores.maintenance import ticks
from ragllava.stores.maintenance.erasures import list_erasures
from ragllava.stores.maintenance.faults import list_faults
from ragllava.stores.maintenance.notices import list_mailings, send_again, send_given_up_again


def _events(connection: Connection) -> dict[str, int]:
    """Counters of the events that buckets have sent, and how many change events are `waiting`."""
    return change_events.totals(connection) | {"waiting": change_events.count_waiting(connection)}


_SILENT_S = 60.0  # a worker that was not seen for longer has probably been killed


def _last_tick_age_s(connection: Connection) -> float | None:
    """Seconds since the last tick ended; None before the first, and while the tables are of an older version."""
    if connection.scalar(text("SELECT to_regclass('ticks') IS NULL")):
        return None
    return ticks.last_tick_age_s(connection)


class System(Namespace):
    """Workers, faults, event counters and the deep inspection."""

    workers = forwarded(list_workers)
    faults = forwarded(list_faults)
    events = forwarded(_events)
    last_tick_age_s = forwarded(_last_tick_age_s)
    erasures = forwarded(list_erasures)
    mailings = forwarded(list_mailings)

    def send_mailings_again(self, mailing_ids: Sequence[int] | None = None) -> int:
        """Send mailings that wait or were given up at the next tick, for which it asks; None: all that were given up.

        Returns how many they are. Raises NotFound and Conflict for one that is not there, that is being sent or that
        was delivered; then none of them is sent.
        """
        number = self._do(send_given_up_again) if mailing_ids is None else self._do(send_again, mailing_ids)
        if number:
            self._tick()
        return number

    def waiting_messages(self) -> dict[str, int]:
        """How many messages wait in each queue of Redis. Raises ServiceUnavailable."""
        from workers.app import waiting_messages

        return waiting_messages(self._connections.settings)

    def profile_problem(self) -> str | None:
        """One sentence if workers that are ready run another profile than these settings name, else None.

        Raises SettingsError for an unknown profile.
        """
        settings = self._connections.settings
        ours, theirs = get_profile(settings).name, defaultdict[str, list[str]](list)
        for worker in self.workers():
            profile = worker.versions.get("profile")
            if profile and profile != ours and worker.is_ready and worker.age_s < _SILENT_S:
                theirs[profile].append(worker.name)
        if not theirs:
            return None
        listed = " and ".join(f"{profile} ({', '.join(names)})" for profile, names in theirs.items())
        return (
            f"this command has the profile {ours}, but workers run {listed}; set the same RAGLLAVA_PROFILE for all, or "
            f"`profile` in {settings.settings_file}, and restart the workers"
        )

    def inspect(self, on_progress: Callable[[str, int], None] = lambda _check, _number: None) -> Iterator[Checked]:
        """Compare rows with objects, embeddings with images, leases and queues; changes nothing. May take minutes.

        One record for each check; tables of another version are the only one. `on_progress` is called with the name of
        the check and how far it is. Raises ServiceUnavailable when Postgres, Redis or the object store is away.
        """
        import migrations

        connections = self._connections
        differences = migrations.differences(connections.settings.require_database())
        if differences:
            problem = f"{len(differences)} things differ from this version's tables; run `ragllava migrate`"
            yield Checked("tables", "of another version", problem)
            return
        waiting = self.waiting_messages()
        yield from inspect(
            Inspector(connections.engine, connections.settings, connections.objects, waiting, on_progress)
        )
