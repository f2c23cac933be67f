"""`ragllava bench`: how fast this machine is, in ratios."""

from __future__ import annotations

import os
import platform
from dataclasses import asdict
from importlib.metadata import version

import click

from ragllava.cli.options import json_option, print_json


@click.command()
@click.option("--questions", default=20, show_default=True, type=click.IntRange(1), help="Asked of each image in bulk.")
@click.option("--images", default=200, show_default=True, type=click.IntRange(20), help="Pictures to embed.")
@click.option("--shape", help="Also a model of this shape with random weights: llava-35m, llava-1.5-7b, llava-1.5-13b.")
@click.option("--device", help="As RAGLLAVA_DEVICE: auto, cpu, cuda, cuda:1.")
@json_option
def bench(questions: int, images: int, shape: str | None, device: str | None, as_json: bool) -> None:
    """Measure reranking and embedding with the profile's models, beside a reference in the same run.

    Needs no services. Every row is a ratio: both sides take turns on the same pictures with the same weights.
    """
    from rich.console import Console
    from rich.table import Table

    from ragllava.evaluation.bench import run_bench
    from ragllava.models.bundle import ModelBundle
    from ragllava.settings import load_settings

    models = ModelBundle(load_settings(**({"device": device} if device else {})))
    rows = run_bench(models, questions=questions, images=images, shape=shape)
    machine = {
        "cores": os.cpu_count(),
        "device": device or models.settings.device,
        "python": platform.python_version(),
        "torch": version("torch"),
        "transformers": version("transformers"),
        "profile": models.profile.name,
    }
    if as_json:
        print_json({"machine": machine, "rows": [asdict(row) | {"ratio": row.ratio} for row in rows]})
        return
    table = Table("what", "ours", "reference", "is", "ratio", "largest difference")
    for row in rows:
        ours, reference = f"{row.ours_per_s:.1f} {row.items}/s", f"{row.reference_per_s:.1f} {row.items}/s"
        table.add_row(row.name, ours, reference, row.reference, f"{row.ratio:.2f}", f"{row.largest_difference:.1e}")
    Console().print(table)
    Console().print(", ".join(f"{name} {value}" for name, value in machine.items()), highlight=False)
