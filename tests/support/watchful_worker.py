"""Included by a real worker, it looks at the tables of the database with every beat, and not twice a minute."""

from __future__ import annotations

from workers import presence

presence.TABLES_CHECKED_S = 0.1
