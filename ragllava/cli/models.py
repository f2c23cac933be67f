"""`ragllava models …`: model versions, their figures and the champions."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from ragllava.cli.options import (
    Commands,
    EnumChoice,
    as_time,
    connected,
    json_option,
    make_table,
    print_result,
    print_rows,
)
from ragllava.cli.terminal import echo
from ragllava.records import Role

if TYPE_CHECKING:
    from rich.table import Table

    from ragllava.client import VersionView

role_option = click.option("--role", type=EnumChoice(Role), help="Only versions of this role.")


@click.group(cls=Commands)
def models() -> None:
    """Model versions of the profile: list, compare, promote, roll back.

    A name may be shortened to its beginning, as long as that fits one version.
    """


@models.command("list")
@role_option
@json_option
def list_models(role: Role | None, as_json: bool) -> None:
    """All versions, the newest first."""

    def cells(view: VersionView) -> tuple[object, ...]:
        version = view.version
        threshold = None if version.threshold is None else f"{version.threshold:.4g}"
        base = "itself" if version.adapter_sha256 is None else version.base_name
        return version.role, version.name, view.state, threshold, base, as_time(view.promoted_at)

    columns = ("role", "version", "state", "threshold", "base", "last promoted")
    none = "no version yet; the first worker that answers registers the base models: `ragllava up`"
    with connected() as client:
        versions = client.models.list(role)
    print_rows(versions, columns, map(cells, versions), as_json, none=none)


@models.command("show")
@click.argument("name")
@role_option
@click.option("--plot", type=click.Path(path_type=Path), help="Draw its curves into this .svg or .html file.")
@json_option
def show_model(name: str, role: Role | None, plot: Path | None, as_json: bool) -> None:
    """One version: its base, its threshold, its training and the figures of its gate."""
    from ragllava.cli.model_pages import draw, facts
    from ragllava.errors import UsageError

    if plot is not None and plot.suffix not in (".svg", ".html"):
        raise UsageError(f"{plot}: curves are drawn as .svg or .html; give the file one of these endings")
    with connected() as client:
        view = client.models.get(name, role)
    if plot is not None:
        plot.write_text(draw(view, as_page=plot.suffix == ".html"), encoding="utf-8")
    drawn = [f"{plot}: open it in a browser"] if plot is not None else []
    print_result(view, [*(f"{label:<10} {text}" for label, text in facts(view)), *_gate_tables(view), *drawn], as_json)


@models.command()
@click.argument("name")
@role_option
@click.option("--follow", is_flag=True, help="Wait for the job, with a progress bar.")
@json_option
def judge(name: str, role: Role | None, follow: bool, as_json: bool) -> None:
    """Evaluate a refused version again, on the labels of now; it is promoted if it passes.

    It counts as one more try against the champion.
    """
    from ragllava.cli.progress import follow as follow_job

    with connected() as client:
        job_id = client.models.judge(name, role)
        follow_job(client, job_id, "evaluation", wait=follow, as_json=as_json)


@models.command()
@click.argument("name")
@role_option
@click.option("--reason", default="promoted by hand", show_default=True, help="Stored with the promotion.")
def promote(name: str, role: Role | None, reason: str) -> None:
    """Make a version champion; workers load it at their next shard, with its own threshold."""
    with connected() as client:
        view = client.models.get(name, role)
        version = client.models.promote(view.version.name, view.version.role, reason)
    if view.state == "champion":
        echo(f"{version.name} is the champion {version.role} already")
        return
    echo(f"{version.name} is the champion {version.role} from the next shard on{_with_threshold(version.threshold)}")
    gate = (version.training or {}).get("gate") or {}
    if gate.get("passed") is False:
        echo("note: its gate refused it; `ragllava models rollback` undoes this", err=True)


@models.command()
@click.option("--role", required=True, type=EnumChoice(Role), help="The role whose champion is replaced.")
def rollback(role: Role) -> None:
    """Promote the version that the champion replaced, with its threshold; again, the version before that."""
    with connected() as client:
        version = client.models.rollback(role)
    echo(f"{version.name} is the champion {role} again{_with_threshold(version.threshold)}")


@models.command()
@click.argument("first")
@click.argument("second")
@role_option
@json_option
def compare(first: str, second: str, role: Role | None, as_json: bool) -> None:
    """The figures of two versions beside each other, and their differences.

    A name that fits versions of both roles is taken in the role of the other name.
    """
    with connected() as client:
        comparison = client.models.compare(first, second, role)
    numbers = [
        (figure.name, *map(_number, (figure.first, figure.second, figure.difference))) for figure in comparison.figures
    ]
    columns = ("figure", comparison.first, comparison.second, "difference")
    print_result(comparison, [make_table(columns, numbers, box=None), comparison.note], as_json)


def _with_threshold(threshold: float | None) -> str:
    return "" if threshold is None else f", threshold {threshold:.4g}"


def _number(value: float | None) -> str | None:
    return None if value is None else f"{value:.4f}"


def _gate_tables(view: VersionView) -> list[Table]:
    """The table of the gate's figures, if the version has any."""
    figures = ((view.version.training or {}).get("gate") or {}).get("figures") or []
    titles = ("condition", "questions", "champion", "this version", "difference", "from", "to")
    names = ("champion", "challenger", "difference", "low", "high")
    rows = [(figure["name"], figure["questions"], *(_number(figure[name]) for name in names)) for figure in figures]
    return [make_table(titles, rows, box=None)] if rows else []
