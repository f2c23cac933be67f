"""The device and precision of the networks, and what happens when memory runs out."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import psutil
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

    Raises SettingsError when the settings name a device that this machine does not have.
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
        raise SettingsError(f"RAGLLAVA_DEVICE={wanted}: use auto, cpu, cuda or cuda:<number>") from None
    if device.type not in ("cpu", "cuda"):
        raise SettingsError(f"RAGLLAVA_DEVICE={wanted}: use auto, cpu, cuda or cuda:<number>")
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

    When memory runs out, the batch is halved for the rest of the call. Raises DeviceOutOfMemory when one item alone
    does not fit, and DeviceLost for any other error of an accelerator, whose context cannot recover.
    """
    results: list[Result] = []
    size = batch_size
    while len(results) < len(items):
        batch = items[len(results) : len(results) + size]
        try:
            with naming_device_errors():
                results += run(batch)
            continue
        except DeviceOutOfMemory:
            if len(batch) == 1:
                raise
        # Outside the handler, where the error no longer references the tensors of the failed batch.
        size = len(batch) // 2
        log.warning("out of memory: batch_size=%d", size, extra={"action": "batch_halved"})
        torch.cuda.empty_cache()
    return results


@contextmanager
def naming_device_errors() -> Iterator[None]:
    """Raise DeviceOutOfMemory for a lack of memory in the block, DeviceLost for other errors of an accelerator."""
    try:
        yield
    except torch.AcceleratorError as error:
        raise DeviceLost(f"the device failed: {str(error).splitlines()[0]}") from error
    except RuntimeError as error:
        # CUDA has an error type of its own; the CPU allocator has only a message.
        if not isinstance(error, torch.OutOfMemoryError) and "can't allocate memory" not in str(error):
            raise
        raise DeviceOutOfMemory("one item alone does not fit into the memory of the device") from error


def free_memory(device: torch.device) -> int:
    """Free bytes of memory; on a GPU, including those that torch keeps from earlier passes for later ones."""
    if device.type != "cuda":
        return psutil.virtual_memory().available
    return torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)


def to_device(inputs: dict[str, Any], plan: DevicePlan) -> dict[str, Any]:
    """Move tensors to the device; floating-point tensors (pixels) are converted to the network's precision."""

    def move(value: Any) -> Any:
        if not isinstance(value, torch.Tensor):
            return value
        return value.to(plan.device, dtype=plan.dtype if value.is_floating_point() else None, non_blocking=True)

    return {name: move(value) for name, value in inputs.items()}
