"""`ragllava up`, `down`, `status`, `doctor`, `migrate`: start, stop and inspect the system."""

from __future__ import annotations

import itertools
import os
import sys
from typing import TYPE_CHECKING

import click

from ragllava.cli.options import json_option, make_table, print_result
from ragllava.cli.terminal import echo

if TYPE_CHECKING:
    from ragllava.local.fleet import WorkerSpec
    from ragllava.settings import Settings


def worker_specs(settings: Settings, answer_workers: int = 1) -> list[WorkerSpec]:
    """The workers of one machine: one that embeds, one or more that answer, one that trains, the maintenance worker.

    Raises ModelUnavailable when the profile's models are not on this machine, SettingsError when the device is not.
    """
    from ragllava.local.fleet import WorkerSpec
    from ragllava.models.profiles import require_models

    require_models(settings)
    if settings.device not in ("auto", "cpu"):
        # Checked here, because a worker without its device never becomes ready and reports that only in its log.
        from ragllava.models.device import plan_device  # loads torch

        plan_device(settings)
    devices = _devices(answer_workers)
    commands = {
        "ingest": ("-Q", "ingest", "--pool", "prefork"),
        **dict.fromkeys(devices, ("-Q", "query", "--pool", "prefork")),
        "train": ("-Q", "train", "--pool", "prefork"),
        # Its tasks are short, so it needs no child process.
        "maint": ("-Q", "maint", "--pool", "solo"),
    }
    celery = (sys.executable, "-m", "celery", "-A", "workers.app", "worker", "--concurrency", "1")
    quiet = ("--without-gossip", "--without-mingle", "--without-heartbeat", "--loglevel", "INFO")
    # Idle OpenMP threads that spin take the processor from the other workers of a small machine.
    environment = {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "0"}
    return [
        WorkerSpec(
            name,
            (*celery, "-n", f"{name}@%h", *options, *quiet),
            environment | devices.get(name, {}) | _port_of_figures(settings, number),
        )
        for number, (name, options) in enumerate(commands.items())
    ]


def _port_of_figures(settings: Settings, number: int) -> dict[str, str]:
    """The variable that gives each worker of a machine a port of its own; none while no figures are served."""
    first = settings.worker_metrics_port
    return {"RAGLLAVA_WORKER_METRICS_PORT": str(first + number)} if first else {}


def _devices(answer_workers: int) -> dict[str, dict[str, str]]:
    """The names of the answer workers, each with its variables: of several, each has the next GPU that is visible."""
    if answer_workers == 1:
        return {"answer": {}}
    listed = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    visible = itertools.cycle(listed.split(",") if listed else map(str, range(answer_workers)))
    return {f"answer{number}": {"CUDA_VISIBLE_DEVICES": next(visible)} for number in range(1, answer_workers + 1)}


@click.command()
@click.option("--answer-workers", default=1, show_default=True, type=click.IntRange(1), help="One for each GPU.")
def up(answer_workers: int) -> None:
    """Start the embedded services and the workers and keep them running; Ctrl-C stops them.

    Data, logs and passwords are under RAGLLAVA_HOME. A service whose address is given by RAGLLAVA_DATABASE_URL,
    RAGLLAVA_REDIS_URL or RAGLLAVA_S3_ENDPOINT is used and not started.
    """
    from ragllava.cli import services
    from ragllava.settings import load_settings

    services.up(load_settings(), lambda settings: worker_specs(settings, answer_workers), echo)


@click.command()
def down() -> None:
    """Stop what `ragllava up` started, also what a killed one left behind."""
    from ragllava.cli import services
    from ragllava.settings import load_settings

    services.down(load_settings(), echo)


@click.command()
@click.option("--worker", metavar="NAME", help="Only check whether this host's worker NAME is ready.")
@json_option
def status(worker: str | None, as_json: bool) -> None:
    """Show services, workers and open jobs; exit code 1 when a service does not answer or something keeps failing."""
    from ragllava.cli import services
    from ragllava.settings import load_settings

    if worker is not None:
        ready = services.is_worker_ready(load_settings(), worker)
        echo(f"worker {worker} is {'ready' if ready else 'not ready'}")
        sys.exit(0 if ready else 1)
    view = services.status(load_settings())
    print_result(view, services.status_lines(view), as_json)
    sys.exit(0 if view.is_healthy else 1)


