"""The paths by which sockets of a home are reached."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import pytest

from ragllava.errors import SettingsError
from ragllava.local.sockets import short_path

SOCKET = "data/postgres/.s.PGSQL.5432"


@pytest.fixture
def cache(monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of links, which is not made yet."""
    folder = Path("/var/none")  # as short as that of most people; nothing is made there
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder))
    return folder


def test_a_short_path_is_its_own(cache: Path) -> None:
    root = Path("/srv/ragllava")
    assert short_path(root, root / SOCKET) == root / SOCKET
    assert not cache.exists()


def test_a_long_path_leads_through_a_link_that_follows_the_home(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ragllava.local.sockets._links_folder", lambda: tmp_path / "links")
    monkeypatch.setattr("ragllava.local.sockets._MOST_BYTES", len(str(tmp_path)) + 60)
    root = tmp_path / ("long-" * 20)
    (root / "data").mkdir(parents=True)
    short = short_path(root, root / "data" / "redis.sock")
    assert short.parent.resolve() == root / "data" and short != root / "data" / "redis.sock"
    assert short_path(root, root / "data" / "redis.sock") == short
    link = short.parents[1]
    link.unlink()
    link.symlink_to("/elsewhere")
    assert short_path(root, root / "data" / "redis.sock").parent.resolve() == root / "data"


def test_services_that_start_at_once_make_one_link(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Threads of one process start them. Each has looked for the link before any of them makes it."""
    monkeypatch.setattr("ragllava.local.sockets._links_folder", lambda: tmp_path / "links")
    monkeypatch.setattr("ragllava.local.sockets._MOST_BYTES", len(str(tmp_path)) + 60)
    root = tmp_path / ("long-" * 20)
    (root / "data").mkdir(parents=True)
    looked, linked = Barrier(3), Barrier(3)
    make = Path.symlink_to

    def symlink_to(path: Path, target: Path) -> None:
        looked.wait(30)
        make(path, target)
        linked.wait(30)

    monkeypatch.setattr(Path, "symlink_to", symlink_to)
    with ThreadPoolExecutor(3) as pool:
        paths = [pool.submit(short_path, root, root / "data" / "redis.sock") for _ in range(3)]
        assert {path.result().parent.resolve() for path in paths} == {root / "data"}
    assert len(list((tmp_path / "links").iterdir())) == 1


def test_a_folder_of_links_that_others_can_change_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ragllava.local.sockets._links_folder", lambda: tmp_path)
    monkeypatch.setattr("ragllava.local.sockets._MOST_BYTES", len(str(tmp_path)) + 60)
    tmp_path.chmod(0o777)
    root = tmp_path / ("long-" * 20)
    with pytest.raises(SettingsError, match=r"too long .*others can write to .*set RAGLLAVA_HOME"):
        short_path(root, root / SOCKET)


def test_a_path_that_no_link_can_make_short_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/" + "c" * 100)
    root = Path("/" + "h" * 100)
    with pytest.raises(SettingsError, match="is too long for the addresses of sockets; set RAGLLAVA_HOME"):
        short_path(root, root / SOCKET)


def test_a_comma_which_separates_servers_is_avoided_by_a_link(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ragllava.local.sockets._MOST_BYTES", len(str(tmp_path)) + 60)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    root = tmp_path / "pictures, old"
    (root / "data").mkdir(parents=True)
    path = short_path(root, root / "data" / "redis.sock")
    assert "," not in str(path) and path.parent.resolve() == root / "data"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache,"))
    with pytest.raises(SettingsError, match=r"has a comma, .* set RAGLLAVA_HOME to a folder .* without a comma"):
        short_path(root, root / "data" / "redis.sock")
