"""Batches of the HTTP API: from a file of OpenAI's lines to an answer job, and from its results to files."""
