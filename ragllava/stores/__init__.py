"""Where things lie: Postgres (tables, vectors, registry) and the object store."""
