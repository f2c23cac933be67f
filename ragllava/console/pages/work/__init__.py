"""Questions and jobs."""
