"""`ragllava console`: a link that signs in once."""

from __future__ import annotations

import json
import re

from ragllava.client import AccessRole, Client
from ragllava.settings import Settings
from tests.support.run_command import Run


def test_the_link_is_of_the_user_of_this_machine_and_leads_to_a_job(run: Run, settings: Settings) -> None:
    address = json.loads(run("console", "--job", "7", "--url", "https://pictures.example.org/", "--json")[1])["url"]
    match = re.fullmatch(r"https://pictures\.example\.org/console/sign-in/([\w-]{43})\?next=/console/jobs/7", address)
    assert match is not None
    with Client(settings, for_tenants=True) as client:
        _, principal = client.access.sign_in_by_link(match[1])
    assert (principal.role, principal.archives) == (AccessRole.ADMIN, None)
    assert "@" in principal.owner


def test_without_a_running_system_the_address_is_the_default_of_serve(run: Run) -> None:
    assert run("console")[1].startswith("http://127.0.0.1:8600/console/sign-in/")
