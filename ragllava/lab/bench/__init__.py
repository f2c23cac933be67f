"""The measurements of `ragllava bench`: each row is a ratio to a reference that is measured in the same run."""
