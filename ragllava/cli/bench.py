"""`ragllava bench`: the speed of this machine, as ratios to references."""

from __future__ import annotations

import os
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ragllava.cli.options import json_option, make_table, print_result, require_folder
from ragllava.cli.terminal import echo
from ragllava.errors import UsageError

if TYPE_CHECKING:
    from ragllava.client import Client
    from ragllava.lab.bench.groups import Group, Needs
    from ragllava.lab.bench.rows import BenchRow
    from ragllava.lab.bench.workload import Workload
    from ragllava.local.fleet import WorkerSpec
    from ragllava.settings import Settings

_ADDRESSES = ("RAGLLAVA_DATABASE_URL", "RAGLLAVA_REDIS_URL", "RAGLLAVA_S3_ENDPOINT")
_WORKERS = ("ingest", "answer", "maint")  # no group of rows trains
_COMMAND = click.Path(exists=True, dir_okay=False, executable=True, path_type=Path)
_CHART = click.Path(dir_okay=False, writable=True, path_type=Path)


@click.command()
@click.option("--questions", default=20, show_default=True, type=click.IntRange(1), help="Asked of each image in bulk.")
@click.option("--images", default=200, show_default=True, type=click.IntRange(20), help="Number of real pictures.")
@click.option("--vectors", default=100_000, show_default=True, type=click.IntRange(100), help="In the largest archive.")
@click.option("--job-questions", default=1_000, show_default=True, type=click.IntRange(1), help="In the largest job.")
@click.option(
    "--rows",
    default=1_000_000,
    show_default=True,
    type=click.IntRange(1),
    help="In the job that is measured without models.",
)
@click.option("--shape", help="Add a model of this shape with random weights: llava-35m, llava-1.5-7b, llava-1.5-13b.")
@click.option("--device", help="Overrides RAGLLAVA_DEVICE: auto, cpu, cuda, cuda:1.")
@click.option(
    "--only",
    metavar="GROUP,...",
    help="Only these: rerank, search, captions, ingest, overhead, growth, http, estimates, deadlines, machinery, "
    "console.",
)
@click.option("--clip-retrieval", type=_COMMAND, help="Path of clip-retrieval.  [default: the one on PATH, if any]")
@click.option("--chart", type=_CHART, help="Draw the ratios and their wanted limits into this .svg file.")
@json_option
def bench(
    *,
    questions: int,
    images: int,
    vectors: int,
    job_questions: int,
    rows: int,
    shape: str | None,
    device: str | None,
    only: str | None,
    clip_retrieval: Path | None,
    chart: Path | None,
    as_json: bool,
) -> None:
    """Measure the stages with the profile's models, compared with references in the same run.

    Every row is a ratio: both ways run in turns on the same data with the same weights. Services and workers run in a
    temporary home; your archives are never used.
    """
    # As for the workers (cli/operate.py): with spinning threads this process would not be comparable with them.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    from ragllava.cli.services import interruptible
    from ragllava.lab.bench.chart import draw_chart
    from ragllava.lab.bench.groups import choose_groups
    from ragllava.lab.bench.machine import describe_run, run_details, run_title
    from ragllava.lab.bench.shapes import require_shape
    from ragllava.lab.bench.workload import Workload
    from ragllava.models.bundle import ModelBundle
    from ragllava.settings import load_settings

    groups = choose_groups(only)
    if shape is not None:
        require_shape(shape)
    if chart is not None and chart.suffix != ".svg":
        raise UsageError(f"{chart}: the chart is a picture whose name must end in .svg")
    require_folder(chart)
    # An endpoint would be compared with this process.
    options: dict[str, Any] = {"vllm_url": None} | ({"device": device} if device else {})
    with interruptible(), tempfile.TemporaryDirectory(prefix="ragllava-bench-") as home:
        settings = load_settings(home=Path(home), **options)
        workload = Workload(
            ModelBundle(settings), questions, images, vectors, job_questions, rows, shape=shape,
            clip_retrieval=clip_retrieval or _path_of("clip-retrieval"), progress=_progress_lines(),
        )  # fmt: skip
        measured = _measure(groups, settings, workload)
        run = describe_run(workload)
    if chart is not None:
        chart.write_text(draw_chart(measured, f"ragllava bench: {run_title(run)}"), encoding="utf-8")
    table = make_table(("what", "ours", "reference", "is", "ratio", "wanted", "", "figures"), map(_cells, measured))
    drawn = [f"chart: {chart.absolute()}, open it in a browser"] if chart is not None else []
    print_result(run | {"rows": measured}, [table, run_title(run), run_details(run), *drawn], as_json)


def _path_of(command: str) -> Path | None:
    path = shutil.which(command)
    return Path(path) if path else None


def _progress_lines() -> Callable[[str], None]:
    """A function that prints a line on standard error, after the minutes and seconds since now."""
    started = time.monotonic()

    def print_line(line: str) -> None:
        minutes, seconds = divmod(int(time.monotonic() - started), 60)
        echo(f"{minutes:3d}:{seconds:02d}  {line}", err=True)

    return print_line


def _measure(groups: Sequence[Group], settings: Settings, workload: Workload) -> list[BenchRow]:
    rows: list[BenchRow] = []
    for needs, same_needs in groupby(groups, key=lambda group: group.needs):
        with _client(needs, settings, workload) as client:
            for group in same_needs:
                measured = group.rows(replace(workload, client=client))
                # Printed at once, so that an interrupted run has results.
                for row in measured:
                    workload.progress(f"  {row.name}: {_ratio(row)} {row.wanted}")
                rows += measured
    return rows


@contextmanager
def _client(needs: Needs, settings: Settings, workload: Workload) -> Iterator[Client | None]:
    """A client of the services and workers that a group needs; all of them are stopped at the end of the block."""
    from ragllava.cli.services import running_system
    from ragllava.client import Client
    from ragllava.lab.bench.groups import Needs

    if needs is Needs.NOTHING:
        yield None
        return
    given = [name for name in _ADDRESSES if name in os.environ]
    if given:
        raise UsageError(
            f"the benchmark starts its own services and never uses yours; unset {', '.join(given)}, or measure only "
            "the rows that need no services: --only rerank"
        )

    def specs(_: Settings) -> list[WorkerSpec]:
        return _worker_specs(settings) if needs is Needs.WORKERS else []

    workload.progress("starting services" + (" and workers" if needs is Needs.WORKERS else ""))
    with (
        running_system(settings, specs, lambda line: None, threading.Event()) as running,
        closing(Client(running.settings)) as client,
    ):
        yield client


def _worker_specs(settings: Settings) -> list[WorkerSpec]:
    from ragllava.cli.operate import worker_specs

    return [
        replace(spec, environment={**spec.environment, "RAGLLAVA_DEVICE": settings.device, "RAGLLAVA_VLLM_URL": ""})
        for spec in worker_specs(settings)
        if spec.name in _WORKERS
    ]


def _cells(row: BenchRow) -> tuple[object, ...]:
    reference = None if row.reference_value is None else f"{row.reference_value:.4g} {row.unit}"
    mark = {True: "reached", False: "missed", None: ""}[row.is_reached]
    figures = ", ".join(f"{name} {value:.3g}" for name, value in row.figures.items())
    ours = f"{row.ours:.4g} {row.unit}"
    return row.name, ours, reference, row.reference, _ratio(row), row.wanted, mark, figures


def _ratio(row: BenchRow) -> str:
    return "-" if row.ratio is None else f"{row.ratio:.3g}"
