"""`ragllava models …`: model versions, their figures and the champions."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from ragllava.cli.options import EnumChoice, as_time, connected, json_option, print_json, print_table
from ragllava.records import Role

if TYPE_CHECKING:
    from ragllava.client import Comparison, VersionView

role_option = click.option("--role", type=EnumChoice(Role), help="Only versions of this role.")


@click.group()
def models() -> None:
    """Model versions of the profile: list, compare, promote, roll back.

    A name may be shortened to its beginning, as long as that fits one version.
    """


@models.command("list")
@role_option
@json_option
def list_models(role: Role | None, as_json: bool) -> None:
    """All versions, the newest first."""
    from rich.table import Table

    with connected() as client:
        versions = client.models.list(role)
    if as_json:
        print_json([view.as_json() for view in versions])
        return
    if not versions:
        click.echo("no version yet; the first worker that answers registers the base models: `ragllava up`")
        return
    table = Table("role", "version", "state", "threshold", "base", "last promoted", box=None)
    for view in versions:
        version = view.version
        threshold = "-" if version.threshold is None else f"{version.threshold:.4g}"
        base = "itself" if version.adapter_sha256 is None else version.base_name
        table.add_row(version.role.value, version.name, view.state, threshold, base, as_time(view.promoted_at))
    print_table(table)


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
    if as_json:
        print_json(view.as_json())
        return
    for label, text in facts(view):
        click.echo(f"{label:<10} {text}")
    _print_gate(view)
    if plot is not None:
        click.echo(f"{plot}: open it in a browser")


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
        click.echo(f"{version.name} is the champion {version.role} already")
        return
    click.echo(
        f"{version.name} is the champion {version.role} from the next shard on{_with_threshold(version.threshold)}"
    )
    gate = (version.training or {}).get("gate") or {}
    if gate.get("passed") is False:
        click.echo("note: its gate refused it; `ragllava models rollback` undoes this", err=True)


@models.command()
@click.option("--role", required=True, type=EnumChoice(Role), help="The role whose champion is replaced.")
def rollback(role: Role) -> None:
    """Promote the version that the champion replaced, with its threshold; again, the version before that."""
    with connected() as client:
        version = client.models.rollback(role)
    click.echo(f"{version.name} is the champion {role} again{_with_threshold(version.threshold)}")


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
    if as_json:
        print_json(comparison.as_json())
    else:
        _print_comparison(comparison)


def _with_threshold(threshold: float | None) -> str:
    return "" if threshold is None else f", threshold {threshold:.4g}"


def _print_gate(view: VersionView) -> None:
    from rich.table import Table

    gate = (view.version.training or {}).get("gate") or {}
    if not gate.get("figures"):
        return
    table = Table("condition", "questions", "champion", "this version", "difference", "from", "to", box=None)
    for figure in gate["figures"]:
        numbers = [f"{figure[name]:.4f}" for name in ("champion", "challenger", "difference", "low", "high")]
        table.add_row(figure["name"], str(figure["questions"]), *numbers)
    print_table(table)


def _print_comparison(comparison: Comparison) -> None:
    from rich.table import Table

    table = Table("figure", comparison.first, comparison.second, "difference", box=None)
    for figure in comparison.figures:
        values = (figure.first, figure.second, figure.difference)
        table.add_row(figure.name, *("-" if value is None else f"{value:.4f}" for value in values))
    print_table(table)
    click.echo(comparison.note)
