"""`ragllava ablation`: the effect of noise in training on answers from wrong evidence."""

from __future__ import annotations

from pathlib import Path

import click


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
