"""`python -m tests.chaos`: exit code 1 when a question was lost, answered twice or answered wrongly, when the system
did not come back from a fault, when a number of the metrics differs from the tables, or when the time was over before
every fault had its turn."""

from __future__ import annotations

import argparse
import logging
import signal
import sys
import time

from rich.console import Console

from tests.chaos.counters import as_table
from tests.chaos.faults import FAULTS
from tests.chaos.run import run_chaos
from tests.chaos.system import running_system


def main() -> int:
    """Run it, and print the table."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--seed", type=int, default=1, help="of the questions, the order of faults and their victims")
    parser.add_argument("--questions", type=int, default=3_000)
    parser.add_argument("--minutes", type=float, default=8.0, help="no fault begins later")
    parser.add_argument("--only", action="append", choices=sorted(FAULTS), metavar="NAME", help="repeatable")
    parser.add_argument("--list", action="store_true", help="show the names of the faults")
    parser.add_argument("--keep", action="store_true", help="keep the folder with all logs, and show its name")
    arguments = parser.parse_args()
    logging.getLogger().addHandler(logging.NullHandler())  # what the client logs is not part of the table
    console = Console(width=160, highlight=False)
    if arguments.list:
        for fault in FAULTS.values():
            console.print(f"{fault.name:<20} {fault.what}")
        return 0
    for number in (signal.SIGINT, signal.SIGTERM):  # end the system as well; a background job ignores SIGINT otherwise
        signal.signal(number, lambda *_: sys.exit("interrupted"))
    deadline = time.monotonic() + 60.0 * arguments.minutes
    console.print("starting the system")
    with running_system(arguments.seed, keep=arguments.keep) as system:
        if arguments.keep:
            console.print(f"logs are kept in {system.home.root}")
        names = arguments.only or list(FAULTS)
        report = run_chaos(system, names, arguments.questions, deadline, console.print)
    console.print(report.table())
    console.print(as_table(report.counters))
    for line in report.lines():
        console.print(line)
    return 0 if report.is_clean else 1


if __name__ == "__main__":
    sys.exit(main())
