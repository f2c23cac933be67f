"""The whole database as rows of text: read at one moment, and loaded into empty tables."""
