"""What a training learns from and is judged by, from labels in the database: made of rows, no model, no picture."""

from __future__ import annotations

import io
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from hashlib import sha256
from pathlib import Path

import pytest
from PIL import Image
from sqlalchemy import Engine, func, select, text

from ragllava.feedback import Label, NoisyReason, Verdict
from ragllava.imaging.likeness import thumbnail
from ragllava.jobs import control
from ragllava.jobs.control import NewJob
from ragllava.postcards.archive import draw_archive
from ragllava.records import JobKind, Role
from ragllava.settings import Settings
from ragllava.stores.archives import archive
from ragllava.stores.archives.thumbnails import store_thumbnails
from ragllava.stores.jobs import answers
from ragllava.stores.learning import labels, noisy, registry
from ragllava.stores.learning.registry import AdapterVersion, BaseVersion
from ragllava.stores.objects import ObjectStore
from ragllava.training.contest import Contest
from ragllava.training.course import ask_about_doubtful
from ragllava.training.data.datasets import DatasetOptions, is_held_out
from ragllava.training.data.examples import RankExample
from ragllava.training.data.sides import FEWEST_IMAGES
from ragllava.training.data.snapshot import (
    ArchiveShare,
    Snapshot,
    SnapshotRules,
    collect,
    read_snapshot,
    write_snapshot,
)
from ragllava.training.gate_report import GateReport, GateRules
from ragllava.training.remote import upload_folder
from ragllava.training.request import TrainingPlan, TrainingRequest, plan_training
from tests.support.run_command import Run

HELD_OUT, CALIBRATION = 0.25, 0.15
PICTURES = [sha256(str(number).encode()).hexdigest() for number in range(60)]
FEW = PICTURES[: FEWEST_IMAGES - 2]


@dataclass(frozen=True)
class Labeller:
    """Says which pictures of an archive answer a question."""

    engine: Engine
    settings: Settings

    def say(self, archive_name: str, relevant: Mapping[str, Sequence[str]]) -> None:
        """Pictures by question; an archive is made when it is first named, and a picture as well."""
        with self.engine.begin() as connection:
            archive_id = archive.ensure_archive(connection, archive_name).archive_id
            stored = text(
                "INSERT INTO blobs (sha256, state, size_bytes, media_type) VALUES (:h, 'live', 1, 'image/png') "
                "ON CONFLICT DO NOTHING"
            )
            add = text(
                "INSERT INTO images (archive_id, sha256, source, uri, caption, width, height, media_type) "
                "VALUES (:a, :h, :h, :h, 'a card', 1, 1, 'image/png') ON CONFLICT DO NOTHING"
            )
            for picture in {picture for pictures in relevant.values() for picture in pictures}:
                connection.execute(stored, {"h": picture})
                connection.execute(add, {"a": archive_id, "h": picture})
            found = connection.execute(text("SELECT sha256, id FROM images WHERE archive_id = :a"), {"a": archive_id})
            ids = {row.sha256: row.id for row in found}
            new = NewJob(JobKind.ANSWER, archive_id, {"options": {}}, total=len(relevant), per_shard=len(relevant))
            job_id, _ = control.create(connection, new)
            answers.insert_questions(connection, job_id, ((n, n, f"q{n}", asked) for n, asked in enumerate(relevant)))
            said = [
                Label(job_id, n, Verdict.WRONG, "red", tuple(ids[picture] for picture in pictures), (), "person")
                for n, pictures in enumerate(relevant.values())
            ]
            labels.insert_labels(connection, said)

    def crown(self, learned: Snapshot, folder: Path, *, store: bool = True, **told: object) -> None:
        """Make what learned from this snapshot champion; `told` is what its story says instead of the usual."""
        place = f"training/{folder.name}"
        if store:
            write_snapshot(folder, learned)
            upload_folder(ObjectStore(self.settings), folder, f"{place}/snapshot")
        story = {"objects": place, "data": [share.figures() for share in learned.shares], **told}
        version = AdapterVersion(
            role=learned.role,
            name=folder.name,
            profile="mini",
            prompt="v1",
            threshold=0.5,
            adapter_sha256=folder.name,
            base="base",
            training=story,
        )
        with self.engine.begin() as connection:
            registry.register_adapter(connection, version)
            registry.promote(connection, "mini", learned.role, version.name, "a test")

    def now(self) -> datetime:
        """The database's clock."""
        with self.engine.begin() as connection:
            moment: datetime = connection.execute(select(func.clock_timestamp())).scalar_one()
        return moment

    def plan(self, *archives: str, role: Role = Role.RERANKER) -> TrainingPlan:
        """What a training now would learn from."""
        with self.engine.begin() as connection:
            return plan_training(connection, TrainingRequest(role, archives, "mini"), self.settings)

    def collect(self, *archives: str, since: datetime | None = None) -> Snapshot:
        """The snapshot of a reranker's training."""
        rules = SnapshotRules(HELD_OUT, CALIBRATION, DatasetOptions(seed=0))
        with self.engine.begin() as connection:
            return collect(connection, Role.RERANKER, archives, since, rules)


