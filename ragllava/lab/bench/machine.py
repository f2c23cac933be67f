"""What a run measured on: hardware, versions, settings, and the load of the machine."""

from __future__ import annotations

import os
import platform
import re
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil
import torch

from ragllava.lab.bench.workload import Workload

_PACKAGES = ("ragllava", "torch", "transformers", "open_clip_torch", "pgvector", "celery", "faiss-cpu", "numpy")
_LABELS = {"pgvector": "pgvector (Python)"}  # the Postgres extension of that name has other versions


def describe_run(workload: Workload) -> dict[str, dict[str, Any]]:
    """`hardware`, `versions` and `settings` of this process and machine, at the end of a run."""
    device = workload.models.reranker.mllm.network.device
    hardware = {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "load_average": [round(value, 2) for value in psutil.getloadavg()],
    }
    chosen = {"profile": workload.models.profile.name}
    chosen |= {name: getattr(workload.models.settings, name) for name in ("device", "dtype", "torch_threads")}
    chosen |= {name: getattr(workload, name) for name in ("questions", "images", "vectors", "job_questions", "shape")}
    return {"hardware": hardware, "versions": _versions(), "settings": chosen}


def run_title(run: dict[str, dict[str, Any]]) -> str:
    """The hardware in one line."""
    return "{cores} cores ({processor}), {memory_gib} GiB, {device}".format(**run["hardware"])


def run_details(run: dict[str, dict[str, Any]]) -> str:
    """Settings, versions and load in one line."""
    everything = run["settings"] | run["versions"] | {"load": run["hardware"]["load_average"]}
    return ", ".join(f"{name} {value}" for name, value in everything.items())


def _versions() -> dict[str, str]:
    versions = {"python": platform.python_version()}
    for package in _PACKAGES:
        label = _LABELS.get(package, package)
        try:
            versions[label] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[label] = "not installed"
    return versions


def _processor() -> str:
    """The name of the processor, as Linux reports it; elsewhere as Python does."""
    path = Path("/proc/cpuinfo")
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    name = re.search(r"^model name\s*:\s*(.*\S)", text, re.MULTILINE)
    return name[1] if name else platform.processor() or platform.machine()
