"""Backups: made beside running work, verified, and restored into an empty system."""