@pytest.fixture
def labeller(engine: Engine, settings: Settings) -> Labeller:
    return Labeller(engine, settings)


def about(pictures: Sequence[str], asked: str = "What is on") -> dict[str, list[str]]:
    """Five questions about each picture."""
    return {f"{asked} {picture[:8]}, {n}?": [picture] for picture in pictures for n in range(5)}


def about_several(number: int, count: int = 200) -> dict[str, list[str]]:
    """Questions about so many pictures each."""
    rng = random.Random(number)
    return {f"Which {number} belong to {n}?": rng.sample(PICTURES, number) for n in range(count)}


def trained(share: ArchiveShare) -> set[str]:
    return {example.question for example in share.dataset.examples}


def held_out(snapshot: Snapshot) -> set[str]:
    return {question.text for share in snapshot.shares for question in share.held_out}


def pictures_trained(share: ArchiveShare) -> set[str]:
    return {one.image for one in share.dataset.examples if isinstance(one, RankExample) and one.relevant}


def judged(snapshot: Snapshot) -> set[str]:
    """The pictures by which versions are judged, or η is fitted, in any archive."""
    return {
        item.image
        for share in snapshot.shares
        for question in (*share.held_out, *share.calibration)
        for item in question.relevant
    }


def test_a_small_archive_is_split_as_the_others_of_its_training_are(labeller: Labeller) -> None:
    labeller.say("large", about(PICTURES))
    labeller.say("small", about(FEW, "Who drew"))
    snapshot = labeller.collect("large", "small")
    assert len(judged(snapshot) & set(FEW)) > 4
    for share in snapshot.shares:
        assert pictures_trained(share), "something is left to train on"
        assert not pictures_trained(share) & judged(snapshot)


def test_archives_that_only_together_have_enough_pictures_are_split_by_them(labeller: Labeller) -> None:
    halves = PICTURES[:FEWEST_IMAGES:2], PICTURES[1:FEWEST_IMAGES:2]
    for name, half in zip("ab", halves, strict=True):
        labeller.say(name, about(half))
    by_text, together = labeller.collect("a"), labeller.collect("a", "b")
    assert pictures_trained(by_text.shares[0]) & judged(by_text), "too few pictures to have some on every side"
    assert not pictures_trained(together.shares[0]) & judged(together)


def test_a_window_trains_on_nothing_that_the_whole_archive_holds_out(labeller: Labeller) -> None:
    labeller.say("cards", about(PICTURES[len(FEW) :]))
    began = labeller.now()
    labeller.say("cards", about(FEW))
    whole, window = labeller.collect("cards"), labeller.collect("cards", since=began)
    held_out = {question.text for question in whole.shares[0].held_out}
    [share] = window.shares
    assert (whole.shares[0].labelled, share.labelled) == (300, 5 * len(FEW))
    assert trained(share) == trained(whole.shares[0]) & set(about(FEW))
    assert {question.text for question in share.held_out} == held_out & set(about(FEW))


