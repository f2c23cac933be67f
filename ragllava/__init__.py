"""RagLLaVA: bulk question answering over image archives (after arXiv 2407.21439).

`Client` and the records that its methods take are loaded when they are first used, so `import ragllava` is quick.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ragllava.client import AnswerOptions, Client, ReindexRequest, ScheduleRequest, Settings, TrainingRequest
else:

    def __getattr__(name: str) -> Any:
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(import_module("ragllava.client"), name)


__version__ = "0.2.0"
__all__ = ["AnswerOptions", "Client", "ReindexRequest", "ScheduleRequest", "Settings", "TrainingRequest"]
