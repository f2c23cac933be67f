"""What `ragllava bench` times: each row is a ratio to a reference that is measured in the same run."""
