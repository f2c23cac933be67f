"""`ragllava bench` in small sizes: every group of rows, with its own services and workers."""

from __future__ import annotations

import tempfile
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from typing import Any

import psutil
import pytest

from tests.acceptance.conftest import READY_S
from tests.support.run_command import Run, runner
from tests.support.terminal import Terminal, Typed, ended, terminal

pytestmark = [pytest.mark.acceptance, pytest.mark.timeout(1200)]

SMALL = ("--questions", "2", "--images", "20", "--vectors", "400", "--job-questions", "4", "--rows", "3000")
ROW_KEYS = {
    "group", "name", "reference", "unit", "ours", "reference_value", "ratio", "wanted_at_least", "wanted_at_most",
    "reached", "figures", "note",
}  # fmt: skip


@pytest.fixture
def shell() -> Iterator[Terminal]:
    with terminal() as made:
        made.folder.chmod(0o755)
        yield made


def run(shell: Terminal, *words: str, **environment: str) -> Typed:
    """`ragllava bench`; its temporary home is created in the shell's folder."""
    with shell.start("bench", *words, TMPDIR=str(shell.folder), **environment) as process:
        return ended(process, 6 * READY_S)


def rows_of(typed: Typed) -> list[dict[str, Any]]:
    """The rows of a successful run, each with its arithmetic checked."""
    assert typed.code == 0, typed
    output = typed.json
    assert {"hardware", "versions", "settings", "rows"} == output.keys()
    assert output["hardware"]["cores"] >= 1 and output["versions"]["torch"] and output["settings"]["profile"] == "mini"
    rows: list[dict[str, Any]] = output["rows"]
    for row in rows:
        assert row.keys() == ROW_KEYS
        assert row["ours"] > 0
        if row["reference_value"] is not None:
            assert row["ratio"] == pytest.approx(row["ours"] / row["reference_value"])
    return rows


def assert_nothing_is_left(shell: Terminal) -> None:
    assert not list(shell.folder.glob("ragllava-bench-*"))
    assert not [p for p in psutil.process_iter(["cmdline"]) if str(shell.folder) in " ".join(p.info["cmdline"] or [])]


def cells_of(typed: Typed) -> dict[str, list[str]]:
    """The table that a person reads, by the name of the row."""
    assert typed.code == 0, typed
    lines = [[cell.strip() for cell in line.split("│")[1:-1]] for line in typed.out.splitlines() if "│" in line]
    return {line[0]: line for line in lines}


def test_reranking_gives_the_scores_of_the_reference(shell: Terminal) -> None:
    typed = run(shell, "--only", "rerank", *SMALL, "--chart", "chart.svg")
    cells = cells_of(typed)
    assert all(name.startswith(("rerank, ", "generate, ")) for name in cells)
    shown = {
        name: dict(figure.rsplit(" ", 1) for figure in line[-1].split(", ") if figure) for name, line in cells.items()
    }
    answers = "generate, mini, 20 answers in a batch"
    for start in ("rerank, mini, 2 pairs an image", "rerank, mini, one question", f"{answers}, 4 a picture"):
        [name] = [name for name in cells if name.startswith(start)]
        assert float(shown[name]["largest_difference"]) < 1e-4
    [single] = [name for name in cells if name.startswith("rerank, mini, one question")]
    assert float(shown[single]["share_of_limit"]) > 0
    _what, _ours, _reference, _unit, ratio, wanted, mark, _figures = cells[single]
    assert wanted == "≥ 1" and mark == ("reached" if float(ratio) >= 1.0 else "missed")
    drawn = ET.parse(shell.folder / "chart.svg").getroot()
    assert single in [text.text for text in drawn.iter("{http://www.w3.org/2000/svg}text")]
    assert "rerank: mini, one question" in typed.err  # the progress
    assert_nothing_is_left(shell)


@pytest.fixture(scope="module")
def measured() -> Iterator[list[dict[str, Any]]]:
    """The rows of the groups that need services or workers: one run, for to start them takes longest."""
    with terminal() as own:
        own.folder.chmod(0o755)
        # An endpoint in the settings, here one that does not answer, is not used.
        words = ("--only", "search,console,ingest,growth,overhead", *SMALL, "--json")
        yield rows_of(run(own, *words, RAGLLAVA_VLLM_URL="http://127.0.0.1:9"))
        assert_nothing_is_left(own)


def of_group(rows: list[dict[str, Any]], group: str) -> list[dict[str, Any]]:
    return [row for row in rows if row["group"] == group]


