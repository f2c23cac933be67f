"""The client without services: its groups of methods, their contracts and docs/python-api.md."""

from __future__ import annotations

import inspect
import os
import re
from collections.abc import Iterator
from typing import Any

import pytest

from ragllava import Client
from ragllava.client import pause_between_views
from ragllava.client.connections import Namespace
from ragllava.errors import SettingsError
from ragllava.settings import Settings
from tests.support.pages import read_page

# For the server and its console alone; docs/http-api.md has what they do.
_OF_THE_SERVER = {"access", "batches", "files", "health", "metrics"}
GROUPS = (
    "archives.indexes",
    *(
        name
        for name, value in vars(Client(Settings())).items()
        if isinstance(value, Namespace) and name not in _OF_THE_SERVER
    ),
)


def methods(group: str) -> Iterator[tuple[str, Any]]:
    """The public methods of a group, by name."""
    namespace: Any = Client(Settings())
    for name in group.split("."):
        namespace = getattr(namespace, name)
    return ((name, m) for name, m in inspect.getmembers(namespace, inspect.ismethod) if not name.startswith("_"))


def documented(group: str) -> list[tuple[str, list[str]]]:
    """The methods in the page's table of a group, each with its parameters."""
    table = read_page("docs/python-api.md").section(f"client.{group}").prose
    cells = re.findall(r"^\| (`.*?) \|", table, re.MULTILINE)
    calls = re.findall(r"`(\w+)\((.*?)\)`", " ".join(cells))
    return [(name, re.findall(r"\w+", parameters)) for name, parameters in calls]


@pytest.mark.parametrize("group", GROUPS)
def test_the_page_lists_every_method_once(group: str) -> None:
    assert sorted(name for name, _ in documented(group)) == sorted(name for name, _ in methods(group))


@pytest.mark.parametrize("group", GROUPS)
def test_the_page_names_parameters_of_the_methods_and_all_that_are_required(group: str) -> None:
    signatures = {name: inspect.signature(method).parameters for name, method in methods(group)}
    for name, parameters in documented(group):
        required = [p.name for p in signatures[name].values() if p.default is p.empty]
        assert parameters[: len(required)] == required, name
        assert set(parameters) <= set(signatures[name]), name


@pytest.mark.parametrize("group", GROUPS)
def test_every_method_states_its_contract(group: str) -> None:
    assert [name for name, method in methods(group) if not (method.__doc__ or "").strip()] == []


def test_without_settings_those_of_the_environment_are_used(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith("RAGLLAVA_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("RAGLLAVA_TOP_K", "7")
    with Client() as client:
        assert client.settings.top_k == 7
    monkeypatch.setenv("RAGLLAVA_TPO_K", "7")
    with pytest.raises(SettingsError, match="did you mean RAGLLAVA_TOP_K"):
        Client()


def test_a_client_that_was_not_used_closes_nothing() -> None:
    with Client(Settings()) as client:
        pass
    assert "engine" not in vars(client)


@pytest.mark.parametrize(("took_s", "pause_s"), [(0.001, 1.0), (0.05, 1.0), (0.5, 10.0), (3.0, 60.0)])
def test_a_follower_of_a_large_job_looks_seldom(took_s: float, pause_s: float) -> None:
    assert pause_between_views(took_s, 1.0) == pytest.approx(pause_s)
