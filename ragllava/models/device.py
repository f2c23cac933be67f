"""Where the networks run, in which precision, and what happens when memory runs out."""

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
            with naming_device_errors():
                results += run(batch)
            continue
        except DeviceOutOfMemory:
            if len(batch) == 1:
                raise
        # Outside the handler: the error no longer holds on to the tensors of the failed batch.
        size = len(batch) // 2
        log.warning("out of memory: batch_size=%d", size, extra={"action": "batch_halved"})
        torch.cuda.empty_cache()
    return results


@contextmanager
def naming_device_errors() -> Iterator[None]:
    """A lack of memory in the block is DeviceOutOfMemory, any other error of an accelerator DeviceLost."""
    try:
        yield
    except torch.AcceleratorError as error:
        raise DeviceLost(f"the device failed: {str(error).splitlines()[0]}") from error
    except RuntimeError as error:
        if not _is_out_of_memory(error):
            raise
        raise DeviceOutOfMemory("one item alone does not fit into the memory of the device") from error


def rows_that_fit(config: Any, plan: DevicePlan, tokens: float, wanted: int) -> int:
    """How many rows of `tokens` tokens fit into half of the memory that is free now: 1 to `wanted`.

    An estimate from the language model's `config`: a token's keys and values in all layers, and the widest of what one
    layer computes. That it was too large after all is seen by `in_batches`.
    """
    on_gpu = plan.device.type == "cuda"
    free = _free_on_gpu(plan.device) if on_gpu else psutil.virtual_memory().available
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    numbers = 2 * config.num_hidden_layers * heads * width + 8 * config.hidden_size + 3 * config.intermediate_size
    return max(1, min(wanted, int(free / 2 / (numbers * plan.dtype.itemsize * tokens))))


def _free_on_gpu(device: torch.device) -> int:
    """Bytes that the driver has left, and those that torch holds from earlier passes and gives to later ones."""
    return torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)


def _is_out_of_memory(error: BaseException) -> bool:
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
