"""Many workers that sleep instead of computing, on a real Postgres and Redis: what the machinery itself costs."""
