"""`ragllava bench`: how fast this machine is, in ratios."""

from __future__ import annotations

import os
import platform
from importlib.metadata import version
from typing import TYPE_CHECKING

import click

from ragllava.cli.options import json_option, print_json

if TYPE_CHECKING:
    from rich.table import Table

    from ragllava.evaluation.bench.rows import BenchRow


@click.command()
@click.option("--questions", default=20, show_default=True, type=click.IntRange(1), help="Asked of each image in bulk.")
@click.option("--images", default=200, show_default=True, type=click.IntRange(20), help="Pictures to embed.")
@click.option("--shape", help="Also a model of this shape with random weights: llava-35m, llava-1.5-7b, llava-1.5-13b.")
@click.option("--device", help="As RAGLLAVA_DEVICE: auto, cpu, cuda, cuda:1.")
@click.option("--only", metavar="GROUP,...", help="Only these groups of rows: rerank, ingest.")
@json_option
def bench(questions: int, images: int, shape: str | None, device: str | None, only: str | None, as_json: bool) -> None:
    """Measure the stages with the profile's models, beside a reference in the same run.

    Every row is a ratio: both sides take turns on the same data with the same weights.
    """
    from rich.console import Console

    from ragllava.evaluation.bench.groups import choose_groups
    from ragllava.evaluation.bench.workload import Workload
    from ragllava.models.bundle import ModelBundle
    from ragllava.settings import load_settings

    groups = choose_groups(only)
    models = ModelBundle(load_settings(**({"device": device} if device else {})))
    workload = Workload(models, questions, images, shape=shape)
    rows = [row for group in groups for row in group.rows(workload)]
    machine = {
        "cores": os.cpu_count(),
        "device": device or models.settings.device,
        "python": platform.python_version(),
        "torch": version("torch"),
        "transformers": version("transformers"),
        "profile": models.profile.name,
    }
    if as_json:
        print_json({"machine": machine, "rows": [row.as_json() for row in rows]})
        return
    Console().print(_table(rows))
    Console().print(", ".join(f"{name} {value}" for name, value in machine.items()), highlight=False)


def _table(rows: list[BenchRow]) -> Table:
    from rich.table import Table

    table = Table("what", "ours", "reference", "is", "ratio", "wanted", "beside")
    for row in rows:
        reference = "-" if row.reference is None else f"{row.reference:.4g} {row.unit}"
        ratio = "-" if row.ratio is None else f"{row.ratio:.3g}"
        beside = ", ".join(f"{name} {value:.3g}" for name, value in row.figures.items())
        table.add_row(
            row.name, f"{row.ours:.4g} {row.unit}", reference, row.reference_name, ratio, str(row.wanted), beside
        )
    return table