def test_a_question_stays_on_its_side_when_it_is_labelled_with_another_picture(labeller: Labeller) -> None:
    held_out = next(picture for picture in PICTURES if is_held_out(picture, HELD_OUT))
    other = next(picture for picture in PICTURES if not is_held_out(picture, HELD_OUT + CALIBRATION))
    labeller.say("cards", about(PICTURES) | {"Which card?": [held_out]})
    began = labeller.now()
    labeller.say("cards", {"Which  CARD?": [other]})
    [share] = labeller.collect("cards", since=began).shares
    assert not trained(share)
    assert [question.text for question in share.held_out] == ["Which  CARD?"]


def test_a_plan_says_when_questions_about_several_pictures_leave_little_to_train_on(labeller: Labeller) -> None:
    labeller.say("cards", about_several(4))
    plan = labeller.plan("cards")
    [share] = plan.snapshot.shares
    left = share.dataset.card.questions
    assert 0 < left < 40
    assert plan.shortage is None
    assert plan.note == plan.as_json()["note"]
    assert plan.note is not None
    assert f"archive cards leaves {left} of " in plan.note
    assert "name 4.0 relevant images on average" in plan.note
    assert "lower RAGLLAVA_HELD_OUT_SHARE=0.25 or RAGLLAVA_CALIBRATION_SHARE=0.15" in plan.note
    of_generator = labeller.plan("cards", role=Role.GENERATOR)
    assert of_generator.note is not None and of_generator.note.endswith("lower RAGLLAVA_HELD_OUT_SHARE=0.25")


def test_questions_about_one_or_two_pictures_leave_enough(labeller: Labeller) -> None:
    labeller.say("cards", about_several(1) | about_several(2))
    assert labeller.plan("cards").note is None


def test_a_plan_without_anything_to_learn_says_whether_pictures_or_labels_are_to_blame(labeller: Labeller) -> None:
    labeller.say("many", about_several(20, count=60))
    shortage = labeller.plan("many").shortage
    assert shortage is not None
    assert "archive many leaves 0 of 60 questions to train on" in shortage
    assert "lower RAGLLAVA_HELD_OUT_SHARE" in shortage


def test_the_command_says_what_the_plan_says(labeller: Labeller, run: Run) -> None:
    labeller.say("cards", about_several(4))
    code, _, problem = run("train", "reranker", "--archive", "cards", "--dry-run")
    assert code == 0, problem
    assert "lower RAGLLAVA_HELD_OUT_SHARE" in problem


def test_a_champion_of_another_split_is_not_judged_by_what_it_learned(labeller: Labeller, tmp_path: Path) -> None:
    labeller.say("cards", about(FEW))
    by_text = labeller.collect("cards")
    labeller.crown(by_text, tmp_path / "first")
    assert held_out(labeller.plan("cards").snapshot) == held_out(by_text), "the same split: nothing is left out"
    labeller.say("cards", about(PICTURES[len(FEW) :]))
    by_picture = labeller.collect("cards")
    learned = trained(by_text.shares[0])
    assert held_out(by_picture) & learned
    plan = labeller.plan("cards")
    assert held_out(plan.snapshot) == held_out(by_picture) - learned
    assert trained(plan.snapshot.shares[0]) == trained(by_picture.shares[0]), "nor does it come back to the training"
    labeller.crown(by_text, tmp_path / "old", data=[{"archive": "cards"}])
    assert held_out(labeller.plan("cards").snapshot) == held_out(by_picture) - learned, "nothing tells its split"
    labeller.crown(plan.snapshot, tmp_path / "second", store=False)
    assert held_out(labeller.plan("cards").snapshot) == held_out(by_picture), "its split is known, so it is not read"


def test_a_champion_whose_data_are_gone_leaves_the_hold_out_as_it_is(labeller: Labeller, tmp_path: Path) -> None:
    labeller.say("cards", about(FEW))
    labeller.crown(labeller.collect("cards"), tmp_path / "gone", store=False)
    labeller.say("cards", about(PICTURES[len(FEW) :]))
    assert held_out(labeller.plan("cards").snapshot) == held_out(labeller.collect("cards"))


