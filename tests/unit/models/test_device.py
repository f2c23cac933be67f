"""Device and precision, and what happens when memory runs out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from ragllava.errors import DeviceLost, DeviceOutOfMemory, SettingsError
from ragllava.models.device import in_batches, plan_device
from ragllava.settings import Settings


@pytest.mark.parametrize("message", ["CUDA", "CPU"])
def test_a_batch_that_does_not_fit_is_halved_and_stays_small(message: str) -> None:
    sizes = []

    def run(batch: Sequence[int]) -> list[int]:
        sizes.append(len(batch))
        if len(batch) > 2:
            if message == "CUDA":
                raise torch.OutOfMemoryError("out of memory")
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")
        return [item * item for item in batch]

    assert in_batches(range(10), 8, run) == [item * item for item in range(10)]
    assert sizes == [8, 4, 2, 2, 2, 2, 2]


def test_one_item_that_does_not_fit_is_an_error() -> None:
    def run(_: Sequence[int]) -> list[int]:
        raise torch.OutOfMemoryError("out of memory")

    with pytest.raises(DeviceOutOfMemory):
        in_batches([1, 2, 3], 3, run)


def test_a_failed_accelerator_is_lost_and_not_a_matter_of_batch_size() -> None:
    def run(_: Sequence[int]) -> list[int]:
        raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered\nmore")

    with pytest.raises(DeviceLost, match=r"illegal memory access was encountered$"):
        in_batches([1, 2, 3], 3, run)


def test_other_errors_pass_through() -> None:
    def run(_: Sequence[int]) -> list[int]:
        raise RuntimeError("shapes do not match")

    with pytest.raises(RuntimeError, match="shapes"):
        in_batches([1], 1, run)


@pytest.mark.parametrize("device", ["cuda:99", "nonsense", "mps"])
def test_a_device_that_is_not_there_is_told(tmp_path: Path, device: str) -> None:
    with pytest.raises(SettingsError, match=f"RAGLLAVA_DEVICE={device}"):
        plan_device(Settings(home=tmp_path, device=device))


def test_the_processor_computes_in_float32_unless_told(tmp_path: Path) -> None:
    plan = plan_device(Settings(home=tmp_path, device="cpu"))
    assert (plan.device.type, plan.dtype, plan.reason) == ("cpu", torch.float32, "no CUDA")
    assert plan_device(Settings(home=tmp_path, device="cpu", dtype="bfloat16")).dtype == torch.bfloat16
