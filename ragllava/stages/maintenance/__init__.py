"""Maintenance tasks and schedules."""
