"""`ragllava`: the group of all commands. Each command imports what it needs when it runs, so `--help` is quick."""

from __future__ import annotations

import difflib
import io
import sys
from importlib import import_module

import click

from ragllava import __version__
from ragllava.cli.options import SHOWN_LINES
from ragllava.cli.terminal import echo
from ragllava.errors import InvalidInput, RagllavaError

# name -> (module, attribute, one line for --help). A module is loaded when its command is called.
COMMANDS = {
    "demo": ("ragllava.cli.demo.command", "demo", "end-to-end demo: services, pictures, answers, report"),
    "up": ("ragllava.cli.operate", "up", "start the embedded services and the workers; Ctrl-C stops them"),
    "down": ("ragllava.cli.operate", "down", "stop what `up` started"),
    "status": ("ragllava.cli.operate", "status", "show services, workers and open jobs"),
    "doctor": ("ragllava.cli.operate", "doctor", "show what runs, what is wrong and what to do"),
    "logs": ("ragllava.cli.operate", "logs", "show the logs of services and workers"),
    "settings": ("ragllava.cli.operate", "settings", "show every setting and where its value comes from"),
    "migrate": ("ragllava.cli.operate", "migrate", "bring the database to this version's tables"),
    "backup": ("ragllava.cli.backups", "backup", "save everything into a folder or a bucket, beside running work"),
    "restore": ("ragllava.cli.backups", "restore", "restore a backup into an empty system"),
    "ingest": ("ragllava.cli.ingest", "ingest", "add pictures and their captions to an archive"),
    "archive": ("ragllava.cli.archives", "archive", "archives: list, show, rename, remove, bind to buckets, scan"),
    "picture": ("ragllava.cli.removals", "picture", "remove pictures from archives"),
    "reindex": (
        "ragllava.cli.indexes",
        "reindex",
        "embed an archive again, or only what is missing",
    ),
    "index": ("ragllava.cli.indexes", "index", "list, show, switch and drop the indexes of archives"),
    "watch": ("ragllava.cli.watch", "watch", "keep an archive equal to a folder, until Ctrl-C"),
    "receiver": ("ragllava.cli.receiver", "receiver", "take events of buckets over HTTP"),
    "serve": (
        "ragllava.cli.serve",
        "serve",
        "serve the HTTP API, which OpenAI's and other clients speak, and the console",
    ),
    "console": ("ragllava.cli.console", "console", "print a link that signs in to the console"),
    "keys": ("ragllava.cli.keys", "keys", "keys of the HTTP API: create, list, revoke"),
    "submit": ("ragllava.cli.questions", "submit", "queue a file of questions"),
    "ask": ("ragllava.cli.questions", "ask", "ask one question now"),
    "jobs": ("ragllava.cli.jobs", "jobs", "list, show, wait, cancel, pause, resume, retry, refresh, remove"),
    "schedule": ("ragllava.cli.schedule", "schedule", "manage schedules: list, add, pause, resume, remove, run"),
    "maintenance": ("ragllava.cli.schedule", "maintenance", "run a maintenance task now"),
    "mailings": ("ragllava.cli.mailings", "mailings", "mails and webhooks of notifications: list, retry"),
    "train": ("ragllava.cli.train", "train", "train the reranker or the generator on labelled questions"),
    "results": ("ragllava.cli.questions", "results", "write a job's answers to a file"),
    "feedback": ("ragllava.cli.noisy", "feedback", "label answers as right or wrong"),
    "noisy": ("ragllava.cli.noisy", "noisy", "doubtful answers: list, show, dismiss, exchange with reviewers"),
    "eval": ("ragllava.cli.evaluate", "evaluate", "measure retrieval and answers on a data set"),
    "ablation": ("ragllava.cli.lab", "ablation", "measure the effect of noise in training"),
    "bench": ("ragllava.cli.bench", "bench", "measure this machine, in ratios to a reference"),
    "compare-retrieval": (
        "ragllava.cli.lab",
        "compare_retrieval",
        "compare the ways of finding candidates on drawn archives",
    ),
    "measure-gate": ("ragllava.cli.lab", "measure_gate", "measure the gate on real trainings"),
    "simulate-gate": ("ragllava.cli.lab", "simulate_gate", "measure the gate's errors on simulated hold-outs"),
    "train-mini": ("ragllava.cli.lab", "train_mini", "train the models of the package again by their recipe"),
    "models": ("ragllava.cli.models", "models", "model versions: list, show, compare, promote, roll back"),
    "report": ("ragllava.cli.questions", "report", "write a job's answers as one HTML page"),
}


class LazyGroup(click.Group):
    """Loads a command's module only when the command is called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The names in the order of use."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command itself; None for an unknown name."""
        if cmd_name not in COMMANDS:
            return None
        module, attribute, _ = COMMANDS[cmd_name]
        command: click.Command = getattr(import_module(module), attribute)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """As click does, but with the nearest name for a mistyped one: click knows only loaded commands."""
        close = difflib.get_close_matches(args[0], COMMANDS, n=1)
        if args[0] not in COMMANDS and close:
            ctx.fail(f"No such command {args[0]!r}. Did you mean {close[0]!r}?")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Names and their one line, without loading a command."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, line) for name, (_, _, line) in COMMANDS.items()])


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="ragllava")
def cli() -> None:
    """Bulk question answering over image archives.

    Start with `ragllava demo`, or `ragllava up` in one terminal and the other commands in a second one.
    """


def main() -> None:
    """Run a command. An error is one sentence and exit code 1, a wrong call exits with 2, Ctrl-C with 130."""
    try:
        cli.main(standalone_mode=False)
    except click.exceptions.Abort:
        echo("stopped", err=True)
        sys.exit(130)
    except click.ClickException as error:
        shown = io.StringIO()  # it repeats arguments, which a shell may have made of file names
        error.show(shown)
        echo(shown.getvalue().rstrip("\n"), err=True)
        sys.exit(error.exit_code)
    except RagllavaError as error:
        echo(f"ragllava: {error}", err=True)
        if isinstance(error, InvalidInput):
            for line in error.errors[1:SHOWN_LINES]:
                echo(f"  line {line.line}: {line.message} [{line.code}]", err=True)
        for note in getattr(error, "__notes__", ()):
            echo(note, err=True)
        sys.exit(1)
    except ModuleNotFoundError as error:
        from ragllava.models.profiles import MODEL_PACKAGES, packages_advice

        package = str(error.name).partition(".")[0]
        if package not in (*MODEL_PACKAGES, "huggingface_hub"):
            raise
        echo(f"ragllava: {packages_advice([package])}", err=True)
        sys.exit(1)
    except OSError as error:
        # A full disk, an output folder that is gone; click handles a closed pipe.
        reason = error.strerror or str(error)
        echo(f"ragllava: {error.filename}: {reason}" if error.filename else f"ragllava: {reason}", err=True)
        sys.exit(1)
