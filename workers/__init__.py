"""The only place that knows Celery: the app, and thin tasks that call plain functions."""
