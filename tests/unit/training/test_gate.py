"""The gate: its chances against every flip of signs, its error rates over many drawn hold-outs, its sentences."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import NormalDist, fmean

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import stdtrit

from ragllava.training.gate import bounds_of_mean, chance_of_equal, decide, effective_questions, named_groups
from ragllava.training.gate_report import GateReport, GateRules

PRIMARY, NOISE, BARE = "from the labelled images", "with a wrong image beside them", "without captions"
RULES = GateRules()
SHORT = GateRules(flips=1000)


@dataclass(frozen=True)
class RerankedQuestions:
    version: str
    by_condition: Mapping[str, Sequence[float]]
    primary: Mapping[str, float] = field(default_factory=lambda: {PRIMARY: 1.0})
    prefix: str = "question"
    about: Sequence[Sequence[str]] | None = None
    tolerances: Mapping[str, float] = field(default_factory=dict)

    @property
    def relevant(self) -> Sequence[Sequence[str]]:
        return alone(len(self.questions)) if self.about is None else self.about

    @property
    def questions(self) -> tuple[str, ...]:
        return tuple(f"{self.prefix} {number}" for number in range(len(self.by_condition[next(iter(self.primary))])))


def alone(count: int) -> list[list[str]]:
    """Each question is about an image of its own."""
    return [[f"picture {number}"] for number in range(count)]


def gate(
    champion: Mapping[str, Sequence[float]],
    challenger: Mapping[str, Sequence[float]],
    rules: GateRules = RULES,
    **others: tuple[Sequence[float], Sequence[float]],
) -> GateReport:
    """Decide over plain numbers; `others` are primary scores on other archives."""
    pairs = {
        f"archive {name}": (RerankedQuestions("old", {PRIMARY: before}), RerankedQuestions("new", {PRIMARY: after}))
        for name, (before, after) in others.items()
    }
    return decide(RerankedQuestions("old", champion), RerankedQuestions("new", challenger), rules, others=pairs)


def right(count: int, of: int) -> list[float]:
    """The first `count` are right."""
    return [1.0] * count + [0.0] * (of - count)


@pytest.mark.parametrize("differences", [[1.0, 1.0, 0.5, -0.2], [1.0, 1.0, 1.0, 0.0, -1.0], [0.3] * 6])
def test_the_chance_against_every_possible_flip_of_signs(differences: list[float]) -> None:
    flipped = [sum(signs) for signs in itertools.product(*((value, -value) for value in differences))]
    exact = fmean(total >= sum(differences) - 1e-9 for total in flipped)
    rules = GateRules(flips=40_000)
    assert chance_of_equal(differences, alone(len(differences)), rules) == pytest.approx(exact, abs=0.01)


def test_questions_about_one_image_flip_together() -> None:
    """Three images with four questions each: only one of the eight flips is as large."""
    about = [[str(number // 4)] for number in range(12)]
    assert chance_of_equal([1.0] * 12, about, RULES) == pytest.approx(1 / 8, abs=0.02)
    assert chance_of_equal([1.0] * 12, alone(12), RULES) < 0.002


def test_a_chance_is_no_smaller_than_so_few_flips_can_show() -> None:
    """Six gains and no loss among 60 questions: 1 in 64, where Student's t alone would say less than 1 in 150."""
    assert chance_of_equal([1.0] * 6 + [0.0] * 54, alone(60), RULES) == pytest.approx(1 / 64, abs=0.005)


def test_no_gain_has_no_chance_to_pass() -> None:
    assert chance_of_equal([0.0] * 30, alone(30), RULES) == 1
    assert chance_of_equal([-1.0] * 30, alone(30), RULES) == 1


def test_the_error_of_all_tries_together_is_that_of_one() -> None:
    rules = GateRules()
    errors = [rules.error(tried) for tried in range(10_000)]
    assert errors == sorted(errors, reverse=True)
    assert sum(errors) == pytest.approx(0.05, abs=1e-5)
    assert errors[0] > 0.04, "the first try keeps nearly all of it"


