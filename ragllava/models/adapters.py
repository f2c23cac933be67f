"""LoRA adapters on one base: reranker and generator share the weights and differ in their adapters."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from ragllava.errors import ModelUnavailable
from ragllava.models.checks import check_adapter_folder, digest, manifest
from ragllava.models.mllm import Mllm

_WEIGHTS = "adapter_model.safetensors"
_LOAD_ERRORS = (RuntimeError, ValueError, OSError, TypeError, KeyError, SafetensorError)


@dataclass(frozen=True)
class Adapter:
    """One adapter that is loaded on a base; `version` names its bytes."""

    name: str
    version: str
    _owner: AdapterSet

    def active(self) -> AbstractContextManager[None]:
        """Inside the `with` block, the base computes with this adapter."""
        return self._owner.use(self.name)


class RoleModel:
    """A base, or an adapter on it, in the role of reranker or generator."""

    def __init__(self, mllm: Mllm, adapter: Adapter | None = None, version: str | None = None) -> None:
        """Compute with the base, or with an adapter on it; `version` is its registered name, if it has one."""
        self.mllm = mllm
        self.version = version or (f"{mllm.version}+{adapter.version}" if adapter else mllm.version)
        self._adapter = adapter

    def applied(self) -> AbstractContextManager[None]:
        """Inside the `with` block, the base computes for this role."""
        return self._adapter.active() if self._adapter else nullcontext()


class AdapterSet:
    """The adapters of one base. Outside `use`, the base computes as if there were none.

    Not thread-safe: the adapter in use applies to all users of the base.
    """

    def __init__(self, mllm: Mllm, cache_folder: Path) -> None:
        """`cache_folder` keeps the hashes of files (checks.manifest)."""
        self._mllm = mllm
        self._cache_folder = cache_folder
        self._stack: list[str | None] = [None]
        self._adapters: dict[str, Adapter] = {}
        self._peft: Any = None

    def add(self, name: str, folder: Path) -> Adapter:
        """Load the adapter in `folder`, without using it. Raises ModelUnavailable."""
        from peft import LoraConfig

        if name in self._adapters:
            raise ModelUnavailable(f"an adapter named {name!r} is loaded already")
        values = check_adapter_folder(folder)
        values.pop("peft_type")
        try:
            self._inject(name, LoraConfig(**values, inference_mode=True), folder)
        except _LOAD_ERRORS as error:
            raise ModelUnavailable(f"the adapter in {folder} does not fit {self._mllm.version}: {error}") from error
        finally:
            self._activate(self._stack[-1])
        version = f"{name}@{digest(manifest(folder, self._cache_folder))[:8]}"
        self._adapters[name] = Adapter(name, version, self)
        return self._adapters[name]

    def remove(self, name: str) -> None:
        """Evict an adapter that is not in use. Raises ModelUnavailable.

        Without adapters, the base has no LoRA layers.
        """
        if name not in self._adapters or name in self._stack:
            raise ModelUnavailable(f"the adapter {name!r} cannot be evicted: it is not loaded, or in use")
        del self._adapters[name]
        if not self._adapters:
            self._peft.unload()
            self._peft = None
            return
        # peft warns if it has to choose another adapter.
        self._peft.set_adapter(next(iter(self._adapters)), inference_mode=True)
        self._peft.delete_adapter(name)
        self._activate(self._stack[-1])

    @contextmanager
    def use(self, name: str | None) -> Iterator[None]:
        """Inside the `with` block, the base computes with this adapter, or with none; afterwards as before."""
        if name is not None and name not in self._adapters:
            raise ModelUnavailable(f"no adapter named {name!r} is loaded")
        self._stack.append(name)
        self._activate(name)
        try:
            yield
        finally:
            self._stack.pop()
            self._activate(self._stack[-1])

    def _inject(self, name: str, config: Any, folder: Path) -> None:
        from peft import PeftModel, set_peft_model_state_dict
        from safetensors.torch import load_file

        weights = load_file(folder / _WEIGHTS)
        if self._peft is None:
            with warnings.catch_warnings():
                # peft reads an attribute that transformers has renamed; users can ignore this.
                warnings.filterwarnings("ignore", ".*is_gradient_checkpointing", FutureWarning)
                # Adds LoRA layers to the base in place, so that all users of the network have them.
                self._peft = PeftModel(self._mllm.network, config, adapter_name=name, autocast_adapter_dtype=False)
        else:
            self._peft.add_adapter(name, config, autocast_adapter_dtype=False)
        try:
            report = set_peft_model_state_dict(self._peft, weights, adapter_name=name)
            missing = [key for key in report.missing_keys if f".{name}." in key]
            if missing or report.unexpected_keys:
                raise ValueError(f"{len(missing)} weights are missing, {len(report.unexpected_keys)} are not expected")
        except _LOAD_ERRORS:
            self._peft.delete_adapter(name)
            raise
        self._peft.eval()

    def _activate(self, name: str | None) -> None:
        if self._peft is None:
            return
        if name is None:
            self._peft.base_model.disable_adapter_layers()
        else:
            self._peft.base_model.enable_adapter_layers()
            self._peft.set_adapter(name, inference_mode=True)
