"""The data of one training, frozen: examples, and the questions for calibration and evaluation. No torch.

The sides follow from a question's relevant images (sides.py), so no held-out question is trained on, nor another one
about its pictures: a reranker is surer of pictures that it was trained on than of any other, and η fitted on these
would drop the others. Where few images are labelled, they follow from the question's text; which of the two applies is
the same for all archives of a training, or one would train on what another one is evaluated on.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from sqlalchemy import Connection

from ragllava.imaging.likeness import Likeness
from ragllava.json_records import from_json, to_json
from ragllava.records import Role
from ragllava.stores.archives import archive
from ragllava.stores.archives.thumbnails import load_thumbnails
from ragllava.stores.learning import labels
from ragllava.stores.learning.labels import LabelledRow
from ragllava.training.data.datasets import (
    Dataset,
    DatasetOptions,
    LabelledQuestion,
    build_answer_dataset,
    build_rank_dataset,
    merge_questions,
    question_key,
    read_dataset,
    snapshot_id,
    write_dataset,
)
from ragllava.training.data.examples import Example
from ragllava.training.data.labelled import labelled_questions, usable_for
from ragllava.training.data.sides import Side, Sides, assign_sides, images_of
from ragllava.whole_files import MANIFEST, seal_folder

_JUDGED_FILE = "judged.json"
_JUDGED = (
    "archive",
    "labelled",
    "split",
    "calibration",
    "held_out",
    "addresses",
    "groups",
)  # the fields of ArchiveShare in that file

QuestionAddress = tuple[int, int, int]  # archive, job, number


@dataclass(frozen=True, slots=True)
class SnapshotRules:
    """Which shares of the questions are held out and fit η, and how examples are made of the others."""

    held_out: float
    calibration: float
    options: DatasetOptions


@dataclass(frozen=True, slots=True)
class ArchiveShare:
    """What one archive gives. `labelled` counts its labelled questions, also those of no use for this role.

    `addresses` tells where a question's text comes from, and `images_each` how many relevant images decide about a
    question's side on average, 0 where none do. `seen` counts the held-out questions that were left out because the
    champion was trained on them. The last two are not part of the snapshot's files. `split` tells what the sides follow
    from: `pictures` or `texts`, None where an earlier version wrote the files. `groups` names the near-duplicates of
    the relevant images of held-out questions; an image that it does not name has none.
    """

    archive: str
    labelled: int
    dataset: Dataset
    calibration: tuple[LabelledQuestion, ...]
    held_out: tuple[LabelledQuestion, ...]
    addresses: Mapping[str, QuestionAddress] = field(default_factory=dict)
    images_each: float = 0.0
    seen: int = 0
    split: str | None = None
    groups: Mapping[str, str] = field(default_factory=dict)

    def figures(self) -> dict[str, Any]:
        """The counts for people."""
        card = self.dataset.card
        return {
            "archive": self.archive,
            "labelled": self.labelled,
            **{name: getattr(card, name) for name in ("questions", "positives", "negatives", "set_aside")},
            "calibration": len(self.calibration),
            "held_out": len(self.held_out),
            "split": self.split,
        }


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The data of one training, archive by archive; the first one is the one trained for."""

    role: Role
    shares: tuple[ArchiveShare, ...]

    @property
    def examples(self) -> list[Example]:
        """All that is trained on."""
        return [example for share in self.shares for example in share.dataset.examples]

    @property
    def options(self) -> DatasetOptions:
        """How the examples were made; the same for all archives."""
        return self.shares[0].dataset.card.options

    @property
    def groups(self) -> dict[str, str]:
        """The near-duplicates of all archives: the name of the group of each image that has some."""
        return {image: group for share in self.shares for image, group in share.groups.items()}

    @property
    def snapshot_id(self) -> str:
        """The sha256 (hex) of the examples."""
        return snapshot_id(self.examples)

    @property
    def hold_out_id(self) -> str:
        """The sha256 (hex) of the held-out questions: only figures with the same one can be compared."""
        content = [[share.archive, to_json(share.held_out)] for share in self.shares]
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    def whole_dataset(self) -> Dataset:
        """The examples of all archives as one data set."""
        cards = [share.dataset.card for share in self.shares]
        counts = ("questions", "examples", "positives", "negatives", "set_aside")
        sums = {name: sum(getattr(card, name) for card in cards) for name in counts}
        card = replace(cards[0], snapshot=self.snapshot_id, **sums)
        set_aside = tuple(item for share in self.shares for item in share.dataset.set_aside)
        return Dataset(tuple(self.examples), card, set_aside)


def collect(
    connection: Connection, role: Role, archives: Sequence[str], since: datetime | None, rules: SnapshotRules
) -> Snapshot:
    """The snapshot of what is labelled now. `since` limits the first archive alone. Raises UsageError.

    Which side a question is on does not hang on `since`.
    """
    sources = [_look_up(connection, name, since if number == 0 else None) for number, name in enumerate(archives)]
    questions = [question for labelled in sources for question in labelled.ever.values()]
    likeness = Likeness(load_thumbnails(connection, images_of(questions, rules.options.top_k)))
    sides = assign_sides(questions, likeness, held_out=rules.held_out, calibration=rules.calibration)
    return Snapshot(role, tuple(_share(labelled, role, rules, sides) for labelled in sources))