def test_the_same_gain_that_passes_at_first_does_not_after_many_tries() -> None:
    champion, challenger = (
        RerankedQuestions(name, {PRIMARY: right(count, 60)}) for name, count in (("a", 20), ("b", 26))
    )
    first, later = (decide(champion, challenger, tried=tried) for tried in (0, 20))
    assert first.passed
    assert not later.passed
    assert later.tried == 20
    assert "version 21 tried against this champion may pass by chance with 0.0018 %" in later.reasons[0]


def test_what_questions_about_one_image_have_in_common_widens_the_bounds_by_hand() -> None:
    """Two images with two questions each, 1, 1 and 0, 0: deviations of a half, whose squares sum up to 1.

    Each question shares its image with one of the same deviation, so with both counted the sum is 2: the means spread
    by the square root of 2 more. 0.5 ± 0.25 becomes 0.5 ± 0.354.
    """
    differences = [1.0, 1.0, 0.0, 0.0]
    narrow = bounds_of_mean(differences, alone(4), 0.7)
    wide = bounds_of_mean(differences, [["a"], ["a"], ["b"], ["b"]], 0.7)
    # Of four and of two independent ones: Student's quantiles for 3 and for 1 degree of freedom at 70 %.
    assert narrow == pytest.approx((0.5 - 0.584 * 0.5 / 3**0.5, 0.5 + 0.584 * 0.5 / 3**0.5), abs=1e-3)
    assert wide[1] == pytest.approx(0.5 + 0.727 * 0.5 * 2**0.5 * (2 / 4) ** 0.5, abs=1e-3)


def test_a_question_about_two_images_shares_each_of_them_and_counts_none_twice() -> None:
    """Deviations 1/2, 1/2, −1/2, −1/2; the first is about both images of the second, the others are alone.

    So 1 + 2 · (1/2 · 1/2) = 1.5 in place of 1.
    """
    differences = [1.0, 1.0, 0.0, 0.0]
    about = [["a", "b"], ["b", "a"], ["c"], []]
    independent = effective_questions(about)
    reach = bounds_of_mean(differences, about, 0.7)[1] - 0.5
    quantile = float(stdtrit(independent - 1, 0.7))
    assert reach == pytest.approx(quantile * 0.5 * 1.5**0.5 * (independent / (independent - 1) / 4) ** 0.5)


def test_questions_about_one_image_alone_show_nothing() -> None:
    assert bounds_of_mean([1.0] * 30, [["a"]] * 30, 0.95) == (0, 0)
    champion = RerankedQuestions("old", {PRIMARY: right(0, 30)}, about=[["a"]] * 30)
    assert not decide(champion, RerankedQuestions("new", {PRIMARY: right(30, 30)}, about=[["a"]] * 30), RULES).passed


def test_one_question_or_none_shows_nothing() -> None:
    assert bounds_of_mean([1.0], alone(1), 0.95) == (0, 0)
    assert bounds_of_mean([], [], 0.95) == (0, 0)


def test_the_bounds_are_students_where_differences_are_normal() -> None:
    """Published table of Student's t, 19 degrees of freedom: 1.729 at 95 %."""
    places = (np.arange(20) + 0.5) / 20
    differences = np.array([NormalDist(0.3, 1).inv_cdf(place) for place in places])
    spread = differences.std(ddof=1) / np.sqrt(20)
    low, high = bounds_of_mean(differences, alone(20), 0.95)
    assert low == pytest.approx(0.3 - 1.729 * spread, abs=0.02)
    assert high == pytest.approx(0.3 + 1.729 * spread, abs=0.02)


def lucky_answers(count: int, rng: np.random.Generator) -> npt.NDArray[np.float64]:
    """One answer in three changes, to right as often as to wrong."""
    return rng.choice([-1.0, 0.0, 1.0], size=count, p=[1 / 6, 2 / 3, 1 / 6])


