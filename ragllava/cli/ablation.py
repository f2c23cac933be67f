"""`ragllava ablation`: what noise in training is worth when the evidence is wrong."""

from __future__ import annotations

from pathlib import Path

import click


@click.command()
@click.option("--seeds", default=3, show_default=True, type=click.IntRange(1), help="Repetitions, for the spread.")
@click.option("--steps", default=400, show_default=True, type=click.IntRange(4), help="Of each arm's fine-tuning.")
@click.option("--questions", default=150, show_default=True, type=click.IntRange(10), help="Asked for each seed.")
@click.option("--json", "json_file", metavar="FILE", type=click.Path(path_type=Path), help="Write all figures there.")
@click.option(
    "--folder",
    type=click.Path(file_okay=False, path_type=Path),
    help="Where trainings lie; the same folder goes on where it was stopped.  [default: ablation in RAGLLAVA_HOME]",
)
def ablation(seeds: int, steps: int, questions: int, json_file: Path | None, folder: Path | None) -> None:
    """Compare plain fine-tuning with noise on data level, on token level and on both.

    Needs no services. The mini model, made naive first, learns from postcards in four ways; each is asked about others
    with 0, 20 and 50 % of the evidence wrong and with a wrong picture added. Half an hour on two cores.
    """
    import json

    from rich.console import Console

    from ragllava.cli.progress import bars
    from ragllava.lab.ablation.run import AblationOptions, run_ablation
    from ragllava.settings import load_settings

    settings = load_settings()
    with bars(Console(stderr=True, highlight=False)) as progress:
        task = progress.add_task("ablation", total=None, note="naive base")

        def show(what: str, done: int, total: int) -> None:
            progress.update(task, total=total, completed=done, note=f"{what}: done")

        options = AblationOptions(seeds=seeds, steps=steps, questions=questions)
        found = run_ablation(settings, folder or settings.home / "ablation", options, show)
    click.echo(found.as_text())
    if json_file is not None:
        json_file.write_text(json.dumps(found.as_json(), indent=1, ensure_ascii=False), encoding="utf-8")
