"""Options of an answer job from JSON, as a bucket's inbox gives them."""

from __future__ import annotations

from typing import Any

import pytest

from ragllava.errors import UsageError
from ragllava.json_records import from_json, to_json
from ragllava.records import AnswerOptions, Depth, Retrieval
from ragllava.stages.answer.submit import as_options


def test_nothing_and_no_option_are_the_defaults() -> None:
    assert as_options(None) == as_options({}) == AnswerOptions()
    assert (AnswerOptions().retrieval, AnswerOptions().depth) == (Retrieval.HYBRID, Depth.NEED)


@pytest.mark.parametrize("retrieval", list(Retrieval))
@pytest.mark.parametrize("depth", list(Depth))
def test_retrieval_and_depth_come_by_name(retrieval: Retrieval, depth: Depth) -> None:
    options = as_options({"top_k": 7, "retrieval": retrieval.value, "depth": depth.value})
    assert options == AnswerOptions(top_k=7, retrieval=retrieval, depth=depth)
    assert isinstance(options.retrieval, Retrieval) and isinstance(options.depth, Depth)
    assert from_json(AnswerOptions, to_json(options)) == options


@pytest.mark.parametrize("value", ["vectors", "HYBRID", "", None, 1, True, ["hybrid"], {"hybrid": 1}])
def test_an_unknown_retrieval_is_refused_in_one_sentence(value: Any) -> None:
    with pytest.raises(UsageError) as refused:
        as_options({"retrieval": value})
    assert str(refused.value) == f"retrieval must be hybrid or picture or caption, not {value!r}"


@pytest.mark.parametrize("value", ["deep", "NEED", "", None, 0, False, ["need"]])
def test_an_unknown_depth_is_refused_in_one_sentence(value: Any) -> None:
    with pytest.raises(UsageError) as refused:
        as_options({"depth": value})
    assert str(refused.value) == f"depth must be need or fixed, not {value!r}"


@pytest.mark.parametrize("given", [{"retreival": "hybrid"}, [], "hybrid", {"top_k": 3, "image": 1}])
def test_unknown_names_are_refused_with_those_that_there_are(given: Any) -> None:
    with pytest.raises(UsageError) as refused:
        as_options(given)
    names = "top_k, top_n, threshold, captions_in_answer, retrieval, depth, filter"
    assert str(refused.value) == f"options may contain only {names}, not {given!r}"
