"""Models, what they learn from, and the people who label it."""
