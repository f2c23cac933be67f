"""What `ragllava bench` measures: each row is a ratio to a reference that is measured in the same run."""
