"""Jobs: their kinds, their states, the queue in Postgres, the retry rule, and the runner of shards."""
