"""`ragllava mailings …`: what was sent to people by the rules of notifications, what waits, and what failed."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from ragllava.cli.options import ROW_ID, Commands, EnumChoice, as_time, connected, json_option, print_rows
from ragllava.cli.terminal import echo
from ragllava.records import MailingState

if TYPE_CHECKING:
    from ragllava.client import MailingView


@click.group(cls=Commands)
def mailings() -> None:
    """Mails and webhooks of notifications."""


@mailings.command("list")
@click.option("--state", type=EnumChoice(MailingState), help="Only those in this state.")
@click.option("--limit", type=click.IntRange(1, 10_000), default=100, show_default=True, help="At most so many.")
@json_option
def list_mailings(state: MailingState | None, limit: int, as_json: bool) -> None:
    """The newest mails and webhooks: what became of them, and the error of the last attempt."""

    def cells(view: MailingView) -> tuple[object, ...]:
        when = f"next try {as_time(view.next_try_at)}" if view.next_try_at else as_time(view.delivered_at)
        return view.mailing_id, view.event, view.job_id, view.target, view.state, view.attempts, when, view.error

    with connected() as client:
        views = client.system.mailings(limit, state)
    columns = ("id", "event", "job", "to", "state", "tries", "when", "last error")
    none = "nothing was sent, and nothing waits; RAGLLAVA_NOTIFY_RULES says who is told of what"
    print_rows(views, columns, map(cells, views), as_json, none=f"no mailing is {state.value}" if state else none)


@mailings.command()
@click.argument("mailing_ids", nargs=-1, type=ROW_ID, metavar="[ID]...")
@click.option("--all", "all_given_up", is_flag=True, help="All that were given up.")
def retry(mailing_ids: tuple[int, ...], all_given_up: bool) -> None:
    """Send mails and webhooks again that wait or were given up.

    A mail of which nobody knows whether it has arrived may then arrive twice.
    """
    if bool(mailing_ids) == all_given_up:
        raise click.UsageError("name the ids that `ragllava mailings list` shows, or --all")
    with connected() as client:
        number = client.system.send_mailings_again(None if all_given_up else mailing_ids)
    echo(
        f"{number} of them at the next tick; `ragllava mailings list` shows the outcome"
        if number
        else "none was given up"
    )
