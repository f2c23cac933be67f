"""Real trainings through the gate, so short that nothing is learned; and the hold-outs of fresh questions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from ragllava.errors import UsageError
from ragllava.lab.gate_trainings.replays import hold_outs, replay, replay_all
from ragllava.lab.gate_trainings.results import FreshScores, SeedResult
from ragllava.lab.gate_trainings.run import TrainingsOptions, run_trainings
from ragllava.lab.gate_trainings.situation import SituationSize, with_feedback
from ragllava.settings import Settings
from ragllava.training.data.datasets import LabelledQuestion, Retrieved
from ragllava.training.data.examples import Evidence
from ragllava.training.gate import SOFTENED, WITH_CAPTIONS
from ragllava.training.gate_report import GateRules
from ragllava.training.version_scores import WITHOUT_CAPTIONS, RankedImage, RankScore, RerankerScores

TINY = TrainingsOptions(seeds=(1,), size=SituationSize(24, 48), fresh=1, max_steps=1)


@pytest.mark.timeout(1200)
def test_a_short_run_is_judged_measured_and_not_repeated(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path / "home", torch_threads=1, top_k=2)
    steps: list[str] = []
    [result] = run_trainings(settings, tmp_path / "work", TINY, lambda step, done, total: steps.append(step))
    assert [step.partition(", ")[2] for step in steps] == [
        *(f"{version} judged" for version in ("challenger", "twin")),
        *(f"{version} measured" for version in ("champion", "challenger", "twin")),
    ]
    first, second = result.primary_figures("challenger")
    assert (first["name"], second["name"]) == (WITH_CAPTIONS, SOFTENED)
    assert 0 < first["images"] < first["questions"] < result.labelled == 48
    assert result.trained_on + result.calibration + first["questions"] <= 48
    values = result.as_json()
    assert set(values["fresh"]) == {"champion", "challenger", "twin"}
    assert all(0 <= figures["f1"] <= 1 for figures in values["fresh"].values())
    written = {
        path: path.stat().st_mtime_ns for path in (tmp_path / "work").rglob("*.json") if "options" not in path.name
    }
    assert run_trainings(settings, tmp_path / "work", TINY, lambda *_: None) == [result]
    assert all(path.stat().st_mtime_ns == when for path, when in written.items())
    with pytest.raises(UsageError, match="contains the trainings of other options"):
        run_trainings(settings, tmp_path / "work", replace(TINY, max_steps=2), lambda *_: None)


def scores(version: str, relevance: Sequence[float]) -> RerankerScores:
    """A question for each relevance of the right image; every two questions are about one image."""

    def score(right: float) -> RankScore:
        images = sorted([("right", right), ("wrong", 0.4)], key=lambda image: -image[1])
        ranking = tuple(RankedImage(name, value, name == "right", value >= 0.5) for name, value in images)
        return RankScore(float(right >= 0.5), 1.0 if right > 0.4 else 0.5, ranking)

    return RerankerScores(
        version,
        tuple(f"question {number}" for number in range(len(relevance))),
        tuple((f"image {number // 2}",) for number in range(len(relevance))),
        {name: tuple(map(score, relevance)) for name in (WITH_CAPTIONS, WITHOUT_CAPTIONS)},
        0.5,
        2,
    )


def seed_result(**versions: RerankerScores) -> SeedResult:
    fresh = {name: (FreshScores("fresh-1", own), FreshScores("in-domain-1", own)) for name, own in versions.items()}
    return SeedResult(1, 0, 0, 0, 0, {}, fresh)


def test_hold_outs_part_the_shifted_questions_by_image() -> None:
    result = seed_result(old=scores("old", [0.2] * 90), new=scores("new", [0.8] * 90))
    parts = [before for before, _ in hold_outs(result, "old", "new") if isinstance(before, RerankerScores)]
    assert sorted(text for part in parts for text in part.questions) == sorted(scores("", [0] * 90).questions)
    images = [{image for about in part.relevant for image in about} for part in parts]
    assert len(parts) == 3 and sum(map(len, images)) == len(set().union(*images)) == 45


def test_replays_tell_better_worse_and_equal_versions_apart() -> None:
    old, new = scores("old", [0.3, 0.8] * 90), scores("new", [0.7, 0.9] * 90)
    result = seed_result(champion=old, challenger=new, twin=new)
    rates = replay_all([result])
    assert [rate.passed for rate in rates.values()] == [1.0, 0.0, 0.0]
    assert rates["untrained → trained"].hold_outs == 6
    rate = replay([result], [("champion", "challenger")], GateRules(fewest_questions=100))
    assert (rate.passed, rate.challenger) == (0.0, 1.0)
    assert rate.champion == pytest.approx(0.5, abs=0.02)


def test_feedback_calls_wrong_what_a_person_saw() -> None:
    """Kept candidates and those that look relevant; the relevant picture is none of them."""
    names = ("right", "kept", "sure", "weak")
    retrieved = tuple(Retrieved(name, None) for name in names)
    question = LabelledQuestion("Which  one?", "red", (Evidence("right", None),), retrieved)
    ranking = tuple(
        RankedImage(name, relevance, name == "right", kept)
        for name, relevance, kept in (
            ("right", 0.99, True),
            ("kept", 0.7, True),
            ("sure", 0.95, False),
            ("weak", 0.6, False),
        )
    )
    champion = RerankerScores(
        "old", ("which one?",), (("right",),), {WITH_CAPTIONS: (RankScore(1, 1, ranking),)}, 0.5, 2
    )
    [labelled] = with_feedback([question], champion, above=0.9)
    assert [item.image for item in labelled.irrelevant] == ["kept", "sure"]
    assert [item.relevance for item in labelled.retrieved] == [0.99, 0.7, 0.95, 0.6]
