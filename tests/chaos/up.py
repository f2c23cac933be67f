"""`ragllava up` whose answer workers need no models, and whose workers reach the services through proxies.

`CHAOS_WORKERS` holds the variables of the workers as a JSON object.
"""

from __future__ import annotations

import json
import os

from ragllava.cli import services
from ragllava.cli.operate import worker_specs
from ragllava.cli.terminal import echo
from ragllava.local.fleet import WorkerSpec
from ragllava.settings import Settings, load_settings

ANSWER_WORKERS = ("answer1", "answer2")
WORKERS = ("ingest", *ANSWER_WORKERS, "maint")


def chaos_specs(settings: Settings) -> list[WorkerSpec]:
    """The usual workers but the one that trains, each with a clock that can be skewed."""
    environment = json.loads(os.environ["CHAOS_WORKERS"])
    specs = []
    for spec in worker_specs(settings, answer_workers=len(ANSWER_WORKERS)):
        if spec.name in WORKERS:
            modules = ["tests.chaos.clock"] + ["tests.chaos.worker"] * (spec.name in ANSWER_WORKERS)
            command = (*spec.command, "-I", ",".join(modules))
            specs.append(WorkerSpec(spec.name, command, {**spec.environment, **environment}))
    return specs


if __name__ == "__main__":
    services.up(load_settings(), chaos_specs, echo)
