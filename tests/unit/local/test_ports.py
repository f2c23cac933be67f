"""The ports that the servers of a home get."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from pydantic import SecretStr

from ragllava.local.ports import Ports
from ragllava.local.services import LocalServices, running_services
from ragllava.settings import Settings


@pytest.fixture
def home() -> Iterator[Callable[[], Ports]]:
    """Makes the ports of another home; all are released at the end."""
    made: list[Ports] = []

    def make() -> Ports:
        made.append(Ports())
        return made[-1]

    yield make
    for ports in made:
        ports.release()


def test_kept_ports_are_chosen_again_and_none_twice(home: Callable[[], Ports]) -> None:
    ports = home()
    first = ports.choose([], 3)
    assert not set(first) & set(ports.choose(first, 3)), "they are reserved"
    ports.release()
    assert ports.choose(first, 3) == first
    ports.release()
    assert ports.choose(first, 2) != first, "another number of ports was asked for"


def test_ports_with_twins_do_not_meet(home: Callable[[], Ports]) -> None:
    reserved = home()
    ports = reserved.choose([], 5, twin=10_000) + reserved.choose([], 5, twin=10_000)
    assert len({*ports, *(port + 10_000 for port in ports)}) == 20
    reserved.release()
    with socket.socket() as occupant:
        occupant.bind(("127.0.0.1", ports[0] + 10_000))
        assert reserved.choose(ports[:1], 1, twin=10_000) != ports[:1]


def test_homes_that_start_at_the_same_time_get_different_ports(home: Callable[[], Ports]) -> None:
    """No server listens yet when the second home chooses."""
    first, second = home(), home()
    [port] = first.choose([], 1)
    assert second.choose([port], 1) != [port]
    first.release()
    assert second.choose([port], 1) == [port]


def test_a_reservation_ends_with_its_process(home: Callable[[], Ports]) -> None:
    program = """
from ragllava.local.ports import Ports
ports = Ports()
print(*ports.choose([], 3), flush=True)
input()
"""
    with subprocess.Popen([sys.executable, "-c", program], stdin=-1, stdout=-1, text=True) as other:
        assert other.stdin is not None and other.stdout is not None
        chosen = [int(port) for port in other.stdout.readline().split()]
        ports = home()
        assert ports.choose(chosen, 3) != chosen
        other.stdin.close()
        other.wait()
    assert ports.choose(chosen, 3) == chosen


def test_a_run_without_receiver_and_api_keeps_their_ports(tmp_path: Path) -> None:
    """A store elsewhere goes on to post its events to the same port."""
    settings = Settings(
        home=tmp_path,
        database_url=SecretStr("postgresql://db.example.org/ragllava"),
        redis_url=SecretStr("redis://redis.example.org"),
        s3_endpoint="s3.example.org:9000",
    )  # so nothing is started
    chosen = []
    for _ in range(2):
        services = LocalServices(settings, events=True)
        services.start()
        chosen.append((services.receiver, services.api))
        assert services.serves and None not in chosen[0]
        services.stop()
        with running_services(settings):  # as `ragllava restore` has
            assert not LocalServices(settings).serves
    assert chosen[0] == chosen[1]
