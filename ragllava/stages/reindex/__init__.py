"""Embedding an archive's images again, while questions are answered."""
