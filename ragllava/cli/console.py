"""`ragllava console`: a link that signs in to the console."""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import quote

import click

from ragllava.cli.options import connected, json_option, print_result

if TYPE_CHECKING:
    from ragllava.settings import Settings


@click.command()
@click.option("--url", metavar="URL", help="Where the console is reached.  [default: that of `ragllava up` or `serve`]")
@click.option("--job", type=click.IntRange(1), help="Lead to this job.")
@json_option
def console(url: str | None, job: int | None, as_json: bool) -> None:
    """Print a link that signs you in to the console, without a key: once, within ten minutes, as an administrator.

    Whoever has the link is let in, so give it to nobody. People without access to this machine sign in with a key of
    `ragllava keys create`.
    """
    from ragllava.settings import load_settings

    settings = load_settings()
    with connected() as client:
        link = client.access.make_sign_in_link()
    address = f"{url.rstrip('/') if url else base_url(settings)}/console/sign-in/{link}"
    if job is not None:
        address += f"?next={quote(job_path(job))}"
    print_result({"url": address}, [address], as_json)


def base_url(settings: Settings) -> str:
    """Where `ragllava up` of this home serves the console, or where `ragllava serve` does by default."""
    from ragllava.local.ports import API_PORT
    from ragllava.local.services import LocalServices

    address = LocalServices(settings).api
    return f"http://{address.shown if address is not None else f'127.0.0.1:{API_PORT}'}"


def job_path(job_id: int) -> str:
    """The page of a job."""
    return f"/console/jobs/{job_id}"