def lucky_evidence(count: int, rng: np.random.Generator) -> npt.NDArray[np.float64]:
    """F1 of up to two kept images, of two versions that have nothing in common."""
    before, after = rng.choice([0.0, 0.5, 2 / 3, 1.0], size=(2, count))
    return np.asarray(after - before)


@pytest.mark.parametrize("draw", [lucky_answers, lucky_evidence])
@pytest.mark.parametrize("count", [20, 60])
def test_equal_versions_pass_as_rarely_as_promised(
    count: int, draw: Callable[[int, np.random.Generator], npt.NDArray[np.float64]]
) -> None:
    """500 hold-outs on which both versions are equally good: at most 5 % may pass and at most 10 % break a guard,
    with two standard errors of such counts; and neither may be bought by never deciding."""
    rng = np.random.default_rng(count)
    passed = broken = 0
    for _ in range(500):
        differences = draw(count, rng)
        passed += chance_of_equal(differences, alone(count), SHORT, 0.05) <= 0.05
        broken += bounds_of_mean(differences, alone(count), 0.9)[1] < -1e-9
    assert 10 <= passed <= 35
    assert 20 <= broken <= 64


def about_images(images: int, count: int, pairs: float, rng: np.random.Generator) -> list[list[int]]:
    """Which images each question is about; a share of the questions is about two."""
    return [rng.choice(images, 2 if rng.random() < pairs else 1, replace=False).tolist() for _ in range(count)]


@pytest.mark.parametrize("numbers", [[20, *[1] * 20], [20, 10, *[1] * 10]])
def test_one_image_that_most_questions_are_about_proves_no_more_than_an_image(numbers: list[int]) -> None:
    """Taken for as many images as there are, 12 and 8 % of equal versions would pass."""
    rng = np.random.default_rng(len(numbers))
    named = [[str(image)] for image, count in enumerate(numbers) for _ in range(count)]
    passed = 0
    for _ in range(500):
        luck = rng.choice([-1.0, 0.0, 1.0], size=len(numbers), p=[0.2, 0.6, 0.2])
        passed += chance_of_equal(np.repeat(luck, numbers), named, SHORT, 0.05) <= 0.05
    assert passed <= 35


@pytest.mark.parametrize(("images", "count", "pairs"), [(20, 100, 0.0), (40, 110, 0.2), (60, 100, 1.0)])
def test_equal_versions_pass_as_rarely_where_questions_are_about_the_same_images(
    images: int, count: int, pairs: float
) -> None:
    """What a version makes of a picture decides most of its answers about it. Taken for independent, 13 to 18 % of
    equal versions would pass instead of 5 %."""
    rng = np.random.default_rng(images)
    passed = broken = naive = 0
    for _ in range(500):
        about = about_images(images, count, pairs, rng)
        luck = rng.normal(size=images)
        shared = np.array([luck[found].sum() / len(found) ** 0.5 for found in about])
        leaning = 0.6**0.5 * shared + 0.4**0.5 * rng.normal(size=count)
        differences = np.sign(leaning) * (np.abs(leaning) > 1)
        named = [[str(image) for image in found] for found in about]
        passed += chance_of_equal(differences, named, SHORT, 0.05) <= 0.05
        broken += bounds_of_mean(differences, named, 0.9)[1] < -1e-9
        naive += chance_of_equal(differences, alone(count), SHORT, 0.05) <= 0.05
    assert 10 <= passed <= 35
    assert 20 <= broken <= 64
    assert naive > 1.5 * passed


@given(st.integers(0, 10_000))
def test_a_clearly_better_version_passes(seed: int) -> None:
    rng = np.random.default_rng(seed)
    before, after = ((rng.random(100) < share).astype(float).tolist() for share in (0.5, 0.95))
    report = gate({PRIMARY: before, NOISE: before, BARE: before}, {PRIMARY: after, NOISE: after, BARE: before})
    assert report.passed
    [reason] = report.reasons
    assert reason.startswith(
        f"better, {PRIMARY}: {fmean(before):.3f} → {fmean(after):.3f} on 100 questions about 100 images"
    )


