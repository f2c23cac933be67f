"""`ragllava train-mini`: the recipe of the models in the package."""

from __future__ import annotations

from pathlib import Path

import click

from ragllava.cli.options import NumberRange


@click.command("train-mini")
@click.argument("folder", type=click.Path(file_okay=False, path_type=Path))
@click.option("--minutes", default=75.0, show_default=True, type=NumberRange(min=0.1), help="Training time.")
@click.option("--from-scratch", is_flag=True, help="Start from random weights, not from the shipped ones.")
@click.option("--untuned", is_flag=True, help="Instead make the shipped models unlearn relevance, for eval --untuned.")
def train_mini(folder: Path, minutes: float, from_scratch: bool, untuned: bool) -> None:
    """Train the mini models: draw pictures, train the tower, CLIP and the LLaVA, and fit the threshold.

    With the same FOLDER an interrupted training is resumed. Every stage writes its curve to FOLDER, as curve.json and
    curve.svg.
    """
    import logging

    from ragllava.lab.mini_recipe import recipe
    from ragllava.lab.mini_recipe.calibrate import write_profile
    from ragllava.models.profiles import get_profile
    from ragllava.settings import load_settings

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    start = Path(get_profile(load_settings(profile="mini")).mllm).parent
    if untuned:
        chosen = recipe.untuned_recipe(start)
    else:
        chosen = recipe.recipe_for(minutes, start, from_weights=not from_scratch)
    models = recipe.train_mini(folder, chosen)
    profile = write_profile(models)
    click.echo(f"trained: {models}; to use them, set RAGLLAVA_PROFILE={profile.absolute()}")
