"""What models learn from, and the versions that came of it."""
