"""`ragllava eval` without a system: what its options ask for, and the tables and figures that it prints."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
from click.testing import CliRunner, Result

from ragllava.cli import evaluate as command
from ragllava.errors import UsageError
from ragllava.evaluation import evaluate as module
from ragllava.evaluation.datasets.load import DATASETS
from ragllava.evaluation.datasets.records import EvaluationQuestion, EvaluationSet
from ragllava.evaluation.evaluate import Evaluation, Promise
from ragllava.evaluation.metrics import TypeScore
from ragllava.evaluation.pools import Pool
from ragllava.evaluation.rankings import RankedQuestion
from ragllava.evaluation.run_figures import figures_of, style_table
from ragllava.evaluation.runs import RunArm, RunOptions, Threshold
from ragllava.evaluation.scoring import scoring_of
from ragllava.evaluation.threshold import adaptive_threshold
from ragllava.postcards.questions import QuestionStyle
from ragllava.records import Answer, AnswerStatus, Candidate, Depth, KnownAnswer, Retrieval, StoredImage


def question(number: int, answer: str, kind: str, *relevant: str) -> EvaluationQuestion:
    return EvaluationQuestion(f"q{number}", answer, kind, relevant, f"question {number}?")


def ranked(asked: EvaluationQuestion, *candidates: tuple[str, int, float]) -> RankedQuestion:
    """Candidates are (source, rank by the retriever, relevance), best first."""
    return RankedQuestion(
        asked,
        tuple(
            Candidate(
                StoredImage(image_id, f"sha-{source}", source, None), retrieval_rank, 1 - retrieval_rank / 10, relevance
            )
            for image_id, (source, retrieval_rank, relevance) in enumerate(candidates)
        ),
    )


def answers(*texts: str | None) -> tuple[Answer, ...]:
    return tuple(
        Answer(number, AnswerStatus.NO_EVIDENCE if text is None else AnswerStatus.ANSWERED, text)
        for number, text in enumerate(texts)
    )


KNOWN = (
    question(0, "red", "color", "a"),
    question(1, "red", "color", "b"),
    question(2, "two", "count", "a", "c"),
)
RANKED = (
    ranked(KNOWN[0], ("a", 1, 0.9), ("b", 0, 0.6)),
    ranked(KNOWN[1], ("c", 1, 0.4), ("b", 0, 0.2)),
    ranked(KNOWN[2], ("a", 0, 0.8), ("b", 1, 0.7), ("c", 2, 0.6)),
)
ARMS = (
    RunArm("retrieval", RANKED, by_retrieval=True),
    RunArm("reranked", RANKED, answers=answers("Red", "blue", "2")),
    RunArm("reranked, natural η", RANKED, threshold=0.5, answers=answers("red", None, "three")),
    RunArm("labelled images", answers=answers("red", "the red", "two")),
)


def test_figures_by_hand() -> None:
    figures = figures_of(scoring_of("postcards"), KNOWN, ARMS, top_n=2)
    assert list(figures.rows) == ["all", "one image", "two images"]
    clip, reranked, natural, labelled = figures.rows["all"]
    # Retrieved first are b, b and a; the labelled are a, b, {a, c}: 2 of 4. Of the first two: a and b, b, a: 3 of 4.
    assert (clip.recall_at[1], clip.recall_at[2], clip.recall_at[5]) == (0.5, 0.75, 1.0)
    assert clip.answer_score is None
    # Reranked first are a, c, a; of six kept (a b, c b, a b) three are labelled.
    assert (reranked.recall_at[1], reranked.recall_at[5]) == (0.5, 1.0)
    assert reranked.kept is not None
    assert (reranked.kept.hits, reranked.kept.kept, reranked.kept.labelled) == (3, 6, 4)
    assert reranked.answer_score == pytest.approx(2 / 3)  # "2" is "two" after normalisation
    # At 0.5 stay a b, nothing, a b.
    assert natural.kept is not None
    assert (natural.kept.hits, natural.kept.kept, natural.threshold) == (2, 4, 0.5)
    assert natural.answer_score == pytest.approx(1 / 3)
    assert (labelled.answer_score, labelled.kept, labelled.recall_at) == (1.0, None, {})
    assert [row.answer_score for row in figures.rows["two images"]] == [None, 1.0, 0.0, 1.0]
    assert figures.outcomes["reranked, natural η"] == {"answered": 2, "no_evidence": 1}


def test_scores_by_type_stand_beside_the_majority_share() -> None:
    figures = figures_of(scoring_of("postcards"), KNOWN, ARMS, top_n=2)
    assert figures.by_type["reranked"] == {"color": TypeScore(2, 0.5, 1.0), "count": TypeScore(1, 1.0, 1.0)}
    mixed = (*KNOWN[:2], question(2, "blue", "color", "a"), question(3, "blue", "color", "a"))
    [scores] = figures_of(
        scoring_of("postcards"), mixed, [RunArm("x", answers=answers("red", "red", "red", "red"))], 2
    ).by_type.values()
    assert scores == {"color": TypeScore(4, 0.5, 0.5)}


def test_webqa_is_scored_by_its_own_measure() -> None:
    asked = [KnownAnswer("q0", "It is red and white", "color", ("a",))]
    [row] = figures_of(scoring_of("webqa"), asked, [RunArm("x", answers=answers("red"))], 2).rows["all"]
    assert row.answer_score == pytest.approx(2 / 3)  # F1 of {red} and {red, white}
    [row] = figures_of(scoring_of("multimodalqa"), asked, [RunArm("x", answers=answers("red"))], 2).rows["all"]
    assert row.answer_score == 0


def test_ways_of_retrieval_stand_side_by_side() -> None:
    """The labelled image of the second question, b, has a caption that finds it; it is not reranked there."""
    by_caption = replace(RANKED[1].candidates[1], relevance=None, retrieval_rank=5)
    hybrid = (RANKED[0], replace(RANKED[1], candidates=(RANKED[1].candidates[0], by_caption)), RANKED[2])
    pictures = (RANKED[0], replace(RANKED[1], candidates=RANKED[1].candidates[:1]), RANKED[2])
    arms = (
        RunArm("retrieval", pictures, by_retrieval=True),
        RunArm("hybrid retrieval", hybrid, by_retrieval=True),
        RunArm("reranked, adaptive η", pictures, threshold=0.5, answers=answers("red", None, "two")),
        RunArm("hybrid, reranked, adaptive η", hybrid, threshold=0.1, answers=answers("red", "red", "two")),
    )
    table = style_table({"name": figures_of(scoring_of("postcards"), KNOWN, arms, top_n=2)})
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()[2:]]
    # About one image: a is found among two candidates; b among two only by its caption, of which one is reranked.
    assert cells == [
        ["name, one image", "2", "picture", "50.0", "50.0", "1.5", "1.5", "50.0"],
        ["name, one image", "2", "hybrid", "100.0", "100.0", "2.0", "1.5", "100.0"],
        ["name, two images", "1", "picture", "100.0", "100.0", "3.0", "3.0", "100.0"],
        ["name, two images", "1", "hybrid", "100.0", "100.0", "3.0", "3.0", "100.0"],
    ]
    alone = style_table(
        {"webqa": figures_of(scoring_of("webqa"), KNOWN[:2], [RunArm("retrieval", RANKED[:2], True)], top_n=2)}
    )
    assert alone.splitlines()[2].split("|")[1].strip() == "webqa"
    assert alone.splitlines()[2].rstrip("|").split("|")[-1].strip() == "–"


def test_a_group_that_is_everything_is_not_shown_twice() -> None:
    assert list(figures_of(scoring_of("postcards"), KNOWN[:2], [RunArm("x", answers=answers("a", "b"))], 2).rows) == [
        "all"
    ]


def test_the_tables_hold_every_arm() -> None:
    text = figures_of(scoring_of("postcards"), KNOWN, ARMS, top_n=2).as_text()
    tables = text.split("\n\n")
    assert [line for line in text.splitlines() if line and not line.startswith("|")] == [
        "all (3)",
        "one image (2)",
        "two images (1)",
        "answers by type",
    ]
    by_type = [[cell.strip() for cell in line.strip("|\n").split("|")] for line in tables[-1].splitlines()]
    assert by_type[0] == ["", "color", "count"]
    assert by_type[2:5] == [
        ["questions", "2", "1"],
        ["always the commonest answer", "100.0", "100.0"],
        ["reranked", "50.0", "100.0"],
    ]


class Recorder:
    """Stands where the run stands, and keeps what the command asks for."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.asked: tuple[EvaluationSet, EvaluationSet | None, RunOptions] | None = None
        self.other_styles: list[EvaluationSet] = []
        self.untuned: str | None = None
        monkeypatch.setattr(module, "evaluate", self.evaluate)
        monkeypatch.setattr(command, "workbench", self.workbench)

    @contextmanager
    def workbench(self, _settings: object, _console: object, untuned: str | None) -> Iterator[None]:
        self.untuned = untuned
        yield None

    def evaluate(
        self,
        reported: EvaluationSet,
        calibration: EvaluationSet | None,
        _bench: None,
        options: RunOptions,
        other_styles: list[EvaluationSet],
    ) -> Evaluation:
        self.asked = (reported, calibration, options)
        self.other_styles = other_styles
        figures = figures_of(scoring_of("postcards"), KNOWN, ARMS, 2)
        fit = adaptive_threshold([0.9, 0.1], [True, False])
        return Evaluation(
            dataset=reported,
            pool=Pool(1, "eval-postcards-test-0", {}, ("lost.png",)),
            threshold=Threshold(fit.value, "fitted elsewhere", fit),
            top_k=20,
            figures=figures,
            models={"reranker": "mini@1", "untuned_reranker": "raw@2"},
            seconds={"rank": 1.25},
            promise=None if options.promised_precision is None else self.promise(options.promised_precision),
            hybrid_threshold=Threshold(0.25, "fitted on more", fit, retrieval=Retrieval.HYBRID),
            by_style={str(dataset.style): figures for dataset in (reported, *other_styles)},
        )

    @staticmethod
    def promise(precision: float) -> Promise:
        fit = adaptive_threshold([0.9, 0.8, 0.1], [True, True, False])
        return Promise(precision, Threshold(0.75, "fitted elsewhere: 59 of 59", fit, "promised 90 %"), 19, 20, 0.7839)


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> Recorder:
    return Recorder(monkeypatch)


