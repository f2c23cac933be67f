"""`ragllava demo`: the whole way on the postcards archive, whose right answers are known."""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ragllava.cli.demo.learn import HOME_QUESTIONS, learn_from_mistakes
from ragllava.cli.demo.run import Demo
from ragllava.errors import UsageError

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
    help=f"Postcards to draw.  [default: {IMAGES}; with --learn {LEARNING_IMAGES} of each world]",
)
@click.option(
    "--questions",
    type=click.IntRange(1),
    help=f"Questions to ask.  [default: {QUESTIONS}; with --learn {LEARNING_QUESTIONS}, and twice as many at home]",
)
@click.option("--learn", is_flag=True, help="Show how an archive of another world learns from feedback: two archives.")
@click.option("--report", default=Path("report.html"), show_default=True, type=OUTPUT, help="Write the page here.")
@click.option("--json", "json_path", type=OUTPUT, help="Write the figures to this file.")
def demo(
    seed: int, images: int | None, questions: int | None, learn: bool, report: Path, json_path: Path | None
) -> None:
    """The whole way on a sample archive: start everything, ingest pictures, answer questions, show the result.

    The pictures are postcards of made-up landmarks that the shipped models never saw. Ctrl-C stops everything in
    good order; the next call goes on where this one stopped.
    """
    from rich.console import Console

    from ragllava.settings import load_settings

    _require_folders(report, json_path)
    console = Console(highlight=False)
    run = Demo(
        console,
        seed,
        images or (LEARNING_IMAGES if learn else IMAGES),
        questions or (LEARNING_QUESTIONS if learn else QUESTIONS),
    )
    settings = load_settings()
    size = f"{run.images} postcards{' of each world' if learn else ''}, {run.questions} questions"
    if learn:
        size += f" about the shifted one and {HOME_QUESTIONS * run.questions} about home"
    console.print(f"RagLLaVA demo, seed {seed}: {size}; data in {settings.home}")
    try:
        with _system(settings, run) as client:
            result = learn_from_mistakes(client, run) if learn else run.through(client, report)
    except KeyboardInterrupt:
        console.print("interrupted; the same command goes on from here")
        sys.exit(130)
    if json_path is not None:
        json_path.write_text(json.dumps(result, indent=2) + "\n")
        console.print(f"figures: {json_path}")
    succeeded = result["as_it_should_be"] if learn else result["failed"] == 0 and result["answered"] > 0
    sys.exit(0 if succeeded else 1)


@contextmanager
def _system(settings: Settings, run: Demo) -> Iterator[Client]:
    """A client of a running system: that of `ragllava up` if there is one, else one for the time of the demo."""
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
        except AlreadyRunning:
            run.console.print("  using the system that runs already in this home")
        # First of what happens at the end: another Ctrl-C must not leave half of the system running.
        stack.callback(uninterruptible.set)
        yield stack.enter_context(closing(Client(settings)))


def _require_folders(*outputs: Path | None) -> None:
    """Before minutes of work, not after them."""
    for path in outputs:
        if path is not None and not path.absolute().parent.is_dir():
            raise UsageError(f"{path} cannot be written: there is no folder {path.parent}")
