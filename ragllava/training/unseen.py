"""No version is evaluated on questions that the champion was trained on: it would know the answers. Loads no torch.

With the same rule of splitting this cannot happen (snapshot.py). It can where the champion's data were split by texts
and these by pictures, because more pictures have labels now.
"""

from __future__ import annotations

import logging
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from sqlalchemy import Connection

from ragllava.errors import ObjectCorrupt, ObjectMissing
from ragllava.models.profiles import get_profile
from ragllava.settings import Settings
from ragllava.stores.learning import registry
from ragllava.stores.objects import ObjectStore
from ragllava.training.data.datasets import question_key
from ragllava.training.data.snapshot import Snapshot, read_snapshot
from ragllava.training.remote import download_folder

log = logging.getLogger(__name__)


def leave_out_known(connection: Connection, snapshot: Snapshot, settings: Settings) -> Snapshot:
    """The snapshot without the held-out questions that the champion was trained on, if its data were split otherwise.

    They are not trained on either: a question never changes sides. Where the champion's data are missing, nothing is
    left out. Raises SettingsError, ServiceUnavailable.
    """
    champion = registry.champion(connection, snapshot.role, get_profile(settings).name)
    story = champion.training if champion is not None else None
    if not story or not story.get("objects") or _is_split_alike(story, snapshot):
        return snapshot
    seen = _questions_of(ObjectStore(settings), str(story["objects"]))
    shares = []
    for share in snapshot.shares:
        unseen = tuple(question for question in share.held_out if question_key(question.text) not in seen)
        shares.append(replace(share, held_out=unseen, seen=len(share.held_out) - len(unseen)))
    return replace(snapshot, shares=tuple(shares))


def _is_split_alike(story: dict[str, Any], snapshot: Snapshot) -> bool:
    """Whether all data of that training were; not where an earlier version did not write down how they were."""
    return {data.get("split") for data in story.get("data", ())} == {share.split for share in snapshot.shares}


def _questions_of(objects: ObjectStore, prefix: str) -> set[str]:
    """The keys of the questions that a training learned from."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "snapshot"
        try:
            download_folder(objects, f"{prefix}/snapshot", folder)
        except (ObjectMissing, ObjectCorrupt) as error:
            log.warning("champion's data unknown", extra={"action": "champion_data_lost", "reason": str(error)})
            return set()
        return {question_key(example.question) for example in read_snapshot(folder).examples}
