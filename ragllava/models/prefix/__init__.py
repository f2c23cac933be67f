"""Prompts that share a prefix: the same pictures are read once for many questions."""
