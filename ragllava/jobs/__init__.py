"""The machinery of long work: states, the queue in Postgres, the runner of one shard."""
