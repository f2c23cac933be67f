"""Adapters in the object store, and champions that change while a job runs; with the mini models."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from threading import Barrier

import pytest

from ragllava.errors import JobRefused, ModelUnavailable, ServiceUnavailable
from ragllava.jobs.states import JobState
from ragllava.models.bundle import ModelBundle
from ragllava.models.checks import digest
from ragllava.records import AnswerStatus, Role
from ragllava.settings import Settings
from ragllava.stages.champions import apply_champions, fetch_adapter, publish_adapter
from ragllava.stages.results.results import ResultRow
from ragllava.stores.learning import registry
from ragllava.stores.objects import ObjectStore
from tests.integration.conftest import Postcards
from tests.support.random_adapters import promote_random_adapter
from tests.support.workshop import PAPER, Workshop

WEIGHTS = "adapter_model.safetensors"


@pytest.fixture
def objects(settings: Settings) -> ObjectStore:
    return ObjectStore(settings)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A small adapter folder; only its form is right."""
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / WEIGHTS).write_bytes(bytes(range(256)) * 40)
    (adapter / "adapter_config.json").write_text('{"peft_type": "LORA", "r": 2}')
    return adapter


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


# In the object store


def test_an_adapter_comes_back_as_it_was_published(objects: ObjectStore, folder: Path, cache: Path) -> None:
    files = publish_adapter(objects, folder)
    fetched = fetch_adapter(objects, digest(files), cache)
    assert set(files) == {WEIGHTS, "adapter_config.json"}
    assert all((fetched / name).read_bytes() == (folder / name).read_bytes() for name in files)
    stored = [info.key for info in objects.list_objects(f"adapters/{digest(files)}/")]
    assert [Path(key).name for key in stored] == ["adapter_config.json", WEIGHTS, "manifest.json"]
    lines = json.loads((fetched / "manifest.json").read_text())["files"]
    assert {line["name"]: (line["sha256"], line["size_bytes"]) for line in lines} == {
        name: (sha256, (folder / name).stat().st_size) for name, sha256 in files.items()
    }


def test_a_fetched_adapter_is_not_fetched_again(objects: ObjectStore, folder: Path, cache: Path) -> None:
    name = digest(publish_adapter(objects, folder))
    first = fetch_adapter(objects, name, cache)
    objects.remove_prefix("adapters/")
    assert fetch_adapter(objects, name, cache) == first


@pytest.mark.parametrize("damage", ["changed", "lost", "no manifest"])
def test_a_damaged_copy_is_fetched_anew(objects: ObjectStore, folder: Path, cache: Path, damage: str) -> None:
    name = digest(publish_adapter(objects, folder))
    copy = fetch_adapter(objects, name, cache)
    victim = copy / ("manifest.json" if damage == "no manifest" else WEIGHTS)
    victim.unlink()
    if damage == "changed":
        victim.write_bytes(b"other bytes")
    again = fetch_adapter(objects, name, cache)
    assert (again / WEIGHTS).read_bytes() == (folder / WEIGHTS).read_bytes()


@pytest.mark.parametrize("damage", ["weights", "manifest", "other manifest"])
def test_what_was_damaged_in_the_store_is_refused(objects: ObjectStore, folder: Path, cache: Path, damage: str) -> None:
    name = digest(publish_adapter(objects, folder))
    if damage == "weights":
        objects.put(f"adapters/{name}/{WEIGHTS}", b"other bytes")
    elif damage == "manifest":
        objects.put(f"adapters/{name}/manifest.json", b"[]")
    else:
        lines = [{"name": "../../outside", "size_bytes": 1, "sha256": "ab" * 32}]
        objects.put(f"adapters/{name}/manifest.json", json.dumps({"files": lines}).encode())
    with pytest.raises(ModelUnavailable):
        fetch_adapter(objects, name, cache)
    assert list((cache / "adapters").iterdir()) == [], "nothing half is left behind"


def test_an_upload_that_was_cut_short_is_no_adapter_until_it_is_repeated(
    objects: ObjectStore, folder: Path, cache: Path
) -> None:
    name = digest(publish_adapter(objects, folder))
    objects.delete(f"adapters/{name}/manifest.json")
    objects.delete(f"adapters/{name}/{WEIGHTS}")
    with pytest.raises(ModelUnavailable, match="is incomplete"):
        fetch_adapter(objects, name, cache)
    assert digest(publish_adapter(objects, folder)) == name
    assert (fetch_adapter(objects, name, cache) / WEIGHTS).exists()


def test_many_may_fetch_at_once(objects: ObjectStore, folder: Path, cache: Path) -> None:
    """Threads have one process number, and so may processes of two containers that share the cache."""
    name = digest(publish_adapter(objects, folder))
    begin = Barrier(4)

    def fetch() -> Path:
        begin.wait(30)
        return fetch_adapter(objects, name, cache)

    with ThreadPoolExecutor(4) as pool:
        fetched = [future.result() for future in [pool.submit(fetch) for _ in range(4)]]
    assert set(fetched) == {cache / "adapters" / name}
    assert [path.name for path in (cache / "adapters").iterdir()] == [name]


def test_what_no_worker_would_load_is_not_published(objects: ObjectStore, folder: Path) -> None:
    (folder / "training_args.bin").write_bytes(b"a pickle")
    with pytest.raises(ModelUnavailable, match=r"training_args\.bin"):
        publish_adapter(objects, folder)
    assert list(objects.list_objects("adapters/")) == []


