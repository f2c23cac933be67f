"""`ragllava ablation` and `ragllava train-mini`: experiments with the mini models, and their recipe."""

from __future__ import annotations

from pathlib import Path

import click

from ragllava.cli.options import NumberRange


@click.command()
@click.option("--seeds", default=3, show_default=True, type=click.IntRange(1), help="Repetitions, for the spread.")
@click.option("--steps", default=400, show_default=True, type=click.IntRange(4), help="Steps of each arm.")
@click.option("--questions", default=150, show_default=True, type=click.IntRange(10), help="Questions for each seed.")
@click.option(
    "--json", "json_file", metavar="FILE", type=click.Path(path_type=Path), help="Write the figures to this file."
)
@click.option(
    "--folder",
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder of the trainings; an interrupted run resumes from it.  [default: ablation in RAGLLAVA_HOME]",
)
def ablation(seeds: int, steps: int, questions: int, json_file: Path | None, folder: Path | None) -> None:
    """Compare plain fine-tuning with noise on data level, on token level and on both.

    Needs no services. The mini model is made naive and then fine-tuned on postcards in four ways. Each result answers
    questions about other postcards with 0, 20 and 50 % of the evidence wrong and with a wrong picture added. Takes half
    an hour on two cores.
    """
    import json

    from ragllava.cli.progress import bar
    from ragllava.lab.ablation.run import AblationOptions, run_ablation
    from ragllava.settings import load_settings

    settings = load_settings()
    with bar("ablation") as update:
        update(note="naive base")

        def show(part: str, done: int, total: int) -> None:
            update(total=total, completed=done, note=f"{part}: done")

        options = AblationOptions(seeds=seeds, steps=steps, questions=questions)
        result = run_ablation(settings, folder or settings.home / "ablation", options, show)
    click.echo(result.as_text())
    if json_file is not None:
        json_file.write_text(json.dumps(result.as_json(), indent=1, ensure_ascii=False), encoding="utf-8")


@click.command("train-mini")
@click.argument("folder", type=click.Path(file_okay=False, path_type=Path))
@click.option("--minutes", default=75.0, show_default=True, type=NumberRange(min=0.1), help="Training time.")
@click.option("--from-scratch", is_flag=True, help="Start from random weights, not from the shipped ones.")
@click.option("--only-language", is_flag=True, help="Train the shipped LLaVA's language model; CLIP stays as it is.")
@click.option("--untuned", is_flag=True, help="Instead make the shipped models unlearn relevance, for eval --untuned.")
def train_mini(folder: Path, minutes: float, from_scratch: bool, only_language: bool, untuned: bool) -> None:
    """Train the mini models: draw pictures, train the tower, CLIP and the LLaVA, and fit the threshold.

    With the same FOLDER an interrupted training is resumed. Every stage writes its curve to FOLDER, as curve.json and
    curve.svg.
    """
    import logging

    from ragllava.lab.mini_recipe import recipe
    from ragllava.lab.mini_recipe.calibrate import write_profile
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
    models = recipe.train_mini(folder, chosen)
    profile = write_profile(models)
    click.echo(f"trained: {models}; to use them, set RAGLLAVA_PROFILE={profile.absolute()}")
