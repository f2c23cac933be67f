"""Evaluation on data sets with known answers: metrics, thresholds and the tables of a run."""
