"""`ragllava eval`: the paper's figures on a data set with known answers."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ragllava.cli.options import NumberRange, json_option, package_versions, print_result, refuse_given
from ragllava.cli.terminal import make_console
from ragllava.errors import UsageError
from ragllava.postcards.questions import QuestionStyle
from ragllava.records import Depth

if TYPE_CHECKING:
    from rich.console import Console

    from ragllava.evaluation.datasets.records import EvaluationSet
    from ragllava.evaluation.evaluate import Evaluation, Promise
    from ragllava.evaluation.pools import Workbench
    from ragllava.evaluation.scoring import Metric
    from ragllava.settings import Settings

# The split of each data set that is reported by default.
SPLITS = {"postcards": "test", "webqa": "val", "multimodalqa": "dev", "flickr30k": "test", "coco": "test"}
CALIBRATION_SEED_OFFSET = 1000  # added to the seed, for the postcards that the threshold is fitted on
DEFAULT_STYLES = (QuestionStyle.CUES, QuestionStyle.NAME)
FEWEST_CALIBRATION = 300  # questions that the threshold is fitted on, if there are so many, however few are reported


@click.command("eval")
@click.argument("dataset", type=click.Choice(list(SPLITS)))
@click.option(
    "--data",
    type=click.Path(path_type=Path),
    help="The folder with the data set's files; not for postcards, which are drawn.",
)
@click.option("--split", help="The split to report.  [default: test; of webqa val, of multimodalqa dev]")
@click.option("--calibration", metavar="SPLIT", help="Fit the adaptive threshold on this other split.")
@click.option("--seed", default=1, show_default=True, help="The seed of the postcards and of the wrong evidence.")
@click.option(
    "--noise",
    type=NumberRange(0, 1),
    multiple=True,
    metavar="SHARE",
    help="Replace this share of the labelled images by wrong ones; may be repeated.  [default: 0.2 and 0.5]",
)
@click.option(
    "--oracle/--no-oracle",
    default=True,
    show_default=True,
    help="Also answer from the labelled images, with and without wrong ones.",
)
@click.option(
    "--no-caption/--with-caption",
    "no_caption",
    default=None,
    help="Add a row without captions for reranker and generator.  [default: for postcards only]",
)
@click.option(
    "--rerank",
    type=click.Choice(["on", "off"]),
    default="on",
    show_default=True,
    help="Off: answer from the candidates that the retriever ranks first.",
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
    help="Add a threshold fitted for this precision, such as 0.95, and the precision that it reaches.",
)
@click.option(
    "--limit",
    type=click.IntRange(1),
    help="Report only so many questions, the first ones; the pool of images stays complete.",
)
@click.option("--images", type=click.IntRange(10), help="The number of postcards to draw.  [default: 1000]")
@click.option(
    "--style",
    "styles",
    type=click.Choice([*(style.value for style in QuestionStyle), "all"]),
    multiple=True,
    help="How questions about postcards name what they ask about; may be repeated. All rows are of the first style; of "
    "the others, the ways of retrieval are compared.  [default: cues and name]",
)
@click.option(
    "--depth",
    type=click.Choice([depth.value for depth in Depth]),
    default=Depth.NEED.value,
    show_default=True,
    help="How many of the candidates of hybrid retrieval are reranked: as many as needed, or all.",
)
@click.option(
    "--paper/--no-paper",
    default=None,
    help="Add rows of the paper's set-up: no captions for the generator, the question alone as its prompt, labelled "
    "images exchanged for one another.  [default: for webqa and multimodalqa]",
)
@click.option(
    "--metric",
    type=click.Choice(["ours", "official"]),
    default="ours",
    show_default=True,
    help="What scores the answers to WebQA and MultimodalQA; of WebQA, the official measure needs the extra `webqa`.",
)
@click.option(
    "--answers",
    "given",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Only score the answers in this table, as WebQA's public baseline has it. No model runs.",
)
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
    styles: tuple[str, ...],
    depth: str,
    paper: bool | None,
    metric: str,
    given: Path | None,
    as_json: bool,
) -> None:
    """Measure retrieval, reranking and answers on a data set, in a table like the paper's.

    Runs in this process, through the same stages as jobs, on the services that run or on its own. The pictures are
    stored in an archive named eval-…, which the next evaluation uses again.

    The rows are those of the paper's set-up, in which the nearest pictures are candidates and all of them are reranked.
    Where images have captions, rows of hybrid retrieval, as jobs use it, stand beside them.

    The adaptive threshold is fitted on other questions than the reported ones: on postcards of another seed, in the
    same styles, or on the split that --calibration names. Without these, or with too few questions, the reranker's own
    threshold is used.
    """
    from ragllava.evaluation.datasets.load import POSTCARDS
    from ragllava.evaluation.evaluate import evaluate as run
    from ragllava.evaluation.runs import DEFAULT_NOISE, RunOptions
    from ragllava.evaluation.scoring import Metric
    from ragllava.settings import load_settings

    if given is not None:
        _print_given(dataset, given, Metric(metric), as_json)
        return
    reranked = rerank == "on"
    _refuse_without_effect(
        reranked, oracle, noise, untuned=untuned, promised_precision=promised_precision, calibration=calibration
    )
    settings = load_settings()
    source = _Source(dataset, data, seed, images, _styles(dataset, styles))
    reported, *other_styles = source.load(split or SPLITS[dataset])
    fitted_on = source.calibration(reported, calibration) if reranked else None
    if limit is not None:
        reported, *other_styles = (_first(questions, limit) for questions in (reported, *other_styles))
        # A few questions fit no threshold; all of a large split would take far longer than the reported ones.
        fitted_on = None if fitted_on is None else _first(fitted_on, max(limit, FEWEST_CALIBRATION))
    options = RunOptions(
        seed,
        reranked,
        reranked and dataset == POSTCARDS if no_caption is None else no_caption,
        oracle,
        noise or DEFAULT_NOISE,
        promised_precision,
        Depth(depth),
        metric=Metric(metric),
        paper=dataset in ("webqa", "multimodalqa") if paper is None else paper,
    )
    with workbench(settings, make_console(stderr=True, highlight=False), untuned) as bench:
        evaluation = run(reported, fitted_on, bench, options, other_styles)
    run_facts = {"versions": package_versions(), "cores": os.cpu_count()}
    print_result({"seed": seed, "limit": limit, **evaluation.as_json(), **run_facts}, [as_text(evaluation)], as_json)


@dataclass(frozen=True, slots=True)
class _Source:
    """Where questions come from. Of a data set that is not drawn, only the first style is used."""

    dataset: str
    data: Path | None
    seed: int
    images: int | None
    styles: tuple[QuestionStyle, ...]

    def load(self, split: str, drawn_from: int | None = None) -> list[EvaluationSet]:
        """The split in each style, drawn from the seed."""
        from ragllava.evaluation.datasets.load import load_dataset

        seed = self.seed if drawn_from is None else drawn_from
        return [
            load_dataset(self.dataset, self.data, split, seed=seed, images=self.images, style=style)
            for style in self.styles
        ]

    def calibration(self, reported: EvaluationSet, split: str | None) -> EvaluationSet | None:
        """What the threshold is fitted on: the split that is named, or postcards of another seed."""
        from ragllava.evaluation.datasets.load import POSTCARDS, in_turn

        if split is not None:
            return in_turn(self.load(split))
        if self.dataset == POSTCARDS:
            return in_turn(self.load(reported.split, self.seed + CALIBRATION_SEED_OFFSET))
        return None


def _styles(dataset: str, styles: tuple[str, ...]) -> tuple[QuestionStyle, ...]:
    from ragllava.evaluation.datasets.load import POSTCARDS

    if styles and dataset != POSTCARDS:
        raise UsageError(f"the questions of {dataset} are not drawn; omit --style")
    chosen = tuple(QuestionStyle) if "all" in styles else tuple(map(QuestionStyle, styles)) or DEFAULT_STYLES
    return tuple(dict.fromkeys(chosen)) if dataset == POSTCARDS else chosen[:1]


def _refuse_without_effect(reranked: bool, oracle: bool, noise: tuple[float, ...], **of_reranking: object) -> None:
    if not reranked:
        without_effect = {f"--{name.replace('_', '-')}": value for name, value in of_reranking.items()}
        refuse_given(without_effect, "with --rerank off; leave one of them out")
    if noise and not oracle:
        raise UsageError("--noise replaces labelled images by wrong ones; leave --no-oracle out")


def _first(questions: EvaluationSet, limit: int) -> EvaluationSet:
    return replace(questions, questions=questions.questions[:limit])


def _print_given(dataset: str, path: Path, metric: Metric, as_json: bool) -> None:
    from ragllava.evaluation.given_answers import score_given

    if dataset != "webqa":
        raise UsageError("--answers scores answers to WebQA; for another data set, omit it")
    answers = score_given(path, metric)
    print_result(answers.as_json(), [answers.as_text()], as_json)


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
        untuned_resources = None
        if untuned is not None:
            local = running.model_copy(update={"profile": untuned, "vllm_url": None})  # an endpoint has one base
            untuned_resources = stack.enter_context(closing(Resources(local)))
        progress = stack.enter_context(bars(console))
        migrations.upgrade(running.require_database_owner(), application_url=running.require_database())
        tasks: dict[str, Any] = {}

        def show(step: str, done: int, total: int) -> None:
            if step not in tasks:
                tasks[step] = progress.add_task(step, total=total, note="")
            progress.update(tasks[step], completed=done, total=total)

        engine = make_engine(running.require_database(), name="ragllava eval")
        stack.callback(engine.dispose)
        yield Workbench(engine, running, resources, show, untuned_resources)


def as_text(evaluation: Evaluation) -> str:
    """The data set and the models, then the tables."""
    from ragllava.evaluation.run_figures import style_table

    dataset, threshold = evaluation.dataset, evaluation.threshold
    lines = [
        f"{dataset.name}, split {dataset.split}: {len(dataset.questions)} questions to {len(dataset.images)} images, "
        f"archive {evaluation.pool.archive_name}",
        f"{evaluation.top_k} candidates for each question, at most {dataset.top_n} kept; shares in percent",
        *(f"{role.replace('_', ' ')}: {maker}" for role, maker in evaluation.models.items()),
    ]
    if evaluation.pool.left_out:
        lines.append(
            f"{len(evaluation.pool.left_out)} images could not be read, the first is {evaluation.pool.left_out[0]}"
        )
    if evaluation.measure is not None:
        lines.append(f"measure of answers: {evaluation.measure}")
    if dataset.answers_from is not None:
        lines.append(f"answers are compared with {dataset.answers_from}")
    if threshold is not None:
        lines.append(f"adaptive η {threshold.value:.3f}, {threshold.source}")
    if evaluation.paper_threshold is not None:
        lines.append(f"the paper's η {evaluation.paper_threshold.value:.3f}, {evaluation.paper_threshold.source}")
    if evaluation.hybrid_threshold is not None:
        lines.append(
            f"adaptive η of hybrid candidates {evaluation.hybrid_threshold.value:.3f}, "
            f"{evaluation.hybrid_threshold.source}"
        )
    if evaluation.promise is not None:
        lines.append(promise_line(evaluation.promise))
    steps = ", ".join(f"{step.replace('_', ' ')} {seconds:.0f} s" for step, seconds in evaluation.seconds.items())
    by_style = evaluation.by_style or {dataset.name: evaluation.figures}
    parts = [evaluation.figures.as_text(), f"ways of retrieval\n\n{style_table(by_style)}"]
    if dataset.style:
        parts[0] = f"questions in the style {dataset.style}\n\n{parts[0]}"
    return "\n".join([*lines, "", *parts, steps])


def promise_line(promise: Promise) -> str:
    """The precision that the threshold was fitted for and the one that it reached, each with its bound."""
    threshold = promise.threshold
    return (
        f"{threshold.name}: η {threshold.value:.3f}, {threshold.source}; reached here {promise.reached:.3f} "
        f"({promise.hits} of {promise.kept} kept candidates), {promise.at_least:.3f} at the least"
    )
