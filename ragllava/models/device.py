"""Where the networks run, in which precision, and what happens when memory runs out."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch

from ragllava.errors import DeviceLost, DeviceOutOfMemory, SettingsError
from ragllava.settings import Settings

log = logging.getLogger(__name__)

Item = TypeVar("Item")
Result = TypeVar("Result")
_BFLOAT16_CAPABILITY = 8  # compute capability of the first NVIDIA generation (Ampere) with bfloat16 units


@dataclass(frozen=True, slots=True)
class DevicePlan:
    """The device and precision of all networks of this process."""

    device: torch.device
    dtype: torch.dtype
    reason: str


def plan_device(settings: Settings) -> DevicePlan:
    """Choose device and precision, log both with the reason, and set torch's thread count.

    Raises SettingsError when the settings name a device that this machine lacks.
    """
    if settings.torch_threads:
        torch.set_num_threads(settings.torch_threads)
    device = _choose_device(settings.device)
    dtype, reason = _choose_dtype(settings.dtype, device)
    log.info(
        "device=%s dtype=%s (%s)", device, str(dtype).removeprefix("torch."), reason, extra={"action": "device_chosen"}
    )
    return DevicePlan(device, dtype, reason)


def _choose_device(wanted: str) -> torch.device:
    if wanted == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(wanted)
    except RuntimeError:
        raise SettingsError(f"RAGLLAVA_DEVICE={wanted}: say auto, cpu, cuda or cuda:<number>") from None
    if device.type not in ("cpu", "cuda"):
        raise SettingsError(f"RAGLLAVA_DEVICE={wanted}: say auto, cpu, cuda or cuda:<number>")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise SettingsError(f"RAGLLAVA_DEVICE={wanted}: this machine has {torch.cuda.device_count()} CUDA devices")
    return device


def _choose_dtype(wanted: str, device: torch.device) -> tuple[torch.dtype, str]:
    if wanted != "auto":
        dtype: torch.dtype = getattr(torch, wanted)
        return dtype, "RAGLLAVA_DTYPE"
    if device.type == "cpu":
        return torch.float32, "no CUDA"
    if torch.cuda.get_device_capability(device)[0] >= _BFLOAT16_CAPABILITY:
        return torch.bfloat16, "CUDA with bfloat16"
    return torch.float16, "CUDA without bfloat16"


def in_batches(
    items: Sequence[Item], batch_size: int, run: Callable[[Sequence[Item]], Sequence[Result]]
) -> list[Result]:
    """`run` over consecutive batches, results in order.

    When memory runs out the batch is halved, for the rest of the call too, down to one item; then
    DeviceOutOfMemory is raised. Any other error of an accelerator is DeviceLost: its context never heals.
    """
    results: list[Result] = []
    size = batch_size
    while len(results) < len(items):
        batch = items[len(results) : len(results) + size]
        try:
            results += run(batch)
            continue
        except torch.AcceleratorError as error:
            raise DeviceLost(f"the device failed: {str(error).splitlines()[0]}") from error
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            if len(batch) == 1:
                raise DeviceOutOfMemory("one item alone does not fit into the memory of the device") from error
        # Outside the handler: the error no longer holds on to the tensors of the failed batch.
        size = len(batch) // 2
        log.warning("out of memory: batch_size=%d", size, extra={"action": "batch_halved"})
        torch.cuda.empty_cache()
    return results


def is_out_of_memory(error: BaseException) -> bool:
    """CUDA has its own error type; the CPU allocator only a message."""
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def to_device(inputs: dict[str, Any], plan: DevicePlan) -> dict[str, Any]:
    """Move tensors; floating ones (pixels) take the network's precision."""
    moved: dict[str, Any] = {}
    for name, value in inputs.items():
        if isinstance(value, torch.Tensor):
            dtype = plan.dtype if value.is_floating_point() else None
            moved[name] = value.to(plan.device, dtype=dtype, non_blocking=True)
        else:
            moved[name] = value
    return moved
