"""`ragllava demo`: an end-to-end demo on the postcards archive, whose right answers are known."""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ragllava.cli.demo.learn import IN_DOMAIN_QUESTIONS, learn_from_feedback
from ragllava.cli.demo.run import Demo
from ragllava.cli.options import require_folder
from ragllava.cli.terminal import make_console

if TYPE_CHECKING:
    from ragllava.client import Client
    from ragllava.settings import Settings

IMAGES, QUESTIONS = 1000, 200
LEARNING_IMAGES, LEARNING_QUESTIONS = 400, 800  # postcards of each of two archives
OUTPUT = click.Path(dir_okay=False, writable=True, path_type=Path)


@click.command()
@click.option("--seed", default=1, show_default=True, help="Another seed draws another archive.")
@click.option(
    "--images",
    type=click.IntRange(1),
    help=f"Postcards to draw.  [default: {IMAGES}; with --learn {LEARNING_IMAGES} for each archive]",
)
@click.option(
    "--questions",
    type=click.IntRange(1),
    help=f"Questions to ask.  [default: {QUESTIONS}; with --learn {LEARNING_QUESTIONS} about the shifted archive, and "
    "twice as many about the in-domain one]",
)
@click.option(
    "--learn", is_flag=True, help="Show training on feedback: a shifted archive is learned, an in-domain one kept."
)
@click.option("--report", default=Path("report.html"), show_default=True, type=OUTPUT, help="Write the page here.")
@click.option("--json", "json_path", type=OUTPUT, help="Write the figures to this file.")
def demo(
    seed: int, images: int | None, questions: int | None, learn: bool, report: Path, json_path: Path | None
) -> None:
    """End-to-end demo on a sample archive: start the system, ingest pictures, answer questions, show the results.

    The pictures are postcards of made-up landmarks that the shipped models never saw. Ctrl-C stops the system
    cleanly; the next call continues where this one stopped.
    """

    from ragllava.settings import load_settings

    require_folder(report)
    require_folder(json_path)
    console = make_console(highlight=False)
    run = Demo(
        console,
        seed,
        images or (LEARNING_IMAGES if learn else IMAGES),
        questions or (LEARNING_QUESTIONS if learn else QUESTIONS),
    )
    settings = load_settings()
    size = f"{run.images} postcards{' for each archive' if learn else ''}, {run.questions} questions"
    if learn:
        size += f" about the shifted one and {IN_DOMAIN_QUESTIONS * run.questions} about the in-domain one"
    console.print(f"RagLLaVA demo, seed {seed}: {size}; data in {settings.home}")
    try:
        with _system(settings, run) as client:
            result = learn_from_feedback(client, run) if learn else run.run(client, report)
    except KeyboardInterrupt:
        console.print("interrupted; the same command continues from here")
        sys.exit(130)
    if json_path is not None:
        json_path.write_text(json.dumps(result, indent=2) + "\n")
        console.print(f"figures: {json_path}")
    succeeded = result["passed"] if learn else result["failed"] == 0 and result["answered"] > 0
    sys.exit(0 if succeeded else 1)


@contextmanager
def _system(settings: Settings, run: Demo) -> Iterator[Client]:
    """A client of a running system: that of `ragllava up`, or else one that is started for the demo."""
    from ragllava.cli.operate import worker_specs
    from ragllava.cli.services import interruptible, running_system
    from ragllava.client import Client
    from ragllava.errors import AlreadyRunning

    def echo(line: str) -> None:
        run.console.print(f"  {line}", markup=False)

    with interruptible() as uninterruptible, ExitStack() as stack:
        try:
            with run.timed("start"):
                system = running_system(settings, worker_specs, echo, threading.Event())
                settings = stack.enter_context(system).settings
            run.console_note = "to sign in, start the system with `ragllava up`, then "  # it ends with the demo
        except AlreadyRunning:
            run.console.print("  using the system that is running in this home")
        # The first step of the end: another Ctrl-C must not leave half of the system running.
        stack.callback(uninterruptible.set)
        yield stack.enter_context(Client(settings))
