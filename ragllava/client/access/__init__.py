"""What the HTTP API adds to a client: callers and their limits, files, batches."""
