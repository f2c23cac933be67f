"""Schedules, maintenance tasks, and the queries behind them."""
