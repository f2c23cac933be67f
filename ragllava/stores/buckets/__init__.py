"""Buckets that feed archives: bindings, their objects, and events that name objects."""
