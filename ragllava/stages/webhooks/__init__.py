"""Webhooks: tell other systems that a job has ended."""
