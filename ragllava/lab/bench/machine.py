"""What was measured on: hardware, versions, settings, and how busy the machine was."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil

from ragllava.lab.bench.arithmetic import device_name
from ragllava.lab.bench.workload import Workload

_PACKAGES = ("ragllava", "torch", "transformers", "open_clip_torch", "pgvector", "celery", "faiss-cpu", "numpy")
_LABELS = {"pgvector": "pgvector (Python)"}  # Postgres's extension of that name has other versions


@dataclass(frozen=True, slots=True)
class RunDescription:
    """Beside the rows, for people and for programs."""

    hardware: dict[str, Any]
    versions: dict[str, str]
    settings: dict[str, Any]

    @property
    def title(self) -> str:
        """One line: what it ran on."""
        hardware = self.hardware
        return (
            f"{hardware['cores']} cores ({hardware['processor']}), {hardware['memory_gib']} GiB, {hardware['device']}"
        )

    @property
    def details(self) -> str:
        """The rest in one line."""
        everything = self.settings | self.versions | {"load": self.hardware["load_average"]}
        return ", ".join(f"{name} {value}" for name, value in everything.items())

    def as_json(self) -> dict[str, Any]:
        """For `--json`."""
        return {"hardware": self.hardware, "versions": self.versions, "settings": self.settings}


def describe_run(workload: Workload) -> RunDescription:
    """Of this process and machine, at the end of a run."""
    settings = workload.models.settings
    hardware = {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30),
        "device": device_name(workload.models.reranker.mllm),
        "load_average": [round(value, 2) for value in psutil.getloadavg()],
    }
    chosen = {
        "profile": workload.models.profile.name,
        "device": settings.device,
        "dtype": settings.dtype,
        "torch_threads": settings.torch_threads,
        "questions": workload.questions,
        "images": workload.images,
        "vectors": workload.vectors,
        "job_questions": workload.job_questions,
        "shape": workload.shape,
    }
    return RunDescription(hardware, _versions(), chosen)


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        label = _LABELS.get(package, package)
        try:
            found[label] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[label] = "not installed"
    return found


def _processor() -> str:
    """The processor's own name where Linux tells it."""
    path = Path("/proc/cpuinfo")
    if path.exists():
        for line in path.read_text(encoding="utf-8").splitlines():
            name, _, value = line.partition(":")
            if name.strip() == "model name":
                return value.strip()
    return platform.processor() or platform.machine()
