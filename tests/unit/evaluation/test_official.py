"""The official measures, against cases worked by hand with a lemmatiser of the test's own; and against spaCy's."""

from __future__ import annotations

import pytest

from ragllava.errors import UsageError
from ragllava.evaluation import official
from ragllava.evaluation.datasets.records import EvaluationQuestion
from ragllava.evaluation.official import OfficialWebqa, list_exact_match, list_f1
from ragllava.evaluation.scoring import Metric, answers_in, scoring_of

LEMMAS = {"windows": "window", "curved": "curve", "reds": "red", "dont": "do nt", "has": "have"}


@pytest.fixture
def webqa() -> OfficialWebqa:
    return OfficialWebqa(lambda text: " ".join(LEMMAS.get(word, word) for word in text.split()), "of the test")


@pytest.mark.parametrize(
    ("answer", "reference", "category", "score"),
    [
        # One of three words that count, {red} of {red, white}; "the" and "door" do not.
        ("The door is red .", "Red, white.", "color", 2 * 1 * 0.5 / (1.5 + 1e-5)),
        ("It is red and red", "red", "color", 2 / (2 + 1e-5)),
        ("yes", "Yes, red", "color", 2 * 1 * 0.5 / (1.5 + 1e-5)),  # "yes" is in the official list
        ("striped", "striped", "color", 0.0),  # no word of the category: ours compares all words
        ("The beak is curved .", "Curved.", "shape", 2 / (2 + 1e-5)),
        ("No, it does not", "no", "YesNo", 2 / (2 + 1e-5)),
        # Numbers count as often as they occur; 3.5 is not a whole number; two hundred is 2 and 100.
        ("two of 2 and 4", "2", "number", 2 * 1 * (1 / 3) / (4 / 3 + 1e-5)),
        ("3.5", "3.5", "number", 0.0),
        ("two hundred", "200", "number", 0.0),
        ("05", "5", "number", 2 / (2 + 1e-5)),
        # All other categories: the share of the keywords, as often as they occur.
        ("The mill has windows", "A mill, windows and a window", "Others", 2 / 4),
        ("window window", "windows and a window", "choose", 2 / 3),
        ("The U.S.A.", "usa", "Others", 1.0),
        ("twenty-one", "21", "Others", 0.0),  # punctuation is removed without a space
        ("don't", "do not", "Others", 1 / 2),
        ("a", "A", "Others", 1.0),  # a single letter is not an article
        ("the", "The", "choose", 1.0),
        ("", "", "Others", 0.0),
    ],
)
def test_webqa(webqa: OfficialWebqa, answer: str, reference: str, category: str, score: float) -> None:
    assert webqa.score(answer, reference, category) == pytest.approx(score, abs=1e-12)


def test_without_spacy_the_advice_is_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "spacy", None)
    with pytest.raises(UsageError, match=r"needs spaCy; install the extra `webqa` and the model: `python -m spacy"):
        scoring_of("webqa", Metric.OFFICIAL)
    with pytest.raises(UsageError, match="postcards has no official measure of answers"):
        scoring_of("postcards", Metric.OFFICIAL)


def test_with_spacy() -> None:
    """Its lemmas depend on the sentence. Only where the extra `webqa` and its model are installed."""
    spacy = pytest.importorskip("spacy")
    if not any(name.startswith("en_core_web_sm") for name in spacy.util.get_installed_models()):
        pytest.skip("spaCy's small English model is not installed")
    scoring = scoring_of("webqa", Metric.OFFICIAL)
    assert scoring.name.startswith("WebQA's official accuracy, spaCy ")
    asked = EvaluationQuestion("q", "bricks", "Others", ("a",), "?")
    assert scoring.score(asked, "Brick was used to pave the road .") == 1.0
    assert set(scoring.beside) == {"ours"}


@pytest.mark.parametrize(
    ("answers", "references", "matches", "f1"),
    [
        (["Harlow Mill"], ["the Harlow-Mill"], 1.0, 1.0),
        (["2"], ["two"], 1.0, 1.0),
        (["2.0"], ["2"], 1.0, 1.0),
        (["3 mills"], ["2 mills"], 0.0, 0.0),  # other numbers: nothing counts
        (["mills"], ["2 mills"], 0.0, 0.0),
        (["2 mills"], ["mills"], 0.0, 0.67),
        (["b", "a c"], ["a c", "b"], 1.0, 1.0),  # in any order
        (["red"], ["red", "blue"], 0.0, 0.5),
        (["red", "blue", "green"], ["red"], 0.0, 0.33),
        (["red barn", "blue"], ["blue", "red mill"], 0.0, 0.75),
        (["red", "red"], ["red"], 0.0, 0.5),
        ([""], ["red"], 0.0, 0.0),
        ([], ["red"], 0.0, 0.0),
    ],
)
def test_lists(answers: list[str], references: list[str], matches: float, f1: float) -> None:
    assert list_exact_match(answers, references) == matches
    assert list_f1(answers, references) == f1


def test_multimodalqa_scores_f1_beside_exact_match() -> None:
    asked = EvaluationQuestion("q", "red", "ImageQ", ("a",), "?", references=("red", "dark blue"))
    ours, theirs = scoring_of("multimodalqa"), scoring_of("multimodalqa", Metric.OFFICIAL)
    text = "Dark blue and red"
    assert (ours.score(asked, text), ours.beside["list F1"](asked, text)) == (0.0, 1.0)
    assert (theirs.score(asked, text), theirs.beside["exact match"](asked, "red")) == (1.0, 1.0)
    assert ours.beside["list F1"](asked, "blue") == 0.33


def test_one_text_gives_several_answers_only_where_several_are_asked_for() -> None:
    assert answers_in("black and white", ["black and white"]) == ["black and white"]
    assert answers_in("red, dark blue and green", ["x", "y"]) == ["red", "dark blue", "green"]
    assert answers_in("sand", ["x", "y"]) == ["sand"]
    assert answers_in("", ["x", "y"]) == [""]


def test_number_words_are_those_of_the_official_converter() -> None:
    assert official._digits("two hundred thousand and zero point 007 3.5") == [
        *("2", "100", "1000", "and", "0", "point", "7", "3.5")
    ]
