"""Examples to train on: labelled questions, hard negatives, frozen snapshots. Loads no torch."""
