"""RagLLaVA: bulk question answering over image archives (after arXiv 2407.21439)."""

__version__ = "0.2.0"
