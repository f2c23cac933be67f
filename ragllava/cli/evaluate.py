"""`ragllava eval`: figures like the paper's on a data set whose right answers are known."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ragllava.cli.options import json_option, print_json

if TYPE_CHECKING:
    from rich.console import Console

    from ragllava.evaluation.dataset_records import EvaluationSet
    from ragllava.evaluation.evaluate import Evaluation
    from ragllava.evaluation.pools import Workbench
    from ragllava.settings import Settings

# Each data set with the split that is reported where nothing else is said.
SPLITS = {"postcards": "test", "webqa": "val", "multimodalqa": "dev", "flickr30k": "test", "coco": "test"}
CALIBRATION_SEED_OFFSET = 1000  # to the seed of the postcards that the threshold is fitted on

FOLDER = click.Path(path_type=Path)  # whether it is there is said by the loader
SHARE = click.FloatRange(0, 1)


@click.command("eval")
@click.argument("dataset", type=click.Choice(list(SPLITS)))
@click.option("--data", type=FOLDER, help="The folder with the data set's files; postcards are drawn.")
@click.option("--split", help="The split to report.  [default: test; of webqa val, of multimodalqa dev]")
@click.option("--calibration", metavar="SPLIT", help="Fit the adaptive threshold on this other split.")
@click.option("--seed", default=1, show_default=True, help="Draws the postcards, and the wrong evidence.")
@click.option(
    "--noise",
    type=SHARE,
    multiple=True,
    metavar="SHARE",
    help="Answer with this share of the labelled images wrong; may be repeated.  [default: 0.2 and 0.5]",
)
@click.option(
    "--oracle/--no-oracle",
    default=True,
    show_default=True,
    help="Answer from the labelled images as well, with and without wrong ones.",
)
@click.option("--no-caption", is_flag=True, help="Add a row in which neither reranker nor generator sees a caption.")
@click.option(
    "--rerank",
    type=click.Choice(["on", "off"]),
    default="on",
    show_default=True,
    help="Off: answer from what CLIP ranks first.",
)
@click.option("--limit", type=click.IntRange(1), help="Ask only the first so many questions; the pool stays whole.")
@json_option
def evaluate(
    *,
    dataset: str,
    data: Path | None,
    split: str | None,
    calibration: str | None,
    seed: int,
    noise: tuple[float, ...],
    oracle: bool,
    no_caption: bool,
    rerank: str,
    limit: int | None,
    as_json: bool,
) -> None:
    """Measure retrieval, reranking and answers on a data set, in a table like the paper's.

    Runs in this process, through the same stages as jobs, on the services that run or on its own. The pictures go
    into an archive named eval-…, where the next evaluation finds them again.

    The adaptive threshold is fitted on other questions than the reported ones: on postcards of another seed, or on the
    split that --calibration names. Without one, the reranker's own threshold is applied.
    """
    from rich.console import Console

    from ragllava.evaluation.evaluate import evaluate as run
    from ragllava.evaluation.runs import DEFAULT_NOISE, RunOptions
    from ragllava.settings import load_settings

    settings = load_settings()
    reported = load(dataset, data, split or SPLITS[dataset], seed, limit)
    other = None
    if rerank == "on" and dataset == "postcards" and calibration is None:
        other = load(dataset, data, reported.split, seed + CALIBRATION_SEED_OFFSET, limit)
    elif rerank == "on" and calibration is not None:
        other = load(dataset, data, calibration, seed, limit)
    options = RunOptions(seed, None, rerank == "on", no_caption, oracle, noise or DEFAULT_NOISE)
    with workbench(settings, Console(stderr=True, highlight=False)) as bench:
        found = run(reported, other, bench, options)
    if as_json:
        print_json({"seed": seed, "limit": limit, **found.as_json(), "versions": versions(), "cores": os.cpu_count()})
    else:
        click.echo(as_text(found))


def load(name: str, data: Path | None, split: str, seed: int, limit: int | None) -> EvaluationSet:
    """The set with its first `limit` questions."""
    from ragllava.evaluation.datasets import load_dataset

    dataset = load_dataset(name, data, split, seed=seed)
    return dataset if limit is None else replace(dataset, questions=dataset.questions[:limit])


@contextmanager
def workbench(settings: Settings, console: Console) -> Iterator[Workbench]:
    """Services, a migrated database and the models for the length of a block, with progress on the console."""
    import migrations
    from ragllava.cli.progress import bars
    from ragllava.evaluation.pools import Workbench
    from ragllava.local.services import running_services
    from ragllava.stages.resources import Resources
    from ragllava.stores.database import make_engine

    with running_services(settings) as running, closing(Resources(running)) as resources, bars(console) as progress:
        migrations.upgrade(running.require_database())
        tasks: dict[str, Any] = {}

        def show(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = progress.add_task(what, total=total, note="")
            progress.update(tasks[what], completed=done, total=total)

        engine = make_engine(running.require_database(), name="ragllava eval")
        try:
            yield Workbench(engine, running, resources, show)
        finally:
            engine.dispose()


def as_text(found: Evaluation) -> str:
    """What was measured with what, then the tables."""
    dataset, threshold = found.dataset, found.threshold
    lines = [
        f"{dataset.name}, split {dataset.split}: {len(dataset.questions)} questions to {len(dataset.images)} images, "
        f"archive {found.pool.archive_name}",
        f"{found.top_k} candidates for each question, at most {found.top_n} kept; shares in percent",
        *(f"{role}: {maker}" for role, maker in found.models.items()),
    ]
    if found.pool.left_out:
        lines.append(f"{len(found.pool.left_out)} images could not be read, the first is {found.pool.left_out[0]}")
    if threshold is not None:
        lines.append(f"adaptive η {threshold.value:.3f}, {threshold.source}")
    steps = ", ".join(f"{step.replace('_', ' ')} {seconds:.0f} s" for step, seconds in found.seconds.items())
    return "\n".join([*lines, "", found.figures.as_text(), steps])


def versions() -> dict[str, str]:
    """Of what the figures may depend on."""
    names = ("ragllava", "torch", "transformers", "open_clip_torch", "pillow", "numpy", "pgvector")
    return {"python": platform.python_version(), **{name: version(name) for name in names}}
