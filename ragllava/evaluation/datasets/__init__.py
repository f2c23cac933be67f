"""Evaluation data sets, read from the files of their download."""
