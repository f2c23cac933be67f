"""The ports that the servers of a home get."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Callable, Iterator

import pytest

from ragllava.local.ports import Ports


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
