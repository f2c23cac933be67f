"""The only package that imports Celery: the app, and thin tasks that call plain functions."""