def test_a_store_that_is_away_is_worth_a_retry(settings: Settings, cache: Path) -> None:
    nowhere = ObjectStore(settings.model_copy(update={"s3_endpoint": "127.0.0.1:9", "s3_socket": None}))
    with pytest.raises(ServiceUnavailable):
        fetch_adapter(nowhere, "ab" * 32, cache)


# Champions


@pytest.fixture
def stage(workshop: Workshop, postcards: Postcards, models: ModelBundle, tmp_path: Path) -> Iterator[Workshop]:
    """A worker with an archive of six postcards, in a home of its own; the bare models are champions."""
    # No shard is split, however long the first one takes, for which the models are loaded.
    desk = workshop.with_settings(questions_per_shard=2, shard_seconds=3_600.0, home=tmp_path / "home")
    few = tmp_path / "few"
    few.mkdir()
    for path in sorted(postcards.written.pictures.glob("*.png"))[:6]:
        shutil.copy(path, few)
    desk.ingest(few, captions=postcards.written.captions)
    with desk.engine.begin() as connection:
        registry.ensure_champions(connection, "mini", desk.resources.base_versions())
    yield desk
    for role in Role:
        models.apply_adapter(role, None, None)


def stamps(rows: list[ResultRow]) -> list[tuple[str, str, float]]:
    return [(row.models["reranker"], row.models["generator"], row.models["threshold"]) for row in rows if row.models]


def relevances(row: ResultRow) -> dict[int, float]:
    """Of all candidates, which must have been reranked."""
    by_image = {c.image.image_id: c.relevance for c in row.candidates if c.relevance is not None}
    assert len(by_image) == len(row.candidates) > 0
    return by_image


def test_a_new_champion_is_taken_up_between_shards_and_given_back(stage: Workshop, postcards: Postcards) -> None:
    base = stage.resources.models.base_version
    threshold = stage.resources.models.profile.threshold
    text = postcards.archive.questions[0].text
    job = stage.submit([text] * 8, **PAPER)
    stage.run_once()
    promote_random_adapter(stage, Role.RERANKER, "ranker-1", seed=1)
    stage.run_once()
    promote_random_adapter(stage, Role.GENERATOR, "writer-1", seed=2)
    stage.run_once()
    with stage.engine.begin() as connection:
        registry.rollback(connection, "mini", Role.RERANKER)
    stage.run_once()
    rows = stage.rows(job.job_id)
    assert stage.job(job.job_id).state is JobState.COMPLETED
    assert stamps(rows) == [
        *[(base, base, threshold)] * 2,
        *[("ranker-1", base, 0.001)] * 2,
        *[("ranker-1", "writer-1", 0.001)] * 2,
        *[(base, "writer-1", threshold)] * 2,
    ]
    # The stamp says which weights computed: same versions, same numbers; other versions, other numbers.
    before, tuned, tuned_too, after = (relevances(rows[number]) for number in (0, 2, 4, 6))
    # By ratio: of so sure a reranker most relevances are close to 0.
    assert before == pytest.approx(after, rel=1e-3)
    assert tuned == pytest.approx(tuned_too, rel=1e-3)
    assert tuned != pytest.approx(before, rel=1e-2)


def test_a_worker_with_another_base_refuses_the_job_and_says_what_to_do(stage: Workshop, postcards: Postcards) -> None:
    promote_random_adapter(stage, Role.RERANKER, "ranker-1", seed=1, base="mini-llava@00000000")
    [row] = stage.ask([postcards.archive.questions[0].text])
    base = stage.resources.models.base_version
    assert (row.status, row.models) == (AnswerStatus.FAILED, None)
    assert row.error == (
        f"the champion reranker ranker-1 needs the base mini-llava@00000000, but this worker has loaded {base}; "
        f"go back with `ragllava models rollback --role reranker`, or make the loaded base champion with "
        f"`ragllava models promote {base} --role reranker`"
    )
    with stage.engine.begin() as connection:
        registry.promote(connection, "mini", Role.RERANKER, base, "as the message says")
    [row] = stage.ask([postcards.archive.questions[0].text])
    assert row.models is not None and row.models["reranker"] == base


def test_an_adapter_that_is_lost_refuses_the_job(stage: Workshop, postcards: Postcards) -> None:
    promote_random_adapter(stage, Role.GENERATOR, "writer-1", seed=2)
    stage.resources.objects.remove_prefix("adapters/")
    [row] = stage.ask([postcards.archive.questions[0].text])
    assert row.status is AnswerStatus.FAILED and row.error is not None
    assert row.error.startswith("the champion generator cannot be used: the adapter ")
    assert row.error.endswith("go back with `ragllava models rollback --role generator`")


def test_an_adapter_that_does_not_fit_is_refused(stage: Workshop) -> None:
    version = promote_random_adapter(stage, Role.GENERATOR, "writer-1", seed=2)
    folder = stage.settings.home / "writer-1"
    (folder / WEIGHTS).write_bytes(b"short")
    misfit = replace(version, adapter_sha256=digest(publish_adapter(stage.resources.objects, folder)))
    with pytest.raises(JobRefused, match=r"the champion generator cannot be used: .* does not fit"):
        apply_champions(stage.resources, {Role.GENERATOR: misfit})
