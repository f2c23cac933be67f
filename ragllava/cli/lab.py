"""`ragllava ablation`, `ragllava compare-retrieval`, `ragllava measure-gate`, `ragllava simulate-gate` and
`ragllava train-mini`: experiments with the mini models, and their recipe."""

from __future__ import annotations

from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import click

from ragllava.cli.options import NumberRange, json_option, make_table, print_result
from ragllava.cli.terminal import echo, make_console
from ragllava.errors import UsageError

if TYPE_CHECKING:
    from ragllava.lab.ablation.recipe_table import RecipeTable
    from ragllava.lab.ablation.table import Ablation
    from ragllava.lab.gate_trainings.results import SeedResult
    from ragllava.lab.mini_recipe.language import PackCounts
    from ragllava.lab.retrieval_table.run import TableRow

Member = TypeVar("Member", bound=StrEnum)


@click.command()
@click.option("--seeds", default=3, show_default=True, type=click.IntRange(1), help="Repetitions, for the spread.")
@click.option("--steps", type=click.IntRange(4), help="Steps of each training.  [default: 400; with --recipes 200]")
@click.option(
    "--questions", type=click.IntRange(10), help="Questions for each seed.  [default: 150; with --recipes 300]"
)
@click.option(
    "--json", "json_file", metavar="FILE", type=click.Path(path_type=Path), help="Write the figures to this file."
)
@click.option(
    "--folder",
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder of the trainings; an interrupted run resumes from it.  [default: ablation in RAGLLAVA_HOME]",
)
@click.option("--recipes", is_flag=True, help="Instead compare recipes of wrong pictures on the model as included.")
@click.option("--shifted", is_flag=True, help="With --recipes: on postcards unlike those that the model knows.")
def ablation(
    *,
    seeds: int,
    steps: int | None,
    questions: int | None,
    json_file: Path | None,
    folder: Path | None,
    recipes: bool,
    shifted: bool,
) -> None:
    """Compare plain fine-tuning with noise on data level, on token level and on both.

    Needs no services. The mini model is made naive and then fine-tuned on postcards in four ways. Each result answers
    questions about other postcards with 0, 20 and 50 % of the evidence wrong and with a wrong picture added. Takes half
    an hour on two cores.

    With --recipes, the model as included is fine-tuned on labelled questions as `ragllava train generator` does it,
    with wrong pictures beside none, some or all of the right ones. Half of the questions are about two pictures.
    """
    import json

    from ragllava.cli.progress import bar
    from ragllava.lab.ablation.recipes import RECIPES, RecipeOptions, compare_recipes
    from ragllava.lab.ablation.run import AblationOptions, run_ablation
    from ragllava.settings import load_settings

    if shifted and not recipes:
        raise click.UsageError("--shifted needs --recipes")
    settings = load_settings()
    folder = folder or settings.home / "ablation"
    with bar("ablation") as update:

        def show(part: str, done: int, total: int) -> None:
            update(total=total, completed=done, note=f"{part}: done")

        result: RecipeTable | Ablation
        if recipes:
            usual = RecipeOptions()
            wanted = RecipeOptions(seeds, steps or usual.steps, questions=questions or usual.questions, shifted=shifted)
            result = compare_recipes(settings, folder / "recipes", RECIPES, wanted, show)
        else:
            update(note="naive base")
            defaults = AblationOptions()
            options = AblationOptions(seeds, steps or defaults.steps, questions or defaults.questions)
            result = run_ablation(settings, folder, options, show)
    echo(result.as_text())
    if json_file is not None:
        json_file.write_text(json.dumps(result.as_json(), indent=1, ensure_ascii=False), encoding="utf-8")


@click.command("compare-retrieval")
@click.option("--images", default="1000,10000", show_default=True, help="Sizes of the archives.")
@click.option("--seeds", default="1,2,3", show_default=True, help="Each draws its own archives and questions.")
@click.option("--questions", default=150, show_default=True, type=click.IntRange(5), help="Of each style and archive.")
@click.option("--styles", help="Of the questions.  [default: all]")
@click.option("--captions", help="Qualities of the captions.  [default: all]")
@click.option("--answers-up-to", default=10_000, show_default=True, help="Larger archives are only searched.")
@json_option
def compare_retrieval(
    *,
    images: str,
    seeds: str,
    questions: int,
    styles: str | None,
    captions: str | None,
    answers_up_to: int,
    as_json: bool,
) -> None:
    """Compare the ways of finding candidates by kind of question, size of archive and quality of captions.

    For each class: the share of questions of which all pictures are candidates, by picture, by caption and by both; the
    share of right answers from the nearest pictures alone, from all candidates, and from as many as needed; how many
    candidates were reranked. Runs on services of its own, in a temporary home.
    """

    from ragllava.cli.progress import bars
    from ragllava.lab.retrieval_table.archives import CaptionQuality
    from ragllava.lab.retrieval_table.run import TableOptions, compare_on_own_services
    from ragllava.postcards.questions import QuestionStyle
    from ragllava.settings import load_settings

    options = TableOptions(
        tuple(_numbers("--seeds", seeds)),
        tuple(_numbers("--images", images)),
        tuple(_members(QuestionStyle, "--styles", styles)),
        tuple(_members(CaptionQuality, "--captions", captions)),
        questions,
        answers_up_to,
    )
    with bars(make_console(stderr=True, highlight=False)) as progress:
        task = progress.add_task("", total=None, note="")

        def show(step: str, done: int, total: int) -> None:
            progress.update(task, description=step, completed=done, total=total)

        rows = compare_on_own_services(load_settings, options, show)
    table = make_table(_COLUMNS, map(_retrieval_cells, rows))
    print_result([row.as_json() for row in rows], [table], as_json)


