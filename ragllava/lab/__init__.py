"""Measurements and recipes that are not part of the running product."""
