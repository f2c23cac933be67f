"""Pictures that nobody trusts: decoding, in child processes with limits."""