def call(*words: str) -> Result:
    return CliRunner().invoke(command.evaluate, words, catch_exceptions=False)


def test_every_data_set_has_a_split_of_its_own() -> None:
    assert sorted(command.SPLITS) == sorted(DATASETS)


def test_postcards_are_calibrated_on_another_seed(recorder: Recorder) -> None:
    assert call("postcards", "--seed", "7", "--limit", "3").exit_code == 0
    assert recorder.asked is not None
    reported, calibration, options = recorder.asked
    assert calibration is not None
    assert (len(reported.questions), len(reported.images)) == (3, 1000)
    assert (len(calibration.questions), len(calibration.images)) == (300, 1000), "what is fitted takes them all"
    assert reported.questions != calibration.questions
    assert {i.caption for i in reported.images} != {i.caption for i in calibration.images}
    assert options == RunOptions(seed=7, hide_captions=True, noise=(0.2, 0.5))
    assert recorder.untuned is None


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--noise", "0.1", "--noise", "0.3"], RunOptions(1, hide_captions=True, noise=(0.1, 0.3))),
        (["--no-oracle"], RunOptions(1, hide_captions=True, oracle=False)),
        (["--oracle"], RunOptions(1, hide_captions=True)),
        (["--no-caption"], RunOptions(1, hide_captions=True)),
        (["--with-caption"], RunOptions(1)),
        (["--promised-precision", "0.95"], RunOptions(1, hide_captions=True, promised_precision=0.95)),
        (["--rerank", "off"], RunOptions(1, rerank=False)),
        (["--rerank", "off", "--no-caption"], RunOptions(1, rerank=False, hide_captions=True)),
        (["--depth", "fixed"], RunOptions(1, hide_captions=True, depth=Depth.FIXED)),
    ],
)
def test_options_ask_for_what_they_say(recorder: Recorder, words: list[str], expected: RunOptions) -> None:
    assert call("postcards", "--limit", "1", *words).exit_code == 0
    assert recorder.asked is not None
    _, calibration, options = recorder.asked
    assert options == expected
    assert (calibration is None) == (not expected.rerank)