def snapshot_of(
    role: Role, name: str, questions: Sequence[LabelledQuestion], likeness: Likeness, rules: SnapshotRules
) -> Snapshot:
    """The snapshot of one archive whose labelled questions are in no database."""
    sides = assign_sides(questions, likeness, held_out=rules.held_out, calibration=rules.calibration)
    share = _share(_Labelled(name, (), merge_questions(questions), {}), role, rules, sides)
    return Snapshot(role, (replace(share, labelled=len(questions)),))


def pictures_to_compare(connection: Connection, archives: Sequence[str], top_k: int) -> set[str]:
    """The pictures whose likeness decides about the sides: relevant images and candidates of labelled questions."""
    sources = (_look_up(connection, name, None) for name in archives)
    return {image for labelled in sources for image in images_of(labelled.ever.values(), top_k)}


def write_snapshot(folder: Path, snapshot: Snapshot) -> None:
    """Write one folder for each archive and, last, the manifest with the hash of every file."""
    for number, share in enumerate(snapshot.shares):
        own = folder / str(number)
        write_dataset(own, share.dataset)
        judged = {name: to_json(getattr(share, name)) for name in _JUDGED}
        (own / _JUDGED_FILE).write_text(json.dumps(judged, ensure_ascii=False), encoding="utf-8")
    facts = {
        "role": snapshot.role.value,
        "snapshot": snapshot.snapshot_id,
        "hold_out": snapshot.hold_out_id,
        "archives": len(snapshot.shares),
    }
    seal_folder(folder, facts)


def read_snapshot(folder: Path) -> Snapshot:
    """Read what `write_snapshot` wrote."""
    manifest = json.loads((folder / MANIFEST).read_text())
    shares = []
    for number in range(manifest["archives"]):
        own = folder / str(number)
        judged = json.loads((own / _JUDGED_FILE).read_text(encoding="utf-8"))
        shares.append(from_json(ArchiveShare, {**judged, "dataset": read_dataset(own)}))
    return Snapshot(Role(manifest["role"]), tuple(shares))


@dataclass(frozen=True, slots=True)
class _Labelled:
    """What is labelled in an archive. `ever` are its questions by key, with all that was ever said about them."""

    archive: str
    rows: Sequence[LabelledRow]
    questions: Sequence[LabelledQuestion]
    ever: Mapping[str, LabelledQuestion]


def _look_up(connection: Connection, name: str, since: datetime | None) -> _Labelled:
    archive_id = archive.get_archive(connection, name).archive_id
    ever = labels.latest_labels(connection, [archive_id])
    # Not queried again: a label may be added between two queries.
    rows = ever if since is None else [row for row in ever if row.created_at >= since.astimezone(UTC)]
    ids = {image for row in ever for image in (*row.label.relevant, *row.label.irrelevant)}
    images = archive.load_images(connection, ids, archive_id)
    questions, all_questions = (merge_questions(labelled_questions(listed, images)) for listed in (rows, ever))
    return _Labelled(name, rows, questions, {question_key(question.text): question for question in all_questions})


def _share(labelled: _Labelled, role: Role, rules: SnapshotRules, assigned: Sides) -> ArchiveShare:
    sides: dict[Side, list[LabelledQuestion]] = {side: [] for side in Side}
    for question in labelled.questions:
        sides[assigned.of(question.text)].append(question)
    trained_on = [assigned.without_apart(question, rules.options) for question in sides[Side.TRAIN]]
    counts = [len(question.relevant) for question in labelled.questions if question.relevant and assigned.by_image]
    held_out = usable_for(role, sides[Side.HELD_OUT])
    build = build_rank_dataset if role is Role.RERANKER else build_answer_dataset
    return ArchiveShare(
        archive=labelled.archive,
        labelled=len(labelled.rows),
        dataset=build(trained_on, rules.options),
        calibration=tuple(usable_for(role, sides[Side.CALIBRATION])),
        held_out=tuple(held_out),
        addresses={
            question_key(row.text): (row.archive_id, row.label.job_id, row.label.question_no) for row in labelled.rows
        },
        images_each=sum(counts) / len(counts) if counts else 0.0,
        split="pictures" if assigned.by_image else "texts",
        groups=_alike(held_out, assigned.group_of),
    )


def _alike(questions: Sequence[LabelledQuestion], group_of: Mapping[str, str]) -> dict[str, str]:
    """The group of each relevant image of these questions that has near-duplicates among all that are labelled."""
    sizes = Counter(group_of.values())
    images = {item.image for question in questions for item in question.relevant}
    return {image: group_of[image] for image in sorted(images) if sizes[group_of[image]] > 1}
