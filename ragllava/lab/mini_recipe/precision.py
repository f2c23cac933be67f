"""The precision in which the mini models are trained on a CPU."""

from __future__ import annotations

from typing import Any

import torch


def training_precision(wanted: str = "auto") -> torch.dtype:
    """`wanted` is float32, bfloat16 or auto: bfloat16 if this CPU has instructions for it, else float32.

    Without them a step takes twice as long in bfloat16 as in float32, and the picture tower eleven times as long.
    """
    if wanted != "auto":
        precision: torch.dtype = getattr(torch, wanted)
        return precision
    # An early torch cannot tell.
    capabilities: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    has_units = any(capabilities.get(name) for name in ("amx_bf16", "avx512_bf16", "bf16"))
    return torch.bfloat16 if has_units else torch.float32


def autocast(precision: torch.dtype) -> torch.autocast:
    """A block in which the networks compute in this precision, with float32 weights."""
    return torch.autocast("cpu", torch.bfloat16, enabled=precision == torch.bfloat16)