def test_better_but_worse_with_noise_is_refused_with_the_reason() -> None:
    champion = {PRIMARY: right(50, 100), NOISE: right(60, 100), BARE: right(40, 100)}
    challenger = {PRIMARY: right(80, 100), NOISE: right(45, 100), BARE: right(40, 100)}
    report = gate(champion, challenger)
    assert not report.passed
    assert report.reasons == (
        "worse, with a wrong image beside them: 0.600 → 0.450 on 100 questions about 100 images, "
        "a fall that is not due to chance with 90 % confidence",
    )
    broken = {figures.name: figures.broken for figures in report.figures}
    assert broken == {PRIMARY: False, NOISE: True, BARE: False}


def test_another_archive_guards_too() -> None:
    champion, challenger = {PRIMARY: right(50, 100)}, {PRIMARY: right(80, 100)}
    assert gate(champion, challenger, home=(right(90, 100), right(90, 100))).passed
    report = gate(champion, challenger, home=(right(90, 100), right(80, 100)))
    assert not report.passed
    assert "worse, archive home: 0.900 → 0.800 on 100 questions about 100 images" in report.reasons[0]
    assert [figures.is_primary for figures in report.figures] == [True, False]


def test_that_it_is_better_elsewhere_does_not_help() -> None:
    report = gate({PRIMARY: right(50, 100), NOISE: right(10, 100)}, {PRIMARY: right(51, 100), NOISE: right(90, 100)})
    assert not report.passed
    assert report.reasons[0].startswith(
        f"not better, {PRIMARY}: 0.500 → 0.510 on 100 questions about 100 images, a gain that equal versions show "
    )


def test_all_that_is_wrong_is_said() -> None:
    """Shuffled labels: the version learned nothing and forgot what it knew."""
    champion = {PRIMARY: right(50, 100), NOISE: right(50, 100)}
    challenger = {PRIMARY: right(30, 100), NOISE: right(20, 100)}
    report = gate(champion, challenger, home=(right(90, 100), right(50, 100)))
    assert [reason.split(",")[0] for reason in report.reasons] == ["not better", "worse", "worse"]


@pytest.mark.parametrize("fall", [1, 100])
def test_a_fall_within_the_tolerance_is_none(fall: int) -> None:
    """One of a hundred questions, and a hundred of ten thousand, where the fall is significant."""
    size = 100 * fall
    before, after = right(50 * fall, size), right(50 * fall - fall, size)
    report = gate({PRIMARY: right(20, size), NOISE: before}, {PRIMARY: right(size, size), NOISE: after})
    assert report.passed
    assert report.figures[1].difference == pytest.approx(-0.01)


def test_luck_does_not_break_a_guard() -> None:
    """Ten answers got right and fourteen wrong: more than the tolerance, but it may well be chance."""
    before = right(14, 100)
    after = [0.0] * 14 + [1.0] * 10 + [0.0] * 76
    report = gate({PRIMARY: right(20, 100), BARE: before}, {PRIMARY: right(90, 100), BARE: after})
    assert report.figures[1].difference == pytest.approx(-0.04)
    assert report.passed


def test_too_few_questions_are_refused() -> None:
    report = gate({PRIMARY: right(0, 19)}, {PRIMARY: right(19, 19)})
    assert not report.passed
    assert report.reasons == (
        "only 19 questions are held out, and 20 are needed to compare two versions; label more questions",
    )
    assert gate({PRIMARY: right(0, 20)}, {PRIMARY: right(20, 20)}).passed
    assert not gate({PRIMARY: []}, {PRIMARY: []}).passed


def test_an_empty_hold_out_of_another_archive_says_nothing() -> None:
    assert gate({PRIMARY: right(20, 100)}, {PRIMARY: right(90, 100)}, empty=([], [])).passed


