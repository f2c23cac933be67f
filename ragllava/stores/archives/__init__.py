"""Archives in Postgres: images, their content, vectors and indexes."""
