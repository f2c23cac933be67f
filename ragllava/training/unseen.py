"""No version is evaluated on questions that the champion was trained on: it would know the answers. Loads no torch.

It happens where the champion's data were split in another way: by texts, because fewer pictures had labels, with other
shares, or before a near-duplicate or a question about two pictures joined others.
"""

from __future__ import annotations

import logging
import tempfile
from dataclasses import replace
from pathlib import Path

from sqlalchemy import Connection

from ragllava.errors import ObjectCorrupt, ObjectMissing
from ragllava.models.profiles import get_profile
from ragllava.settings import Settings
from ragllava.stores.learning import registry
from ragllava.stores.objects import ObjectStore
from ragllava.training.data.datasets import side_key
from ragllava.training.data.snapshot import Snapshot, read_snapshot
from ragllava.training.remote import download_folder

log = logging.getLogger(__name__)


def leave_out_known(
    connection: Connection, snapshot: Snapshot, settings: Settings, challenger: str | None = None
) -> Snapshot:
    """The snapshot without the held-out questions that the champion was trained on, or this registered challenger.

    They are not trained on either: a question never changes sides. Where a version's data are missing, nothing is left
    out. Raises SettingsError, ServiceUnavailable, and UsageError for an unknown challenger.
    """
    profile = get_profile(settings).name
    versions = [registry.champion(connection, snapshot.role, profile)]
    if challenger is not None:
        versions.append(registry.find_version(connection, profile, challenger, snapshot.role).version)
    stories = [version.training or {} for version in versions if version is not None]
    places = [str(story["objects"]) for story in stories if story.get("objects")]
    if not places:
        return snapshot
    objects = ObjectStore(settings)
    seen = set[str]().union(*(_questions_of(objects, place) for place in places))
    shares = []
    for share in snapshot.shares:
        unseen = tuple(question for question in share.held_out if side_key(question.text) not in seen)
        shares.append(replace(share, held_out=unseen, seen=len(share.held_out) - len(unseen)))
    return replace(snapshot, shares=tuple(shares))


def _questions_of(objects: ObjectStore, prefix: str) -> set[str]:
    """The keys of the questions that a training learned from."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "snapshot"
        try:
            download_folder(objects, f"{prefix}/snapshot", folder)
        except (ObjectMissing, ObjectCorrupt) as error:
            log.warning("a version's data unknown", extra={"action": "champion_data_lost", "reason": str(error)})
            return set()
        return {side_key(example.question) for example in read_snapshot(folder).examples}
