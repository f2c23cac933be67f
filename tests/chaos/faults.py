"""All faults of a chaos run; each module registers its own."""

from __future__ import annotations

from tests.chaos import intruder_faults, process_faults, work_faults
from tests.chaos.registry import FAULTS, Fault

# Each of the modules registers its faults when it is imported.
__all__ = ["FAULTS", "Fault", "intruder_faults", "process_faults", "work_faults"]
