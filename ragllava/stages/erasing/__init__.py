"""Erasing pictures, jobs and archives, from every place where they are stored."""