def test_a_shortage_tells_of_the_questions_that_the_champion_learned(labeller: Labeller, tmp_path: Path) -> None:
    labeller.say("cards", about(FEW))
    labeller.crown(labeller.collect("cards"), tmp_path / "first")
    labeller.say("cards", {f"Which is {picture[:8]}?": [picture] for picture in PICTURES[len(FEW) : FEWEST_IMAGES]})
    plan = labeller.plan("cards")
    left_out = len(held_out(labeller.collect("cards")) - held_out(plan.snapshot))
    assert plan.shortage is not None
    assert f"{left_out} others do not count, since the champion was trained on them" in plan.shortage


def test_a_plan_says_which_gain_its_hold_out_can_prove(labeller: Labeller) -> None:
    labeller.say("cards", about(PICTURES))
    few = labeller.plan("cards")
    labeller.say("cards", about(PICTURES, "Who drew"))
    more = labeller.plan("cards")
    assert few.provable_gain is not None and more.provable_gain is not None
    assert 0.02 < more.provable_gain < few.provable_gain < 0.2
    of_answers = labeller.plan("cards", role=Role.GENERATOR).provable_gain
    assert of_answers is not None and of_answers > more.provable_gain


def test_other_labelled_archives_are_trained_on_unless_told_otherwise(labeller: Labeller, run: Run) -> None:
    labeller.say("cards", about(PICTURES))
    labeller.say("others", about(PICTURES[:30]))
    code, told, _ = run("train", "reranker", "--archive", "cards", "--dry-run")
    assert code == 0
    assert "others" in told
    assert "the held-out questions of cards prove a gain of about" in told
    _, told, _ = run("train", "reranker", "--archive", "cards", "--only", "--dry-run")
    assert "others" not in told


def test_the_jpeg_copy_of_an_archive_is_on_the_same_sides(labeller: Labeller) -> None:
    """Resized, compressed and renamed, beside the original: nothing that decides is trained on as its copy."""
    originals, copies = {}, {}
    for postcard in draw_archive(3, 60, 0).postcards:
        picture, data = postcard.picture(), io.BytesIO()
        picture.resize((90, 90)).save(data, "JPEG", quality=80)
        name = sha256(postcard.png()).hexdigest()
        originals[name] = thumbnail(picture)
        copies[sha256(data.getvalue()).hexdigest()] = name, thumbnail(Image.open(data))
    labeller.say("png", about(list(originals)))
    labeller.say("jpeg", about(list(copies), "Who drew"))
    with labeller.engine.begin() as connection:
        store_thumbnails(connection, originals | {copy: made for copy, (_, made) in copies.items()})
    snapshot = labeller.collect("png", "jpeg")
    original_of = {name: name for name in originals} | {copy: name for copy, (name, _) in copies.items()}
    decides = {original_of[image] for image in judged(snapshot)}
    used = {original_of[example.image] for example in snapshot.examples if isinstance(example, RankExample)}
    assert len(decides) > 15
    assert len(used) > 15
    assert not decides & used


def test_images_that_were_left_out_of_judging_are_asked_about(labeller: Labeller, tmp_path: Path) -> None:
    labeller.say("cards", about(PICTURES))
    snapshot = labeller.collect("cards")
    write_snapshot(tmp_path / "snapshot", snapshot)
    asked = snapshot.shares[0].held_out[0].text
    gate = GateReport(passed=False, reasons=(), champion="old", challenger="new", rules=GateRules())
    with labeller.engine.begin() as connection:
        champion = registry.ensure_champions(connection, "mini", [BaseVersion(Role.RERANKER, "old", "v1")])
        contest = Contest(
            champion[Role.RERANKER], gate, None, None, {}, {"cards": {asked: (PICTURES[0],)}, "gone": {"Which?": ()}}
        )
        ask_about_doubtful(connection, read_snapshot(tmp_path / "snapshot"), contest)
        [case] = noisy.list_cases(connection, archive.get_archive(connection, "cards").archive_id)
    assert case.question.text == asked
    assert case.reasons == (NoisyReason.UNLABELLED_RELEVANT,)
    assert PICTURES[0][:12] in case.details[NoisyReason.UNLABELLED_RELEVANT]
    assert "which version old or new takes for relevant" in case.details[NoisyReason.UNLABELLED_RELEVANT]
