"""`ragllava eval`: figures like the paper's on a data set whose right answers are known."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ragllava.cli.options import NumberRange, json_option, print_json
from ragllava.errors import UsageError

if TYPE_CHECKING:
    from rich.console import Console

    from ragllava.evaluation.evaluate import Evaluation, Promise
    from ragllava.evaluation.pools import Workbench
    from ragllava.settings import Settings

# Each data set with the split that is reported where nothing else is said.
SPLITS = {"postcards": "test", "webqa": "val", "multimodalqa": "dev", "flickr30k": "test", "coco": "test"}
CALIBRATION_SEED_OFFSET = 1000  # to the seed of the postcards that the threshold is fitted on

FEWEST_CALIBRATION = 300  # questions that the threshold is fitted on, if there are so many, however few are reported

FOLDER = click.Path(path_type=Path)  # whether it is there is said by the loader
SHARE = NumberRange(0, 1)


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
@click.option(
    "--no-caption/--with-caption",
    "no_caption",
    default=None,
    help="Add a row in which neither reranker nor generator sees a caption, or not.  [default: for postcards only]",
)
@click.option(
    "--rerank",
    type=click.Choice(["on", "off"]),
    default="on",
    show_default=True,
    help="Off: answer from what CLIP ranks first.",
)
@click.option(
    "--untuned",
    metavar="PROFILE",
    help="Add a row reranked by this other profile's model.  [default: the champion's base, if it has an adapter]",
)
@click.option(
    "--promised-precision",
    type=NumberRange(0, 1, min_open=True, max_open=True),
    metavar="SHARE",
    help="Add the threshold that promises this precision, 0.95 say, and what it reaches.",
)
@click.option("--limit", type=click.IntRange(1), help="Report only the first so many questions; the pool stays whole.")
@click.option("--images", type=click.IntRange(10), help="Draw so many postcards.  [default: 1000]")
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
    no_caption: bool | None,
    rerank: str,
    untuned: str | None,
    promised_precision: float | None,
    limit: int | None,
    images: int | None,
    as_json: bool,
) -> None:
    """Measure retrieval, reranking and answers on a data set, in a table like the paper's.

    Runs in this process, through the same stages as jobs, on the services that run or on its own. The pictures go
    into an archive named eval-…, where the next evaluation finds them again.

    The adaptive threshold is fitted on other questions than the reported ones: on postcards of another seed, or on the
    split that --calibration names. Without one, or where they are too few, the reranker's own threshold is applied.
    """
    from rich.console import Console

    from ragllava.evaluation.datasets.load import load_dataset
    from ragllava.evaluation.evaluate import evaluate as run
    from ragllava.evaluation.runs import DEFAULT_NOISE, RunOptions
    from ragllava.settings import load_settings

    reranked = rerank == "on"
    if not reranked:
        refuse_without_reranking(
            {"--untuned": untuned, "--promised-precision": promised_precision, "--calibration": calibration}
        )
    if noise and not oracle:
        raise UsageError("--noise swaps labelled images for wrong ones; leave --no-oracle out")
    settings = load_settings()
    reported = load_dataset(dataset, data, split or SPLITS[dataset], seed=seed, images=images)
    other = None
    if reranked and dataset == "postcards" and calibration is None:
        other = load_dataset(dataset, data, reported.split, seed=seed + CALIBRATION_SEED_OFFSET, images=images)
    elif calibration is not None:
        other = load_dataset(dataset, data, calibration, seed=seed, images=images)
    blind = reranked and dataset == "postcards" if no_caption is None else no_caption
    if limit is not None:
        reported = replace(reported, questions=reported.questions[:limit])
        # A few questions fit no threshold, and all of a large split would take far longer than what is reported.
        other = other and replace(other, questions=other.questions[: max(limit, FEWEST_CALIBRATION)])
    options = RunOptions(seed, None, reranked, blind, oracle, noise or DEFAULT_NOISE, promised_precision)
    with workbench(settings, Console(stderr=True, highlight=False), untuned) as bench:
        found = run(reported, other, bench, options)
    if as_json:
        print_json({"seed": seed, "limit": limit, **found.as_json(), "versions": versions(), "cores": os.cpu_count()})
    else:
        click.echo(as_text(found))


def refuse_without_reranking(given: Mapping[str, object]) -> None:
    """Raise UsageError if an option is given (not None) that says nothing where CLIP alone ranks."""
    first = next((option for option, value in given.items() if value is not None), None)
    if first is not None:
        raise UsageError(f"{first} is about reranking; leave it or --rerank off out")


@contextmanager
def workbench(settings: Settings, console: Console, untuned: str | None) -> Iterator[Workbench]:
    """Services, a migrated database and the models for the length of a block, with progress on the console.

    `untuned` is the profile of another reranker to measure.
    """
    import migrations
    from ragllava.cli.progress import bars
    from ragllava.evaluation.pools import Workbench
    from ragllava.local.services import running_services
    from ragllava.stages.resources import Resources
    from ragllava.stores.database import make_engine

    with ExitStack() as stack:
        running = stack.enter_context(running_services(settings))
        resources = stack.enter_context(closing(Resources(running)))
        other = None
        if untuned is not None:
            here = running.model_copy(update={"profile": untuned, "vllm_url": None})  # an endpoint has one base
            other = stack.enter_context(closing(Resources(here)))
        progress = stack.enter_context(bars(console))
        migrations.upgrade(running.require_database())
        tasks: dict[str, Any] = {}

        def show(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = progress.add_task(what, total=total, note="")
            progress.update(tasks[what], completed=done, total=total)

        engine = make_engine(running.require_database(), name="ragllava eval")
        stack.callback(engine.dispose)
        yield Workbench(engine, running, resources, show, other)


def as_text(found: Evaluation) -> str:
    """What was measured with what, then the tables."""
    dataset, threshold = found.dataset, found.threshold
    lines = [
        f"{dataset.name}, split {dataset.split}: {len(dataset.questions)} questions to {len(dataset.images)} images, "
        f"archive {found.pool.archive_name}",
        f"{found.top_k} candidates for each question, at most {found.top_n} kept; shares in percent",
        *(f"{role.replace('_', ' ')}: {maker}" for role, maker in found.models.items()),
    ]
    if found.pool.left_out:
        lines.append(f"{len(found.pool.left_out)} images could not be read, the first is {found.pool.left_out[0]}")
    if threshold is not None:
        lines.append(f"adaptive η {threshold.value:.3f}, {threshold.source}")
    if found.promise is not None:
        lines.append(promise_line(found.promise))
    steps = ", ".join(f"{step.replace('_', ' ')} {seconds:.0f} s" for step, seconds in found.seconds.items())
    return "\n".join([*lines, "", found.figures.as_text(), steps])


def promise_line(promise: Promise) -> str:
    """What was promised and what was reached, each with its bound."""
    threshold = promise.threshold
    return (
        f"{threshold.name}: η {threshold.value:.3f}, {threshold.source}; reached here {promise.reached:.3f} "
        f"({promise.hits} of {promise.kept} kept candidates), {promise.at_least:.3f} at the least"
    )


def versions() -> dict[str, str]:
    """Of what the figures may depend on."""
    names = ("ragllava", "torch", "transformers", "open_clip_torch", "pillow", "numpy", "pgvector")
    return {"python": platform.python_version(), **{name: version(name) for name in names}}
