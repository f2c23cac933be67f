"""`ragllava bench`: how fast this machine is, in ratios."""

from __future__ import annotations

import os
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ragllava.cli.options import json_option, make_table, print_result
from ragllava.errors import UsageError

if TYPE_CHECKING:
    from ragllava.lab.bench.groups import Group, Needs
    from ragllava.lab.bench.rows import BenchRow
    from ragllava.lab.bench.workload import System, Workload
    from ragllava.local.fleet import WorkerSpec
    from ragllava.settings import Settings

_ADDRESSES = ("RAGLLAVA_DATABASE_URL", "RAGLLAVA_REDIS_URL", "RAGLLAVA_S3_ENDPOINT")
_WORKERS = ("ingest", "answer", "maint")  # nothing is trained
_COMMAND = click.Path(exists=True, dir_okay=False, executable=True, path_type=Path)
_CHART = click.Path(dir_okay=False, writable=True, path_type=Path)


@click.command()
@click.option("--questions", default=20, show_default=True, type=click.IntRange(1), help="Asked of each image in bulk.")
@click.option("--images", default=200, show_default=True, type=click.IntRange(20), help="Real pictures.")
@click.option("--vectors", default=100_000, show_default=True, type=click.IntRange(100), help="In the largest archive.")
@click.option("--job-questions", default=1_000, show_default=True, type=click.IntRange(1), help="Of the largest job.")
@click.option("--shape", help="Also a model of this shape with random weights: llava-35m, llava-1.5-7b, llava-1.5-13b.")
@click.option("--device", help="As RAGLLAVA_DEVICE: auto, cpu, cuda, cuda:1.")
@click.option("--only", metavar="GROUP,...", help="Only these rows: rerank, search, ingest, overhead, growth.")
@click.option("--clip-retrieval", type=_COMMAND, help="The command of clip-retrieval; else the one on PATH, if any.")
@click.option("--chart", type=_CHART, help="Draw the ratios beside what is wanted into this .svg file.")
@json_option
def bench(
    *,
    questions: int,
    images: int,
    vectors: int,
    job_questions: int,
    shape: str | None,
    device: str | None,
    only: str | None,
    clip_retrieval: Path | None,
    chart: Path | None,
    as_json: bool,
) -> None:
    """Measure the stages with the profile's models, beside a reference in the same run.

    Every row is a ratio: both sides take turns on the same data with the same weights. Services and workers run in a
    temporary home of their own; an archive of yours is never touched.
    """
    # As the workers have it (cli/operate.py): threads that spin would make this process another machine than theirs.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    from ragllava.cli.services import interruptible
    from ragllava.lab.bench.chart import draw_chart
    from ragllava.lab.bench.groups import choose_groups
    from ragllava.lab.bench.machine import describe_run
    from ragllava.lab.bench.shapes import require_shape
    from ragllava.lab.bench.workload import Workload
    from ragllava.models.bundle import ModelBundle
    from ragllava.settings import load_settings

    groups = choose_groups(only)
    if shape is not None:
        require_shape(shape)
    _require_chart(chart)
    # An endpoint would be measured against this process.
    options: dict[str, Any] = {"vllm_url": None} | ({"device": device} if device else {})
    with interruptible(), tempfile.TemporaryDirectory(prefix="ragllava-bench-") as home:
        settings = load_settings(home=Path(home), **options)
        workload = Workload(
            ModelBundle(settings), questions, images, vectors, job_questions, shape=shape,
            clip_retrieval=clip_retrieval or _found("clip-retrieval"), progress=_Clock().tell,
        )  # fmt: skip
        rows = _measure(groups, settings, workload)
        run = describe_run(workload)
    if chart is not None:
        chart.write_text(draw_chart(rows, f"ragllava bench: {run.title}"), encoding="utf-8")
    table = make_table(("what", "ours", "reference", "is", "ratio", "wanted", "", "beside"), map(_cells, rows))
    drawn = [f"chart: {chart.absolute()}, open it in a browser"] if chart is not None else []
    print_result(run.as_json() | {"rows": rows}, [table, run.title, run.details, *drawn], as_json)


def _found(command: str) -> Path | None:
    path = shutil.which(command)
    return Path(path) if path else None


def _measure(groups: Sequence[Group], settings: Settings, workload: Workload) -> list[BenchRow]:
    rows: list[BenchRow] = []
    for needs, some in groupby(groups, key=lambda group: group.needs):
        with _system(needs, settings, workload) as system:
            for group in some:
                found = group.rows(replace(workload, system=system))
                # Said at once: a run that is interrupted has been of some use.
                for row in found:
                    workload.progress(f"  {row.name}: {_ratio(row)} {row.wanted}")
                rows += found
    return rows


class _Clock:
    """Tells on standard error what is measured now, and since when the bench runs."""

    def __init__(self) -> None:
        self._began = time.monotonic()

    def tell(self, line: str) -> None:
        seconds = int(time.monotonic() - self._began)
        click.echo(f"{seconds // 60:3d}:{seconds % 60:02d}  {line}", err=True)


@contextmanager
def _system(needs: Needs, settings: Settings, workload: Workload) -> Iterator[System | None]:
    """What a group needs to be running, for the time of the block; all of it is stopped afterwards."""
    from ragllava.cli.services import running_system
    from ragllava.client import Client
    from ragllava.lab.bench.groups import Needs
    from ragllava.lab.bench.workload import System

    if needs is Needs.NOTHING:
        yield None
        return
    given = [name for name in _ADDRESSES if name in os.environ]
    if given:
        raise UsageError(
            f"the bench starts services of its own and never uses yours; unset {', '.join(given)}, or measure what "
            "needs none: --only rerank"
        )

    def specs(_: Settings) -> list[WorkerSpec]:
        return _worker_specs(settings) if needs is Needs.WORKERS else []

    workload.progress("starting services" + (" and workers" if needs is Needs.WORKERS else ""))
    with (
        running_system(settings, specs, lambda line: None, threading.Event()) as running,
        closing(Client(running.settings)) as client,
    ):
        yield System(running.settings, client.engine, client)


def _worker_specs(settings: Settings) -> list[WorkerSpec]:
    from ragllava.cli.operate import worker_specs

    return [
        replace(spec, environment={**spec.environment, "RAGLLAVA_DEVICE": settings.device, "RAGLLAVA_VLLM_URL": ""})
        for spec in worker_specs(settings)
        if spec.name in _WORKERS
    ]


def _require_chart(path: Path | None) -> None:
    """Before minutes of work, not after them."""
    if path is None:
        return
    if path.suffix != ".svg":
        raise UsageError(f"{path}: the chart is a picture whose name must end in .svg")
    if not path.absolute().parent.is_dir():
        raise UsageError(f"{path} cannot be written: there is no folder {path.parent}")


def _cells(row: BenchRow) -> tuple[object, ...]:
    reference = None if row.reference is None else f"{row.reference:.4g} {row.unit}"
    mark = {True: "reached", False: "missed", None: ""}[row.is_reached]
    beside = ", ".join(f"{name} {value:.3g}" for name, value in row.figures.items())
    return (
        row.name, f"{row.ours:.4g} {row.unit}", reference, row.reference_name, _ratio(row), row.wanted, mark, beside
    )  # fmt: skip


def _ratio(row: BenchRow) -> str:
    return "-" if row.ratio is None else f"{row.ratio:.3g}"
