"""`ragllava models …` on a real registry."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from sqlalchemy import Engine

from ragllava.evaluation.threshold import adaptive_threshold
from ragllava.json_records import to_json
from ragllava.records import Role
from ragllava.stores.learning import registry
from ragllava.stores.learning.registry import AdapterVersion, BaseVersion
from ragllava.training.finetune.report import StepRecord, TrainingReport
from ragllava.training.gate_report import ConditionFigures, GateReport, GateRules
from tests.support.run_command import Run

BASE = "mini-llava@11111111"


def tuned(name: str, number: int, *, hold_out: str = "h1", champion: str = BASE, passed: bool = True) -> AdapterVersion:
    """A reranker as a train job registers it; `number` gives its figures."""
    scores = [*[0.9 + step / 1000 for step in range(40)], *[step / 1000 for step in range(40)]]
    fit = adaptive_threshold(scores, [score > 0.5 for score in scores])
    figures = ConditionFigures(
        name="with captions", is_primary=True, questions=40, images=31, changed=9, champion=0.7,
        challenger=(70 + number) / 100, difference=number / 100, low=0.01, high=0.2, broken=False,
    )  # fmt: skip
    gate = GateReport(passed, ("better with captions",), champion, "challenger", GateRules(), (figures,))
    sides = {
        "champion": {"conditions": {"with captions": {"f1": 0.7}}},
        "challenger": {"conditions": {"with captions": {"f1": (70 + number) / 100}}},
    }
    steps = tuple(StepRecord(step, 1 / step, 1e-4, 1.0, 1.0) for step in range(1, 9))
    report = TrainingReport(Role.RERANKER, BASE, "s1", 300, 12.5, {}, steps)
    return AdapterVersion(
        role=Role.RERANKER,
        name=name,
        profile="mini",
        prompt="rerank-1",
        threshold=fit.value,
        threshold_curve=to_json(fit),
        adapter_sha256=f"{number:02d}" * 32,
        manifest={"adapter_config.json": "ab" * 32},
        base=BASE,
        training={
            "job": number,
            "archives": ["harbour"],
            "snapshot": "s1",
            "hold_out": hold_out,
            "gate": gate.as_json(),
            "scores": {"harbour": sides},
            "report": json.loads(json.dumps(asdict(report))),
        },
        state="challenger" if passed else "candidate",
    )


@pytest.fixture
def registry_rows(engine: Engine) -> None:
    """The bases as champions, and three rerankers that were trained."""
    bases = [
        BaseVersion(Role.RERANKER, BASE, "rerank-1", threshold=0.25),
        BaseVersion(Role.GENERATOR, BASE, "answer-1"),
    ]
    with engine.begin() as connection:
        registry.ensure_champions(connection, "mini", bases)
        registry.ensure_champions(connection, "other", [replace(bases[0], name="elsewhere@1")])
        registry.register_adapter(connection, tuned("harbour-reranker-5@aaaa", 5))
        registry.register_adapter(connection, tuned("harbour-reranker-9@bbbb", 9, champion="harbour-reranker-5@aaaa"))
        registry.register_adapter(connection, tuned("garden-reranker-3@cccc", 3, hold_out="h2", passed=False))


def champion_of(engine: Engine, role: Role = Role.RERANKER) -> str:
    with engine.begin() as connection:
        version = registry.champion(connection, role, "mini")
    assert version is not None
    return version.name


def test_an_empty_registry_says_how_it_is_filled(run: Run) -> None:
    code, out, _ = run("models", "list")
    assert code == 0 and "the first worker that answers registers the base models" in out


def test_the_list_has_the_versions_of_the_profile(run: Run, registry_rows: None) -> None:
    _, out, _ = run("models", "list")
    assert "elsewhere" not in out
    lines = {(words := line.split())[1]: words for line in out.splitlines()[1:]}
    assert lines["harbour-reranker-9@bbbb"][2] == "challenger"
    assert lines["harbour-reranker-5@aaaa"][2] == "retired"
    _, out, _ = run("models", "list", "--role", "generator", "--json")
    [only] = json.loads(out)
    assert (only["name"], only["role"], only["state"], only["adapter_sha256"]) == (BASE, "generator", "champion", None)
    assert run("models", "list", "--role", "retriever")[0] == 2


def test_show_tells_what_a_version_is_made_of(run: Run, registry_rows: None) -> None:
    _, out, _ = run("models", "show", "harbour-reranker-9")
    assert "harbour-reranker-9@bbbb" in out and "09" * 32 in out and BASE in out
    assert "precision 1.000 and recall 1.000 on 40 correct and 40 wrong candidates" in out
    assert "job 9, archives harbour, snapshot s1, 300 examples in 12 s" in out
    assert "passed against harbour-reranker-5@aaaa: better with captions" in out
    assert "0.7900" in out, "the gate's table"
    _, out, _ = run("models", "show", BASE, "--role", "generator")
    assert "none: the base model as it is" in out and "threshold" not in out
    _, out, _ = run("models", "show", "garden", "--json")
    assert json.loads(out)["training"]["hold_out"] == "h2"


def test_names_that_fit_several_or_none_are_told(run: Run, registry_rows: None) -> None:
    assert run("models", "show", "harbour")[0] == 1
    assert "write more of the name" in run("models", "show", "harbour")[2]
    assert "add --role" in run("models", "promote", BASE)[2]
    assert "no version nobody" in run("models", "show", "nobody")[2]


@pytest.mark.parametrize("ending", ["svg", "html"])
def test_the_curves_are_drawn_into_one_file(run: Run, registry_rows: None, tmp_path: Path, ending: str) -> None:
    file = tmp_path / f"curves.{ending}"
    code, out, _ = run("models", "show", "harbour-reranker-9", "--plot", str(file))
    assert code == 0 and f"{file}: open it in a browser" in out
    text = file.read_text()
    assert "src=" not in text and "href=" not in text, "self-contained"
    drawing = ElementTree.fromstring(text[text.index("<svg") : text.index("</svg>") + 6])
    titles = [element.text for element in drawing.iter() if element.get("class") == "title"]
    assert titles == ["Threshold", "Loss of the reranker", "Learning rate"]
    assert "η = 0." in text
    assert ("passed against harbour-reranker-5@aaaa" in text) == (ending == "html")


def test_what_cannot_be_drawn_is_told(run: Run, registry_rows: None, tmp_path: Path) -> None:
    code, _, err = run("models", "show", BASE, "--role", "generator", "--plot", str(tmp_path / "curves.svg"))
    assert code == 1 and "nothing to draw" in err
    assert not (tmp_path / "curves.svg").exists()
    code, _, err = run("models", "show", "garden", "--plot", str(tmp_path / "curves.png"))
    assert code == 1 and "drawn as .svg or .html" in err


def test_promote_and_rollback_say_who_is_champion(run: Run, registry_rows: None, engine: Engine) -> None:
    code, out, err = run("models", "promote", "harbour-reranker-9", "--reason", "looked good")
    assert (code, err) == (0, "") and "harbour-reranker-9@bbbb is the champion reranker from the next shard on" in out
    assert champion_of(engine) == "harbour-reranker-9@bbbb"
    assert "is the champion reranker already" in run("models", "promote", "harbour-reranker-9")[1]
    _, _, err = run("models", "promote", "garden")
    assert "its gate refused it" in err
    assert (
        "harbour-reranker-9@bbbb is the champion reranker again" in run("models", "rollback", "--role", "reranker")[1]
    )
    assert (
        run("models", "rollback", "--role", "reranker")[1] == f"{BASE} is the champion reranker again, threshold 0.25\n"
    )
    code, _, err = run("models", "rollback", "--role", "reranker")
    assert code == 1 and "the reranker of profile mini has no earlier version to go back to" in err
    assert champion_of(engine) == champion_of(engine, Role.GENERATOR) == BASE


def compared(run: Run, first: str, second: str) -> tuple[dict[str, Any], str]:
    code, out, err = run("models", "compare", first, second, "--role", "reranker", "--json")
    assert code == 0, err
    body = json.loads(out)
    return {figure["name"]: figure for figure in body["figures"]}, body["note"]


def test_versions_that_met_are_compared_by_their_contest(run: Run, registry_rows: None) -> None:
    figures, note = compared(run, "harbour-reranker-5", "harbour-reranker-9")
    f1 = figures["harbour, with captions, f1"]
    assert (f1["first"], f1["second"], f1["difference"]) == (0.7, 0.79, 0.09)
    assert "evaluated against each other on the hold-out h1 of job 9" in note
    backwards, _ = compared(run, "harbour-reranker-9", "harbour-reranker-5")
    assert backwards["harbour, with captions, f1"]["difference"] == -0.09
    of_base, note = compared(run, BASE, "harbour-reranker-5")
    assert of_base["harbour, with captions, f1"]["difference"] == 0.05
    assert of_base["threshold"]["first"] == 0.25


def test_figures_of_different_hold_outs_come_with_a_warning(run: Run, registry_rows: None) -> None:
    figures, note = compared(run, "harbour-reranker-9", "garden")
    assert figures["harbour, with captions, f1"]["difference"] == -0.06
    assert "different hold-outs (h1 and h2)" in note
    _, note = compared(run, BASE, "harbour-reranker-9")
    assert note == f"no figures of {BASE}: never evaluated as a challenger"
    _, out, _ = run("models", "compare", "harbour-reranker-9", "garden")
    assert "-0.0600" in out and "different hold-outs" in out


def test_the_role_of_one_name_is_that_of_the_other_one(run: Run, registry_rows: None) -> None:
    for pair in (("harbour-reranker-9", "mini-llava"), ("mini-llava", "harbour-reranker-9")):
        code, out, err = run("models", "compare", *pair)
        assert (code, err) == (0, "") and f"no figures of {BASE}" in out
    code, _, err = run("models", "compare", "mini-llava", BASE)
    assert code == 1 and "add --role" in err
    code, _, err = run("models", "compare", "harbour", "mini-llava")
    assert code == 1 and "write more of the name" in err


def test_roles_are_shown_as_they_are_written(run: Run) -> None:
    for command in ("list", "show", "compare", "promote", "rollback"):
        assert "--role [reranker|generator]" in run("models", command, "--help")[1]


def test_versions_of_two_roles_are_not_compared(run: Run, registry_rows: None, engine: Engine) -> None:
    with engine.begin() as connection:
        registry.register_adapter(connection, replace(tuned("writer@1", 1), role=Role.GENERATOR))
    code, _, err = run("models", "compare", "writer@1", "garden")
    assert code == 1 and "only versions of one role can be compared" in err
