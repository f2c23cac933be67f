"""Plain functions over a batch: read, ingest, answer, export. They know no Celery."""