@click.command()
@click.option("--deep", is_flag=True, help="Also compare rows with objects, vectors with images, queues with shards.")
@json_option
def doctor(deep: bool, as_json: bool) -> None:
    """Show versions, services and settings, what is wrong and what to do; exit code 1 when something is wrong."""
    from ragllava.cli.doctor import diagnose, diagnosis_lines

    diagnosis = diagnose(deep=deep)
    print_result(diagnosis, diagnosis_lines(diagnosis), as_json)
    sys.exit(1 if diagnosis.problems else 0)


@click.command()
@click.argument("names", nargs=-1, metavar="[NAME]...")
@click.option("--lines", "-n", default=20, show_default=True, type=click.IntRange(0), help="Last lines of each log.")
@click.option("--follow", "-f", is_flag=True, help="Also print what is added, until Ctrl-C.")
def logs(names: tuple[str, ...], lines: int, follow: bool) -> None:
    """Show the logs of `ragllava up`: of the services and workers of these names, else of all.

    Names are postgres, redis, seaweed, ingest, answer, train, maint, receiver and api.
    """
    from ragllava.local.home import Home
    from ragllava.local.log_files import find_logs, last_log_lines, new_log_lines
    from ragllava.settings import load_settings

    files = find_logs(Home(load_settings().home), names)
    for file in files:
        for line in last_log_lines(file, lines):
            echo(f"{file.stem}: {line}")
    try:
        for file, line in new_log_lines(files) if follow else ():
            echo(f"{file.stem}: {line}")
    except KeyboardInterrupt:
        sys.exit(130)


@click.command()
@click.option("--changed", is_flag=True, help="Only those that are not the defaults.")
@json_option
def settings(changed: bool, as_json: bool) -> None:
    """Show every setting, its value, and where that comes from: the environment, ragllava.toml or the default.

    The file ragllava.toml in RAGLLAVA_HOME holds settings for all terminals and workers; a variable wins over it.
    """
    from ragllava.cli.doctor import shown_settings
    from ragllava.settings import load_settings

    used = load_settings()
    rows = [row for row in shown_settings(used) if not changed or row["from"] != "default"]
    cells = ((row["variable"], row["value"], row["from"]) for row in rows)
    file = f"{used.settings_file}{'' if used.settings_file.exists() else ' does not exist; settings may be put there'}"
    print_result(rows, [f"file: {file}", make_table(("variable", "value", "from"), cells, box=None)], as_json)


@click.command()
@click.option("--words", is_flag=True, help="Write the words of all images again, from which captions are searched.")
@click.option("--check", is_flag=True, help="Change nothing; say whether this version can use the database as it is.")
@click.option(
    "--back-to", metavar="VERSION", help="Go back to the tables of an earlier version; what it cannot hold is lost."
)
def migrate(words: bool, check: bool, back_to: str | None) -> None:
    """Create or update the tables of the database; harmless when they are up to date.

    Exit codes of --check: 0 for a database that can be used, 4 for one that is behind, 5 for one that is too new.
    """
    import migrations
    from ragllava.settings import load_settings

    if words + check + (back_to is not None) > 1:
        raise click.UsageError("--words, --check and --back-to exclude each other")
    settings = load_settings()
    if check:
        found, sentence = migrations.check(settings.require_database())
        echo(sentence)
        sys.exit(found)
    url = settings.require_database_owner()
    if back_to is not None:
        migrations.back_to(url, back_to)
    else:
        migrations.upgrade(
            url,
            words=words,
            application_url=settings.require_database(),
            api_url=settings.api_database(),
            scale_url=settings.scale_database(),
        )
    echo(f"the database is at revision {migrations.current(url)}")