def test_identical_scores_are_refused() -> None:
    same = [0.0, 1 / 3, 2 / 3, 1.0] * 10
    report = gate({PRIMARY: same}, {PRIMARY: same})
    assert not report.passed
    assert report.reasons == (f"no difference, {PRIMARY}: both versions score the same on each of 40 questions",)


def test_gains_and_losses_that_cancel_out_do_not_pass_by_rounding() -> None:
    before = [1 / 3, 2 / 3, 1.0] * 20
    assert not gate({PRIMARY: before}, {PRIMARY: [2 / 3, 1.0, 1 / 3] * 20}).passed


def test_versions_judged_on_different_questions_are_not_compared() -> None:
    champion = RerankedQuestions("old", {PRIMARY: right(10, 30)})
    with pytest.raises(ValueError, match="old and new were evaluated on different questions"):
        decide(champion, RerankedQuestions("new", {PRIMARY: right(20, 30)}, prefix="another"))


def test_the_same_scores_give_the_same_report() -> None:
    rng = np.random.default_rng(5)
    before, after = rng.random((2, 50)).tolist()
    first, again = (gate({PRIMARY: before}, {PRIMARY: after}) for _ in range(2))
    assert first == again


def test_the_report_as_json() -> None:
    report = gate({PRIMARY: right(20, 60), BARE: right(6, 60)}, {PRIMARY: right(50, 60), BARE: right(6, 60)})
    stored = json.loads(json.dumps(report.as_json()))
    assert (stored["passed"], stored["champion"], stored["challenger"]) == (True, "old", "new")
    assert stored["rules"]["tolerance"] == 0.01
    primary, bare = stored["figures"]
    assert (primary["name"], primary["is_primary"], primary["questions"], primary["changed"]) == (PRIMARY, True, 60, 30)
    assert (primary["champion"], primary["challenger"], primary["difference"]) == (0.3333, 0.8333, 0.5)
    assert 0.3 < primary["low"] < 0.5 < primary["high"] < 0.7
    assert 0 < primary["chance"] < 0.001
    assert (stored["tried"], bare["chance"]) == (0, None)
    assert (bare["low"], bare["high"], bare["broken"]) == (0.0, 0.0, False)


def test_one_of_two_primary_conditions_suffices_and_the_other_must_not_fall() -> None:
    before, better, lower = right(40, 80), right(60, 80), right(39, 80)

    def passes(first: list[float], second: list[float]) -> bool:
        primary = {PRIMARY: 0.2, NOISE: 0.8}
        old = RerankedQuestions("old", {PRIMARY: before, NOISE: before}, primary)
        return decide(old, RerankedQuestions("new", {PRIMARY: first, NOISE: second}, primary)).passed

    assert passes(before, better)
    assert passes(better, before)
    assert not passes(lower, better), "the first condition is what users get"
    assert not passes(better, right(20, 80))


def test_a_condition_may_have_a_tolerance_of_its_own() -> None:
    def passes(tolerances: Mapping[str, float]) -> bool:
        old = RerankedQuestions("old", {PRIMARY: right(20, 80), BARE: right(80, 80)}, tolerances=tolerances)
        return decide(old, RerankedQuestions("new", {PRIMARY: right(60, 80), BARE: right(64, 80)})).passed

    assert not passes({})
    assert passes({BARE: 0.25})


def test_questions_about_near_duplicates_prove_no_more_than_questions_about_one_image() -> None:
    """Forty copies of four pictures: by names they are forty pictures, which would prove the gain."""
    gains = [0.0] * 20 + [1.0] * 20
    champion, challenger = (RerankedQuestions(name, {PRIMARY: gains}) for name in ("old", "new"))
    champion = replace(champion, by_condition={PRIMARY: [0.0] * 40})
    groups = {f"picture {number}": f"picture {number // 10}" for number in range(40)}
    assert decide(champion, challenger, RULES).passed
    report = decide(champion, challenger, RULES, groups=groups)
    assert not report.passed
    assert report.figures[0].images == 4
    assert named_groups([["picture 1", "picture 2", "x"]], groups) == [("picture 0", "x")]
