"""`ragllava keys …`: who may use the HTTP API."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from ragllava.cli.options import Commands, as_time, connected, json_option, print_result, print_rows
from ragllava.cli.terminal import echo

if TYPE_CHECKING:
    from ragllava.client import KeyView

_ROLES = ("read", "ask", "write", "review", "admin")


@click.group(cls=Commands)
def keys() -> None:
    """Keys of the HTTP API."""


@keys.command()
@click.argument("name")
@click.option("--role", default="ask", show_default=True, type=click.Choice(_ROLES), help="Each includes those before.")
@click.option("--archive", "archives", multiple=True, metavar="NAME", help="Only these archives.  [default: all]")
@click.option("--days", type=click.FloatRange(min=0, min_open=True), help="Until the key expires.  [default: never]")
@click.option("--questions-per-day", type=click.IntRange(0), help="0: no limit.  [default: the setting]")
@click.option("--open-jobs", type=click.IntRange(0), help="0: no limit.  [default: the setting]")
@click.option("--stored-mib", type=click.IntRange(0), help="0: no limit.  [default: the setting]")
@click.option("--requests-per-minute", type=click.IntRange(0), help="0: no limit.  [default: the setting]")
@json_option
def create(
    name: str, role: str, archives: tuple[str, ...], days: float | None, as_json: bool, **limits: int | None
) -> None:
    """Make a key and print it. It is shown only now: the database has its hash."""
    from ragllava.client import AccessRole, Limits, NewKey

    new = NewKey(name, AccessRole(role), archives or None, days, Limits(**limits))
    with connected() as client:
        key, view = client.access.create_key(new)
    print_result({"key": key, **_as_json(view)}, [key], as_json)


@keys.command("list")
@json_option
def list_keys(as_json: bool) -> None:
    """All keys by their visible prefix, also those that expired or were revoked."""

    def cells(view: KeyView) -> tuple[object, ...]:
        archives = "all" if view.archives is None else ", ".join(view.archives)
        ends = f"revoked {as_time(view.revoked_at)}" if view.revoked_at else as_time(view.expires_at)
        return view.prefix, view.name, view.role.value, archives, as_time(view.created_at), ends

    with connected() as client:
        views = client.access.list_keys()
    columns = ("prefix", "name", "role", "archives", "created", "ends")
    none = "no key yet; `ragllava keys create NAME` makes one"
    print_rows([_as_json(view) for view in views], columns, map(cells, views), as_json, none=none)


@keys.command()
@click.argument("prefix")
def revoke(prefix: str) -> None:
    """End a key at once."""
    with connected() as client:
        client.access.revoke_key(prefix)
    echo(f"{prefix} is revoked")


def _as_json(view: KeyView) -> dict[str, object]:
    from ragllava.json_records import to_json

    shown: dict[str, object] = to_json(view)
    return shown
