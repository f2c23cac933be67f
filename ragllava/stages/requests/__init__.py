"""What somebody waits for at the HTTP API, computed by the answer workers before all bulk work."""