def test_fewer_postcards_can_be_drawn(recorder: Recorder) -> None:
    assert call("postcards", "--images", "40", "--limit", "2", "--untuned", "raw.toml").exit_code == 0
    assert recorder.asked is not None
    reported, calibration, _ = recorder.asked
    assert calibration is not None
    assert (len(reported.images), len(calibration.images)) == (40, 40)
    assert recorder.untuned == "raw.toml"


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([], ["cues", "name"]),
        (["--style", "cues"], ["cues"]),
        (["--style", "misspelt", "--style", "cues", "--style", "misspelt"], ["misspelt", "cues"]),
        (["--style", "all"], [*QuestionStyle]),
    ],
)
def test_postcards_are_asked_about_in_styles(recorder: Recorder, words: list[str], expected: list[str]) -> None:
    assert call("postcards", "--images", "60", "--limit", "4", *words).exit_code == 0
    assert recorder.asked is not None
    reported, calibration, _ = recorder.asked
    sets = [reported, *recorder.other_styles]
    assert [dataset.style for dataset in sets] == expected
    assert {len(dataset.questions) for dataset in sets} == {4}
    assert len({dataset.images for dataset in sets}) == 1
    assert calibration is not None
    turns = [question.style for question in calibration.questions]
    assert turns == [expected[number % len(expected)] for number in range(300)]


