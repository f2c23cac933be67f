"""`ragllava reindex`, `ragllava index …` and `ragllava archive gaps` on a real archive."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ragllava.jobs import figures
from ragllava.source_files import SourceFile
from ragllava.stages.ingest.uris import file_uri
from ragllava.stores.archives import vectors
from ragllava.stores.database import in_transaction
from ragllava.stores.maintenance import notices
from ragllava.stores.maintenance.notices import NoticeEvent
from tests.integration.conftest import Postcards
from tests.support.maintenance_tasks import do
from tests.support.retriever_folders import write_retriever
from tests.support.run_command import Run
from tests.support.workshop import ARCHIVE, Workshop


@pytest.fixture
def gallery(workshop: Workshop, postcards: Postcards) -> Workshop:
    workshop.ingest_files(
        [
            SourceFile(card.file_name, file_uri(postcards.written.pictures / card.file_name), card.caption)
            for card in postcards.archive.postcards[:6]
        ]
    )
    return workshop


def test_an_archive_is_reindexed_shown_and_switched_back(gallery: Workshop, run: Run, tmp_path: Path) -> None:
    write_retriever(tmp_path / "other", noise=0.02)
    words = ("reindex", "--archive", ARCHIVE, "--retriever", str(tmp_path / "other"), "--name", "a better one")
    code, out, _ = run(*words, "--no-wait")
    assert (code, out) == (0, "job 2 queued: 6 images and the gate; `ragllava jobs show 2` shows its progress\n")
    assert "a better one" in run("jobs", "list")[1]
    gallery.run()
    _, out, _ = run("jobs", "show", "2")
    assert out.startswith(
        "job 2 completed: 6 images and the gate: 6 embedded, 1 switched\n"
        "index 2 switched: 6 of 6 images have their vector; the archive has no answered question, so answers were "
        "not compared"
    )
    _, out, _ = run("index", "list", "--archive", ARCHIVE)
    titles, old, new = (line.split() for line in out.splitlines())
    assert titles[:7] == ["index", "archive", "retriever", "state", "images", "search", "gate"]
    assert (old[0], old[3:7]) == ("1", ["retired", "6", "exact", "-"])
    assert (new[0], new[3:7]) == ("2", ["active", "6", "exact", "passed"])
    _, out, _ = run("index", "show", "2")
    assert "gate passed in job 2: 6 of 6 images" in out

    code, out, _ = run("index", "switch", "1", "--no-wait")
    assert (code, out.splitlines()[0]) == (0, f"index 1 of {ARCHIVE} lacks nothing: job 3 counts and switches")
    gallery.run()
    _, out, _ = run("index", "list", "--json")
    assert [details["index"]["state"] for details in json.loads(out)] == ["active", "retired"]
    assert run("index", "drop", "2")[:2] == (0, f"index 2 of {ARCHIVE} is deleted, with its 6 vectors\n")
    assert run("index", "drop", "2")[2] == "ragllava: there is no index 2; `ragllava index list` shows all\n"


def test_gaps_are_listed_and_closed(gallery: Workshop, run: Run) -> None:
    assert run("archive", "gaps", ARCHIVE)[:2] == (0, f"{ARCHIVE}: every image has its vector\n")
    source, row = next(iter(gallery.images().items()))
    with gallery.engine.begin() as connection:
        vectors.remove_embeddings(connection, gallery.archive_id(), [row.id])
    [gap] = json.loads(run("archive", "gaps", ARCHIVE, "--json")[1])
    assert (gap["image_id"], gap["source"], gap["reason"]) == (row.id, source, "never_tried")
    do(gallery, "gaps")  # of all archives: each has a notice of its own, as rules name archives
    assert gaps_in_metrics(gallery) == {"never_tried": 1}
    new = in_transaction(gallery.engine, notices.new_notices, 10)
    [told] = [notice for notice in new if notice.event is NoticeEvent.GAP_FOUND]
    assert (told.archive, told.facts) == (ARCHIVE, {"gaps": {ARCHIVE: {"never_tried": 1}}})
    assert "no job has tried to embed it" in run("archive", "gaps", ARCHIVE)[1]
    _, out, _ = run("reindex", "--archive", ARCHIVE, "--no-wait", "--json")
    assert json.loads(out)["reindexing"]["selection"] == "missing"
    gallery.run()
    assert run("archive", "gaps", ARCHIVE)[1] == f"{ARCHIVE}: every image has its vector\n"
    do(gallery, "gaps")
    assert gaps_in_metrics(gallery) == {}


def gaps_in_metrics(gallery: Workshop) -> dict[str, float]:
    """The gaps that the metrics show, without zeros."""
    with gallery.engine.begin() as connection:
        [gaps] = [
            reading for reading in figures.read(connection, gallery.settings) if reading.metric.name == "ragllava_gaps"
        ]
    assert gaps.samples, "absent before the first task only"
    return {sample.labels[0]: sample.number for sample in gaps.samples if sample.number}


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--retriever", "nonsense"], "'nonsense' is not a retriever: give a folder, or MODEL/TAG"),
        (["--retriever", "."], "not the folder of an open_clip model"),
        (["--retriever", "ViT-B-32/openai", "--only", "stale"], "with another retriever use --only all"),
    ],
)
def test_what_cannot_be_reindexed_is_told_at_once(gallery: Workshop, run: Run, words: list[str], says: str) -> None:
    code, out, err = run("reindex", "--archive", ARCHIVE, *words)
    assert (code, out) == (1, "")
    assert says in err and err.count("\n") == 1
