"""`ragllava train-mini`: the whole recipe of the models in the package."""

from __future__ import annotations

from pathlib import Path

import click

from ragllava.cli.options import NumberRange


@click.command("train-mini")
@click.argument("folder", type=click.Path(file_okay=False, path_type=Path))
@click.option("--minutes", default=75.0, show_default=True, type=NumberRange(min=0.1), help="Of training.")
@click.option("--from-scratch", is_flag=True, help="Begin with random weights, not with the shipped ones.")
@click.option("--untuned", is_flag=True, help="Instead: the shipped models, made to forget what is relevant.")
def train_mini(folder: Path, minutes: float, from_scratch: bool, untuned: bool) -> None:
    """Train the mini models anew: pictures drawn, the tower, CLIP, the LLaVA, its threshold.

    Called again with the same FOLDER, it goes on where it was stopped. Every stage keeps its curve there, as
    curve.json and drawn as curve.svg.
    """
    import logging

    from ragllava.lab.mini_recipe import recipe
    from ragllava.lab.mini_recipe.calibrate import write_profile
    from ragllava.models.profiles import get_profile
    from ragllava.settings import load_settings

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    start = Path(get_profile(load_settings(profile="mini")).mllm).parent
    if untuned:
        models = recipe.train_untuned(folder, start)
    else:
        models = recipe.train_mini(folder, recipe.recipe_for(minutes, start, from_weights=not from_scratch))
    profile = write_profile(models)
    click.echo(f"trained: {models}; to use them, set RAGLLAVA_PROFILE={profile.absolute()}")