def test_json_holds_figures_versions_and_seconds(recorder: Recorder) -> None:
    body: dict[str, Any] = json.loads(call("postcards", "--limit", "2", "--json").stdout)
    assert (body["dataset"], body["seed"], body["limit"], body["questions"]) == ("postcards", 1, 2, 2)
    assert [row["label"] for row in body["rows"]["one_image"]] == [arm.label for arm in ARMS]
    assert body["rows"]["all"][0]["recall_at_2"] == 0.75
    assert body["by_type"]["reranked"]["color"] == {"questions": 2, "score": 0.5, "majority_share": 1.0}
    assert (body["threshold"]["value"], body["threshold"]["fit"]["method"]) == (0.5, "natural")
    assert (body["seconds"], body["models"]["untuned_reranker"]) == ({"rank": 1.25}, "raw@2")
    assert (body["style"], list(body["by_style"])) == ("cues", ["cues", "name"])
    assert body["hybrid_threshold"]["value"] == 0.25
    assert body["by_style"]["name"]["rows"] == body["rows"]
    assert (body["sizes"], body["promise"]) == ({"all": 3, "one_image": 2, "two_images": 1}, None)
    assert {"python", "torch", "ragllava"} <= set(body["versions"])
    assert body["images_left_out"] == ["lost.png"]


def test_people_read_what_was_measured_with_what(recorder: Recorder) -> None:
    text = call("postcards", "--limit", "2").stdout
    for part in ("2 questions to 1000 images", "\nreranker: mini@1\nuntuned reranker: raw@2\n", "lost.png", "rank 1 s"):
        assert part in text
    assert "adaptive η 0.500, fitted elsewhere" in text
    assert "adaptive η of hybrid candidates 0.250, fitted on more" in text
    assert "\nquestions in the style cues\n" in text
    assert text.count("| name, two images") == 1
    assert "promised" not in text


def test_a_promise_is_printed_with_what_became_of_it(recorder: Recorder) -> None:
    words = ["postcards", "--limit", "2", "--promised-precision", "0.9"]
    # 19 of 20: the share p with P(at least 19 | p) = p^20 + 20·p^19·(1 - p) = 0.05 is 0.784.
    expected = (
        "promised 90 %: η 0.750, fitted elsewhere: 59 of 59; "
        "reached here 0.950 (19 of 20 kept candidates), 0.784 at the least\n"
    )
    assert expected in call(*words).stdout
    written = json.loads(call(*words, "--json").stdout)["promise"]
    figures = {name: written[name] for name in ("precision", "confidence", "reached", "reached_at_least")}
    assert figures == {"precision": 0.9, "confidence": 0.95, "reached": 0.95, "reached_at_least": 0.7839}
    assert (written["hits"], written["kept"], written["threshold"]["value"]) == (19, 20, 0.75)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["webqa"], "webqa is not drawn but read from files; name its folder with --data"),
        (["postcards", "--data", "x"], "the postcards are drawn, not read from files; omit --data"),
        (["webqa", "--data", "no-such-folder"], "no-such-folder is not a folder"),
        (["postcards", "--split", "val"], "the postcards have no split 'val'"),
        (["postcards", "--calibration", "val"], "the postcards have no split 'val'"),
        (["webqa", "--data", "x", "--images", "20"], "webqa is not drawn but read from files; omit --images"),
        (["webqa", "--data", "x", "--style", "name"], "the questions of webqa are not drawn; omit --style"),
        (["postcards", "--no-oracle", "--noise", "0.2"], "leave --no-oracle out"),
        (["postcards", "--rerank", "off", "--untuned", "raw.toml"], "--untuned has no effect with --rerank off"),
        (
            ["postcards", "--rerank", "off", "--promised-precision", "0.9"],
            "--promised-precision has no effect with --rerank off",
        ),
        (["postcards", "--rerank", "off", "--calibration", "train"], "--calibration has no effect with --rerank off"),
    ],
)
def test_a_set_that_is_not_there_is_said_before_anything_starts(
    recorder: Recorder, words: list[str], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        call(*words)
    assert recorder.asked is None


@pytest.mark.parametrize(
    "words",
    [
        ["paintings"],
        ["postcards", "--noise", "1.5"],
        ["postcards", "--limit", "0"],
        ["postcards", "--images", "0"],
        ["postcards", "--promised-precision", "1"],
        ["postcards", "--promised-precision", "nan"],
        ["postcards", "--noise", "nan"],
    ],
)
def test_wrong_calls_exit_with_2(recorder: Recorder, words: list[str]) -> None:
    assert call(*words).exit_code == 2
    assert recorder.asked is None