_COLUMNS = (
    "images", "captions", "questions", "asked", "found: picture", "caption", "hybrid", "candidates",
    "right: picture", "hybrid", "by need", "pairs", "stopped wrong", "ms: picture", "hybrid", "",
)  # fmt: skip


def _retrieval_cells(row: TableRow) -> tuple[object, ...]:
    values = row.as_json()
    found, right = values["found"].values(), values["right"] or {}
    return (
        f"{row.images:,}", row.captions, row.name, len(row.outcomes), *(f"{share:.3f}" for share in found),
        f"{values['candidates']:.1f}",
        *(f"{right[way]:.3f}" if right else "" for way in ("picture", "hybrid", "hybrid by need")),
        f"{values['pairs_by_need']:.1f}" if right else "", f"{values['stopped_wrong']:.4f}" if right else "",
        f"{row.picture_ms:.1f}", f"{row.hybrid_ms:.1f}", "worse" if row.is_worse else "",
    )  # fmt: skip


def _numbers(option: str, text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise UsageError(f"{option} takes whole numbers with commas between them, not {text!r}") from None


def _members(kind: type[Member], option: str, text: str | None) -> list[Member]:
    if text is None:
        return list(kind)
    names = [name.strip() for name in text.split(",")]
    if unknown := [name for name in names if name not in list(kind)]:
        raise UsageError(f"{option}: there is no {unknown[0]!r}; there are {', '.join(kind)}")
    return [kind(name) for name in names]


@click.command("simulate-gate")
@click.option("--questions", default=52, show_default=True, type=click.IntRange(2), help="Held out.")
@click.option("--pictures", default=30, show_default=True, type=click.IntRange(2), help="That they are about.")
@click.option("--systems", default=200, show_default=True, type=click.IntRange(1), help="Simulated for each row.")
@click.option("--tries", default=30, show_default=True, type=click.IntRange(1), help="Versions tried in each.")
@click.option(
    "--noise", default=1.0, show_default=True, type=NumberRange(min=0), help="Times what differs in every version."
)
@click.option("--seed", default=0, show_default=True, type=click.IntRange(0), help="Draws the systems.")
@json_option
def simulate_gate(
    *, questions: int, pictures: int, systems: int, tries: int, noise: float, seed: int, as_json: bool
) -> None:
    """Measure how often the gate lets equal, worse and better rerankers pass on simulated hold-outs."""
    from ragllava.cli.progress import bar
    from ragllava.lab.gate_simulation import GAINS, HoldOut, PassRates, simulate

    if pictures > questions:
        raise UsageError(f"{questions} questions cannot be about {pictures} pictures, each with a question of its own")
    hold_out = HoldOut(questions, pictures, noise=noise)
    rates: dict[float, PassRates] = {}
    with bar("hold-outs") as update:
        for gain in GAINS:
            update(completed=len(rates), total=len(GAINS), note=f"gain {gain:+.2f}")
            rates[gain] = simulate(systems, tries, hold_out, gain=gain, seed=seed)
    cells = (
        (f"{gain:+.2f}", f"{rate.champion:.3f}", f"{rate.challenger:.3f}", f"{rate.first:.3f}", f"{rate.any:.3f}")
        for gain, rate in rates.items()
    )
    table = make_table(("gain", "champion F1", "challenger F1", "first passes", "any passes"), cells)
    print_result([{"gain": gain, **rate.as_json()} for gain, rate in rates.items()], [table], as_json)


@click.command("measure-gate")
@click.option("--seeds", default=5, show_default=True, type=click.IntRange(1), help="Trainings, each on its own data.")
@click.option(
    "--questions", default=172, show_default=True, type=click.IntRange(40), help="Labelled for each training."
)
@click.option("--pictures", default=150, show_default=True, type=click.IntRange(30), help="Postcards of each archive.")
@click.option(
    "--folder",
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder of the trainings; an interrupted run resumes from it.  [default: gate in RAGLLAVA_HOME]",
)
@json_option
def measure_gate(seeds: int, questions: int, pictures: int, folder: Path | None, as_json: bool) -> None:
    """Measure what the gate says of real trainings, and how good their versions are on fresh questions.

    Needs no services. For each seed, the reranker is trained on labelled questions about a shifted archive, as a train
    job does it, and the gate decides on its held-out questions. Champion and challenger are then measured on fresh
    postcards. A twin, trained on the same data with other random numbers, shows what the gate says of versions of equal
    quality. Takes about five minutes for each seed on one core.
    """
    from ragllava.cli.progress import bar
    from ragllava.lab.gate_trainings.replays import replay_all
    from ragllava.lab.gate_trainings.run import TrainingsOptions, run_trainings
    from ragllava.lab.gate_trainings.situation import SituationSize
    from ragllava.settings import load_settings

    settings = load_settings()
    options = TrainingsOptions(tuple(range(1, seeds + 1)), SituationSize(pictures, questions))
    with bar("trainings") as update:

        def show(part: str, done: int, total: int) -> None:
            update(total=total, completed=done, note=f"{part}: done")

        results = run_trainings(settings, folder or settings.home / "gate", options, show)
    rates = replay_all(results)
    trained = make_table(_TRAINING_COLUMNS, map(_training_cells, results))
    replayed = make_table(
        ("champion → challenger", "hold-outs", "questions", "F1", "", "pass"),
        (
            (name, rate.hold_outs, f"{rate.questions:.0f}", f"{rate.champion:.3f}", f"{rate.challenger:.3f}",
             f"{rate.passed:.3f}")
            for name, rate in rates.items()
        ),
    )  # fmt: skip
    values = {
        "trainings": [result.as_json() for result in results],
        "fresh_hold_outs": {name: rate.as_json() for name, rate in rates.items()},
    }
    print_result(values, [trained, replayed], as_json)


_TRAINING_COLUMNS = (
    "seed", "trained on", "held out", "pictures", "F1", "", "chance", "softened", "", "chance", "gate",
    "fresh: F1", "", "softened", "", "in-domain F1", "",
)  # fmt: skip


def _training_cells(result: SeedResult) -> tuple[object, ...]:
    values = result.as_json()
    first, second = result.primary_figures("challenger")
    fresh = [values["fresh"][version] for version in ("champion", "challenger")]
    report = result.reports["challenger"]
    return (
        result.seed, result.trained_on, first["questions"], first["images"],
        *(cell for row in (first, second) for cell in (
            f"{row['champion']:.3f}", f"{row['challenger']:.3f}", f"{row['chance']:.2g}")),
        "passed" if report["passed"] else "refused",
        *(f"{row[name]:.3f}" for name in ("f1", "softened_f1", "in_domain_f1") for row in fresh),
    )  # fmt: skip


@click.command("train-mini")
@click.argument("folder", type=click.Path(file_okay=False, path_type=Path))
@click.option("--minutes", default=75.0, show_default=True, type=NumberRange(min=0.1), help="Training time.")
@click.option("--from-scratch", is_flag=True, help="Start from random weights, not from the shipped ones.")
@click.option("--only-language", is_flag=True, help="Train the shipped LLaVA's language model; CLIP stays as it is.")
@click.option(
    "--packs",
    default="8,6,0,10",
    show_default=True,
    help="How many packs of prompts a step has: with one picture, with two, with three, and comparisons of names.",
)
@click.option(
    "--precision",
    default="auto",
    show_default=True,
    type=click.Choice(["auto", "float32", "bfloat16"]),
    help="auto: bfloat16 if this processor has instructions for it, else float32.",
)
@click.option("--untuned", is_flag=True, help="Instead make the shipped models unlearn relevance, for eval --untuned.")
def train_mini(
    folder: Path,
    minutes: float,
    from_scratch: bool,
    only_language: bool,
    packs: str,
    precision: str,
    untuned: bool,
) -> None:
    """Train the mini models: draw pictures, train the tower, CLIP and the LLaVA, and fit the threshold.

    With the same FOLDER an interrupted training is resumed. Every stage writes its curve to FOLDER, as curve.json and
    curve.svg.
    """
    import logging

    from ragllava.lab.mini_recipe import recipe
    from ragllava.lab.mini_recipe.calibrate import write_profile
    from ragllava.lab.mini_recipe.precision import training_precision
    from ragllava.models.profiles import get_profile
    from ragllava.settings import load_settings

    if from_scratch and only_language:
        raise click.UsageError("--only-language needs the shipped weights: leave out --from-scratch")
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    start = Path(get_profile(load_settings(profile="mini")).mllm).parent
    if untuned:
        chosen = recipe.untuned_recipe(start)
    else:
        chosen = recipe.recipe_for(minutes, start, from_weights=not from_scratch, only_language=only_language)
    chosen = replace(chosen, packs_per_step=_pack_counts(packs), precision=training_precision(precision))
    models = recipe.train_mini(folder, chosen)
    profile = write_profile(models)
    echo(f"trained: {models}; to use them, set RAGLLAVA_PROFILE={profile.absolute()}")


def _pack_counts(text: str) -> PackCounts:
    from ragllava.lab.mini_recipe.language import PackCounts

    counts = _numbers("--packs", text)
    if len(counts) != len(PackCounts._fields) or min(counts) < 0 or not any(counts):
        raise UsageError(f"--packs takes four whole numbers from 0 on, at least one of them above 0, not {text!r}")
    return PackCounts(*counts)