def test_a_graph_finds_what_the_exact_scan_finds(measured: list[dict[str, Any]]) -> None:
    rows = of_group(measured, "search")
    names = [row["name"] for row in rows if "faiss" not in row["name"]]
    assert names == ["search, 400 × 512, 64 questions", "search, 400 × 512, one question"]
    assert all(row["wanted_at_least"] == 20 for row in rows if row["name"] in names)
    assert all(row["figures"]["recall_at_20"] > 0.95 for row in rows if row["name"] in names)
    for row in rows:
        if row["name"].endswith("beside faiss"):
            if row["reference_value"] is None:
                assert "pip install 'ragllava[bench]'" in row["note"]
            else:
                assert row["figures"]["recall_at_20_of_faiss"] > 0.95


def test_pages_of_the_console_are_timed(measured: list[dict[str, Any]]) -> None:
    pages = of_group(measured, "console")
    assert {"pictures", "questions"} <= {word for row in pages for word in row["name"].split(":")[0].split()}
    assert all(0 < row["figures"]["median_ms"] <= row["ours"] and row["reference_value"] == 300 for row in pages)


def test_ingest_jobs_store_the_vectors_that_embedding_alone_gives(measured: list[dict[str, Any]]) -> None:
    rows = of_group(measured, "ingest")
    beside = [row for row in rows if row["name"].endswith("beside clip-retrieval")]
    jobs = [row for row in rows if row not in beside]
    assert [row["name"] for row in jobs] == [
        "ingest, mini, postcards",
        "ingest, ViT-B/32, 0.3 megapixels",
        "ingest, ViT-B/32, 2 to 12 megapixels",
    ]
    for row in jobs:
        assert row["figures"]["pictures"] == 20 and row["figures"]["lowest_cosine"] > 0.999
        assert row["wanted_at_least"] == 0.85
        # Where the time was spent: the reference saves the sum of these. For 20 pictures the other programs may need
        # less than a tick of the system's clock, and are then left out.
        for program in ("worker ingest, its child", "embedding alone"):
            assert row["figures"][f"processor_ms, {program}"] > 0
    for program in ("decoders", "PostgreSQL", "SeaweedFS"):
        assert sum(row["figures"].get(f"processor_ms, {program}", 0.0) for row in jobs) > 0
    assert len(beside) == 2
    for row in beside:
        if row["reference_value"] is None:
            assert "--clip-retrieval PATH" in row["note"]
        else:
            assert row["figures"]["lowest_cosine"] > 0.999


def test_jobs_through_the_queue_and_archives_of_three_sizes(measured: list[dict[str, Any]]) -> None:
    rows = {row["name"]: row for row in measured}
    job = rows["overhead, a job of 4 questions"]
    assert (job["figures"]["answers_that_differ"], job["wanted_at_most"]) == (0, 1.05)
    assert "extra_ms" in rows["overhead, one question now"]["figures"]
    assert rows["growth, a job of 4 questions"]["wanted_at_most"] == 4
    assert rows["growth, a question on 400 images"]["figures"]["candidates_left_out"] == 0
    for process in ("PostgreSQL, its largest process", "Redis", "SeaweedFS", "worker answer, its child"):
        row = rows[f"memory, {process}"]
        assert row["ours"] > 1 and row["unit"] == "MiB"


@pytest.fixture
def typed_here(shell: Terminal, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """`ragllava` in this process, which has loaded torch: a process of its own would need seconds for that."""
    for name, value in {"RAGLLAVA_HOME": str(shell.home), "OMP_WAIT_POLICY": "PASSIVE"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(tempfile, "tempdir", str(shell.folder))
    monkeypatch.chdir(shell.folder)
    return runner(monkeypatch, capsys)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("--only", "rerank,speed"), "there is no group of rows 'speed'; there are: rerank, "),
        (("--shape", "llava-9t"), "there is no shape 'llava-9t'; there are: llava-35m"),
        (("--chart", "chart.png"), "chart.png: the chart is a picture whose name must end in .svg"),
        (("--chart", "nowhere/chart.svg"), "nowhere/chart.svg cannot be written: there is no folder nowhere"),
    ],
)
def test_a_wrong_call_is_refused_before_anything_starts(
    shell: Terminal, typed_here: Run, words: tuple[str, ...], sentence: str
) -> None:
    code, _, err = typed_here("bench", *words)
    assert code == 1 and sentence in err
    assert_nothing_is_left(shell)


def test_services_of_others_are_never_used(shell: Terminal, typed_here: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAGLLAVA_DATABASE_URL", "postgresql://one:two@127.0.0.1:1/three")
    code, _, err = typed_here("bench", "--only", "search")
    assert code == 1 and "unset RAGLLAVA_DATABASE_URL" in err
    assert_nothing_is_left(shell)
